"""The C++ kernels: whether they were compiled when gemwright was installed, and weights repacked for them.

Nothing here needs JAX, but for `native_enabled`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError

CHUNK = 1 << 24
"""Maximum number of values repacked at a time."""
MISSING = (
    "The C++ kernels were skipped, because no working C++17 compiler was found when gemwright was installed; it runs "
    "through XLA, about ten times slower and with more memory. Install a compiler such as g++ and reinstall gemwright."
)
"""Warning on a CPU without the kernels."""


class Repacked(NamedTuple):
    """The bytes of a weight in the layout of the kernels, and the name of the layout."""

    packed: NDArray[np.uint8]
    layout: str


def installed() -> bool:
    """Return whether the compiled library is installed."""
    return importlib.util.find_spec("gemwright_native") is not None and library().available()


def library() -> Any:
    """Return the package gemwright_native."""
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
    """Repack a weight for the kernels, some rows at a time.

    Args:
        encoding: The encoding of the bytes, one of `encodings()`.
        raw: The bytes as stored in a GGUF or safetensors file.
        shape: Number of rows, and values in each.
        allocate: Returns that number of bytes, aligned for XLA.
        on_rows_read: Called after some rows have been read, so that their pages can be released.
        head: The weight is an output head, of which the largest products are needed; see `gemwright_native.top`.
        spare_cores: Number of cores to leave idle.
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


def usable() -> bool:
    """Return whether the kernels are installed and have code for this machine.

    Raises:
        GemwrightError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine lacks.
    """
    if not installed():
        return False
    try:
        return bool(instruction_set())
    except ValueError as error:
        raise GemwrightError(str(error)) from error


def native_enabled() -> bool:
    """Return whether weights are loaded in their stored format: the default platform is a CPU that has the kernels.

    This is for loading. A program may be for another platform than the default one; see `kernels.choice`.

    Raises:
        GemwrightError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine lacks.
    """
    import jax

    return jax.default_backend() == "cpu" and usable()


def instruction_set() -> str:
    """Return the instruction set that the kernels use on this machine."""
    return library().isa()


def encodings() -> tuple[str, ...]:
    """Return the encodings that have kernels."""
    return library().ENCODINGS
