"""Aligned host memory for weights, on huge pages."""

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Alignment in bytes at which a host buffer becomes a CPU device's buffer without a copy."""
LARGE_BUFFER = 16 << 20
"""Minimum size in bytes of a buffer with an array of its own, for which numpy requests huge pages."""
SHARED_BUFFER = 64 << 20
"""Size in bytes of an array that smaller buffers share. Pages that are never written take no memory."""
HUGE_PAGE = 2 << 20
"""Size of a huge page in bytes."""


class Arena:
    """An allocator of memory for weights. A shared array is freed with the last buffer in it."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return uninitialized bytes that start at a multiple of `ALIGNMENT`."""
        if nbytes >= LARGE_BUFFER:
            return aligned(nbytes)
        if nbytes > len(self._rest):
            self._rest = aligned(SHARED_BUFFER, HUGE_PAGE)
        buffer, self._rest = self._rest[:nbytes], self._rest[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        return buffer


def aligned(nbytes: int, boundary: int = ALIGNMENT) -> NDArray[np.uint8]:
    """Return uninitialized bytes that start at a multiple of `boundary`."""
    buffer = np.empty(nbytes + boundary, np.uint8)
    start = -buffer.ctypes.data % boundary
    return buffer[start : start + nbytes]
