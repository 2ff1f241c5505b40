"""Weights' bytes rearranged for the kernels of gemwright-native, for which JAX is not needed."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 24
"""Values that are rearranged at a time."""


class Arranged(NamedTuple):
    """The bytes of a weight as the kernels take them, and the name of their layout."""

    packed: NDArray[np.uint8]
    layout: str


def installed() -> bool:
    """Whether gemwright-native is here with its kernels."""
    return importlib.util.find_spec("gemwright_native") is not None and native().available()


def native() -> Any:
    """The package of the kernels."""
    return importlib.import_module("gemwright_native")


def arrange(
    encoding: str,
    raw: NDArray[np.uint8],
    shape: tuple[int, int],
    *,
    take: Callable[[int], NDArray[np.uint8]],
    done: Callable[[], None],
    head: bool = False,
    idle: int = 0,
) -> Arranged:
    """Rearrange a weight's bytes, some rows at a time.

    Args:
        encoding: Of the bytes; one that has kernels.
        raw: The bytes as a GGUF or safetensors file holds them.
        shape: Rows into which the bytes are divided, and values in each.
        take: Gives memory for so many bytes, aligned as XLA wants it.
        done: Called when some rows have been read, so that their pages can be given back.
        head: Mostly the largest of its products are wanted; see `gemwright_native.top`.
        idle: Cores to leave to others.
    """
    kernels = native()
    rows, width = shape
    row_bytes = len(raw) // rows
    step = max(1, CHUNK // width // kernels.LANES) * kernels.LANES
    layout = kernels.SPLIT if head and encoding == "Q8_0" else encoding
    packed = take(kernels.packed_bytes(layout, shape))
    for start in range(0, rows, step):
        part = range(start, min(start + step, rows))
        try:
            kernels.repack_rows(packed, layout, raw[start * row_bytes : part.stop * row_bytes], shape, part, idle)
        except OverflowError:
            return arrange(encoding, raw, shape, take=take, done=done, idle=idle)
        done()
    return Arranged(packed, layout)
