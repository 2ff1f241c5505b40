"""Memory that was freed, and that the C library keeps."""

import ctypes
import sys

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Return freed memory to the system, where the C library can (glibc); it takes a few milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


class TrimAtEnd:
    """The last field of an object that holds much memory: it is deleted after the other fields, and trims the heap."""

    def __del__(self):
        if sys is not None and not sys.is_finalizing():  # a module's globals are None at the end of the process
            trim()
