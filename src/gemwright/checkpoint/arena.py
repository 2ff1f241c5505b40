"""Host memory for weights: aligned, so that a CPU takes it as it is, and on huge pages, which are read faster."""

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes. A host buffer so aligned becomes a CPU device's buffer without a copy."""
LARGE = 16 << 20
"""Bytes. numpy asks for huge pages for large arrays; what is smaller shares a piece of memory, which is one."""
PIECE = 64 << 20
"""Bytes of a piece. The pages that are never written take no memory."""
HUGE_PAGE = 2 << 20


class Arena:
    """Hands out memory for weights. It is freed with them: a piece once all that was handed out of it is gone."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Uninitialised bytes that start on an `ALIGNMENT` boundary."""
        if nbytes >= LARGE:
            return aligned(nbytes)
        if nbytes > len(self._rest):
            self._rest = aligned(PIECE, HUGE_PAGE)
        taken, self._rest = self._rest[:nbytes], self._rest[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        return taken


def aligned(nbytes: int, boundary: int = ALIGNMENT) -> NDArray[np.uint8]:
    """Uninitialised bytes that start on a boundary."""
    buffer = np.empty(nbytes + boundary, np.uint8)
    start = -buffer.ctypes.data % boundary
    return buffer[start : start + nbytes]
