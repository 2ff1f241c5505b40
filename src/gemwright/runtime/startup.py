"""Settings of the Python interpreter during startup: paused garbage collection, frequent thread switches."""

import gc
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

SWITCH_INTERVAL = 0.0005
"""Interpreter switch interval while threads prefetch, in seconds: they need the GIL often and briefly."""

_lock = threading.Lock()
_users = 0
_usual_interval = 0.0


@contextmanager
def paused() -> Generator[None]:
    """Pause garbage collection while creating long-lived objects, and treat them as old afterwards.

    Modules and vocabularies are hundreds of thousands of objects; scanning them again and again as they are created
    takes a tenth of the time to the first token.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # moves all objects into the oldest generation
        if was_enabled:
            gc.enable()


@contextmanager
def fast_switching() -> Generator[None]:
    """Switch threads every `SWITCH_INTERVAL` seconds. Uses may overlap: the last to end restores the interval."""
    global _users, _usual_interval
    with _lock:
        if _users == 0:
            _usual_interval = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_INTERVAL)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                sys.setswitchinterval(_usual_interval)
