"""Weights as the kernels read them: sizes and the one-time rearrangement."""

import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gemwright_native._library import library

SPLIT = "Q8_0_SPLIT"  # Q8_0 for a head: `top` reads five of its eight bits, and the others of few rows
ENCODINGS = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
LANES = 16  # rows in a panel, the unit of packing
ALIGNMENT = 64  # bytes; an array that starts so is handed to XLA without a copy


@cache
def packed_bytes(encoding: str, shape: tuple[int, int]) -> int:
    """Returns the size of a packed weight.

    Args:
        encoding: One of `ENCODINGS`.
        shape: `(out, in)`; `in` is a multiple of the encoding's block.

    Raises:
        ValueError: The encoding or shape is not supported.
    """
    if encoding not in (*ENCODINGS, SPLIT):
        raise ValueError(f"encoding {encoding!r} has no kernels; choose from {', '.join(ENCODINGS)}.")
    if not all(0 <= size < 2**63 for size in shape):
        raise ValueError(f"shape {shape} has a size that is negative or too large.")
    size: int = library().gemwright_packed_bytes(encoding.encode(), *shape)
    if size < 0:
        raise ValueError(f"shape {shape} is too large or its rows are no whole number of {encoding} blocks.")
    return size


def pack(encoding: str, raw: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Rearranges a weight for the kernels without changing a value.

    Sixteen rows are interleaved so that a vector holds one number of each; six-bit scales of the K encodings
    become bytes, which makes Q4_K 2.8% and Q5_K 2.3% larger. `out` is rounded up to a multiple of 16.

    Args:
        encoding: One of `ENCODINGS`, or `SPLIT` for the bytes of a Q8_0 weight.
        raw: The weight's bytes as a GGUF file holds them, contiguous, of any shape.
        shape: `(out, in)`.

    Returns:
        The packed bytes, `(packed_bytes(encoding, shape),)`.

    Raises:
        ValueError: The encoding, shape or size of `raw` is not supported.
        OverflowError: A scale is too large for `SPLIT`.
    """
    packed = empty(encoding, shape)
    pack_rows(packed, encoding, raw, shape, range(shape[0]))
    return packed


def empty(encoding: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns memory for a packed weight, which `pack_rows` is to fill."""
    size = packed_bytes(encoding, shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size]


def pack_rows(
    packed: NDArray[np.uint8], encoding: str, raw: NDArray[np.uint8], shape: tuple[int, int], rows: range, idle: int = 0
) -> None:
    """Packs some rows of a weight, as `pack` does all.

    Args:
        packed: `empty(encoding, shape)`.
        encoding: As for `pack`.
        raw: The bytes of the rows.
        shape: Of the whole weight.
        rows: Which they are; they begin at a multiple of 16, and end at one or with the weight.
        idle: Cores to leave to others.

    Raises:
        ValueError, OverflowError: As for `pack`.
    """
    if raw.dtype != np.uint8 or not raw.flags.c_contiguous:
        raise ValueError(f"raw bytes must be contiguous uint8, and these are {raw.dtype}.")
    threads = max(1, len(os.sched_getaffinity(0)) - idle) if raw.size > 1 << 20 else 1
    place, size = packed.ctypes.data, packed.size
    status = library().gemwright_pack(
        encoding.encode(), raw.ctypes.data, raw.size, *shape, rows.start, len(rows), place, size, threads
    )
    if status < 0:
        raise OverflowError("a scale is too large to be split.")
    if status == 0:
        raise ValueError(f"{raw.size} bytes are no {encoding} weight of shape {shape}.")
