"""Slow imports that Ctrl-C can interrupt."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

from gemwright.runtime import startup


def import_jax() -> None:
    """Import JAX and the modules that need it; Ctrl-C ends the process at once meanwhile."""
    with importing(), startup.paused():
        import gemwright.api  # noqa: F401  # pyright: ignore[reportUnusedImport]


@contextmanager
def importing() -> Generator[None]:
    """Make Ctrl-C end the process at once inside the context.

    An extension module interrupted during its import may raise another error or none. Only the main thread can set
    signal handlers; others import without one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: object) -> None:
    os._exit(130)
