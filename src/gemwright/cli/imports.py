"""The slow imports."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

from gemwright.runtime import startup


def import_jax() -> None:
    """Import JAX and what stands on it; until that is done, Ctrl-C ends the process at once."""
    with importing(), startup.paused():
        import gemwright.api  # noqa: F401  # pyright: ignore[reportUnusedImport]


@contextmanager
def importing() -> Generator[None]:
    """Let Ctrl-C end the process at once.

    An extension module whose import is interrupted reports something else than the interrupt, or nothing.
    """
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: object) -> None:
    os._exit(130)
