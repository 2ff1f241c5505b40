"""The shared library of kernels, loaded once, and its instruction sets."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARY = Path(__file__).with_name("libgemwright_native.so")


@cache
def library() -> ctypes.CDLL:
    """Load the kernels and choose the instruction set. This does not import JAX.

    Raises:
        ImportError: The package was installed without its kernels.
        ValueError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine or build lacks.
    """
    if not available():
        raise ImportError(
            f"there are no compiled kernels in {_LIBRARY.parent}, because the C++ code did not compile when gemwright "
            "was installed; install a C++17 compiler (g++ or clang++) and reinstall gemwright."
        )
    loaded = ctypes.CDLL(str(_LIBRARY))
    loaded.gemwright_isa.restype = loaded.gemwright_isa_name.restype = ctypes.c_char_p
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded.gemwright_packed_bytes.restype = size
    loaded.gemwright_packed_bytes.argtypes = [ctypes.c_char_p, size, size]
    loaded.gemwright_repack.argtypes = [ctypes.c_char_p, pointer, *[size] * 5, pointer, size, ctypes.c_int]
    forced = os.environ.get("GEMWRIGHT_NATIVE_ISA")
    if forced and not loaded.gemwright_select_isa(forced.encode()):
        names = ", ".join(_isas(loaded))
        raise ValueError(f"GEMWRIGHT_NATIVE_ISA={forced} cannot run here; choose from {names}, or leave it unset.")
    return loaded


def operation(name: str, results: Any, **options: Any) -> Callable[..., Any]:
    """Return a kernel as a JAX operation; the arguments are those of `jax.ffi.ffi_call`."""
    import jax

    _register()
    return jax.ffi.ffi_call(name, results, **options)


@cache
def _register() -> None:
    """Register the operations with XLA, once."""
    import jax

    for name in (
        "gemwright_cross_entropy",
        "gemwright_fused_linear",
        "gemwright_top",
        "gemwright_rows",
        "gemwright_attention_float32",
        "gemwright_attention_bfloat16",
        "gemwright_rg_lru_float32",
        "gemwright_rg_lru_bfloat16",
    ):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library(), name)), platform="cpu")


def _isas(loaded: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while name := loaded.gemwright_isa_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def available() -> bool:
    """Return whether the compiled kernels are installed."""
    return _LIBRARY.is_file()


def isa() -> str:
    """Return the instruction set in use.

    Raises:
        ValueError: GEMWRIGHT_NATIVE_ISA names an instruction set that this machine or build lacks.
    """
    return library().gemwright_isa().decode()


def isas() -> tuple[str, ...]:
    """Return the instruction sets that can run here, best first; the last is always `portable`."""
    return _isas(library())


def select_isa(name: str) -> None:
    """Change the instruction set of later calls.

    Raises:
        ValueError: It is not one of `isas()`.
    """
    if not library().gemwright_select_isa(name.encode()):
        raise ValueError(f"instruction set {name!r} cannot run here; choose from {', '.join(isas())}.")
