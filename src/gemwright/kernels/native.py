"""The C++ kernels of gemwright-native: whether they are installed, and weights repacked for them. Needs no JAX."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError

CHUNK = 1 << 24
"""Values that are rearranged at a time."""


class Repacked(NamedTuple):
    """The bytes of a weight as the kernels take them, and the name of their layout."""

    packed: NDArray[np.uint8]
    layout: str


def installed() -> bool:
    """Whether gemwright-native is here with its kernels."""
    return importlib.util.find_spec("gemwright_native") is not None and library().available()


def library() -> Any:
    """Return the package of the kernels."""
    return importlib.import_module("gemwright_native")


def repack(
    encoding: str,
    raw: NDArray[np.uint8],
    shape: tuple[int, int],
    *,
    allocate: Callable[[int], NDArray[np.uint8]],
    on_rows_read: Callable[[], None],
    head: bool = False,
    spare_cores: int = 0,
) -> Repacked:
    """Rearrange a weight's bytes, some rows at a time.

    Args:
        encoding: Of the bytes; one that has kernels.
        raw: The bytes as a GGUF or safetensors file holds them.
        shape: Rows into which the bytes are divided, and values in each.
        allocate: Gives memory for so many bytes, aligned as XLA wants it.
        on_rows_read: Called when some rows have been read, so that their pages can be given back.
        head: Mostly the largest of its products are wanted; see `gemwright_native.top`.
        spare_cores: Cores to leave to others.
    """
    kernels = library()
    rows, width = shape
    row_bytes = len(raw) // rows
    step = max(1, CHUNK // width // kernels.LANES) * kernels.LANES
    layout = kernels.SPLIT if head and encoding == "Q8_0" else encoding
    packed = allocate(kernels.packed_bytes(layout, shape))
    for start in range(0, rows, step):
        part = range(start, min(start + step, rows))
        try:
            kernels.repack_rows(
                packed, layout, raw[start * row_bytes : part.stop * row_bytes], shape, part, spare_cores
            )
        except OverflowError:
            return repack(encoding, raw, shape, allocate=allocate, on_rows_read=on_rows_read, spare_cores=spare_cores)
        on_rows_read()
    return Repacked(packed, layout)


def native_enabled() -> bool:
    """Return whether matrices are multiplied in their stored format: on a CPU, with gemwright-native installed.

    Raises:
        GemwrightError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine lacks.
    """
    import jax

    if jax.default_backend() != "cpu" or not installed():
        return False
    try:
        return bool(instruction_set())
    except ValueError as error:
        raise GemwrightError(str(error)) from error


def instruction_set() -> str:
    """Return the instruction set that the kernels use on this machine."""
    return library().isa()


def encodings() -> tuple[str, ...]:
    """Return the encodings that have kernels."""
    return library().ENCODINGS
