"""Numbers of a few bits: packed integers, small floats, and the scales that groups of them share."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The 16 values of a float with two exponent bits and one mantissa bit (OCP Microscaling Formats 1.0, 5.3.3)."""
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
}
"""Dtype of each safetensors encoding that a quantized format uses."""


def unpack(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the numbers in rows of bytes or words, low bits first; a number may cross bytes and words.

    Args:
        packed: `[rows, n]`, little-endian integers of any width.
        bits: Bits per number, 1 to 8; a row is a whole number of `bits` bytes.

    Returns:
        `[rows, numbers]`.
    """
    stored = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8:
        return stored
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        numbers = stored[..., None] >> shifts & np.uint8(mask)
    else:  # eight numbers in `bits` bytes
        words = np.zeros((len(stored), stored.shape[1] // bits), np.uint64)
        for index in range(bits):
            words |= stored[:, index::bits].astype(np.uint64) << np.uint64(8 * index)
        numbers = (words[..., None] >> np.arange(0, 8 * bits, bits, dtype=np.uint64) & np.uint64(mask)).astype(np.uint8)
    return numbers.reshape(len(stored), -1)


def spread(scales: NDArray[Any], group: int, width: int) -> NDArray[np.float32]:
    """Return the scale of every column, `[rows, width]` or `[rows, 1]`, of `[rows, groups]` scales."""
    scales = scales.astype(np.float32)
    return scales if scales.shape[1] == 1 else np.repeat(scales, group, axis=1)[:, :width]


@dataclass(frozen=True)
class Blocks:
    """Scales that blocks of a matrix share.

    Attributes:
        scales: `[blocks of rows, blocks of columns]`.
        height: Rows of a block.
        group: Columns of a block.
        columns: Block of each column, `[width]`, if it is not its index divided by `group`.
    """

    scales: NDArray[Any]
    height: int
    group: int
    columns: NDArray[np.int32] | None = None

    def read(self, start: int, stop: int, width: int) -> NDArray[np.float32]:
        """Return the scales of rows `start` to `stop`, `[stop - start, width]`, or one column if a row has one."""
        rows = self.scales[np.arange(start, stop) // self.height]
        return spread(rows, self.group, width) if self.columns is None else rows.astype(np.float32)[:, self.columns]
