"""The weight layout of the kernels: sizes, and repacking of GGUF bytes."""

import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gemwright_native._library import library

SPLIT = "Q8_0_SPLIT"
"""Layout of a Q8_0 output head for `top`, which reads five bits of every value and the other three of few rows."""
ENCODINGS = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Weight formats that have kernels, by their GGUF names."""
LANES = 16
"""Rows in a panel, the unit of repacking."""
ALIGNMENT = 64
"""Alignment in bytes at which XLA takes an array without copying it."""


@cache
def packed_bytes(encoding: str, shape: tuple[int, int]) -> int:
    """Return the size of a packed weight in bytes.

    Args:
        encoding: One of `ENCODINGS`, or `SPLIT`.
        shape: `(out, in)`; `in` is a multiple of the encoding's block.

    Raises:
        ValueError: The encoding or shape is not supported.
    """
    if encoding not in (*ENCODINGS, SPLIT):
        raise ValueError(f"encoding {encoding!r} has no kernels; choose from {', '.join(ENCODINGS)}.")
    if not all(0 <= size < 2**63 for size in shape):
        raise ValueError(f"shape {shape} has a negative or too large size.")
    size: int = library().gemwright_packed_bytes(encoding.encode(), *shape)
    if size < 0:
        raise ValueError(f"shape {shape} is too large, or a row is not a whole number of {encoding} blocks.")
    return size


def repack(encoding: str, raw: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Convert a weight to the layout of the kernels, without changing a value.

    Sixteen rows are interleaved so that a vector holds one value of each. Six-bit scales become
    bytes, which makes Q4_K 2.8%, Q5_K 2.3% and IQ4_XS 1.5% larger. `out` is rounded up to a multiple of 16.

    Args:
        encoding: One of `ENCODINGS`, or `SPLIT` for the bytes of a Q8_0 weight.
        raw: The weight's bytes as in a GGUF file, contiguous, of any shape.
        shape: `(out, in)`.

    Returns:
        The packed bytes, `(packed_bytes(encoding, shape),)`.

    Raises:
        ValueError: The encoding, shape or size of `raw` is not supported.
        OverflowError: A scale is too large for `SPLIT`.
    """
    packed = empty(encoding, shape)
    repack_rows(packed, encoding, raw, shape, range(shape[0]))
    return packed


def empty(encoding: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Allocate memory for a packed weight, to be filled by `repack_rows`."""
    size = packed_bytes(encoding, shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size]


def repack_rows(
    packed: NDArray[np.uint8],
    encoding: str,
    raw: NDArray[np.uint8],
    shape: tuple[int, int],
    rows: range,
    spare_cores: int = 0,
) -> None:
    """Repack some rows of a weight; see `repack`.

    Args:
        packed: `empty(encoding, shape)`.
        encoding: The layout, one of `ENCODINGS` or `SPLIT`.
        raw: The bytes of these rows.
        shape: `(out, in)` of the whole weight.
        rows: The rows; they begin at a multiple of 16, and end at one or at `out`.
        spare_cores: Cores to leave idle.

    Raises:
        ValueError: The encoding, shape or size of `raw` is not supported.
        OverflowError: A scale is too large for `SPLIT`.
    """
    if raw.dtype != np.uint8 or not raw.flags.c_contiguous:
        raise ValueError(f"raw bytes must be contiguous uint8, got {raw.dtype}.")
    threads = max(1, len(os.sched_getaffinity(0)) - spare_cores) if raw.size > 1 << 20 else 1
    address, size = packed.ctypes.data, packed.size
    status = library().gemwright_repack(
        encoding.encode(), raw.ctypes.data, raw.size, *shape, rows.start, len(rows), address, size, threads
    )
    if status < 0:
        raise OverflowError(f"a scale is too large for {encoding}; repack the weight as Q8_0.")
    if status == 0:
        raise ValueError(f"{raw.size} bytes are not rows {rows.start} to {rows.stop} of a {encoding} weight {shape}.")
