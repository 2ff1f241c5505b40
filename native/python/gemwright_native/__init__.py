"""Products and row look-ups with weights at their own bits, attention and a recurrence, as C++ kernels behind XLA FFI.

A weight `[out, in]` in one of `ENCODINGS` (block formats of GGUF files, and plain floats) is packed once,
`packed = pack(encoding, raw, (out, in))`, and stays packed in memory: decoding is bound by the bytes it reads.
`matmul`, `products`, `rows`, `attention` and `rg_lru` are JAX operations for the CPU backend and work under `jit`.

The environment variable GEMWRIGHT_NATIVE_ISA forces one of `isas()` instead of the first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gemwright_native._library import available, isa, isas, select_isa
from gemwright_native._packing import (
    ALIGNMENT,
    ENCODINGS,
    LANES,
    SPLIT,
    empty,
    pack,
    pack_rows,
    packed_bytes,
)

if TYPE_CHECKING:
    from gemwright_native._attention import attention
    from gemwright_native._products import matmul, products, rows, top
    from gemwright_native._recurrence import rg_lru

__all__ = [
    "ALIGNMENT",
    "ENCODINGS",
    "LANES",
    "SPLIT",
    "attention",
    "available",
    "empty",
    "isa",
    "isas",
    "matmul",
    "pack",
    "pack_rows",
    "packed_bytes",
    "products",
    "rg_lru",
    "rows",
    "select_isa",
    "top",
]

_OPERATIONS = {
    "attention": "_attention",
    "matmul": "_products",
    "products": "_products",
    "rg_lru": "_recurrence",
    "rows": "_products",
    "top": "_products",
}


def __getattr__(name: str) -> Any:
    # Packing needs no JAX, which takes most of a second to import.
    if name not in _OPERATIONS:
        raise AttributeError(f"module 'gemwright_native' has no attribute {name!r}")
    operation = getattr(import_module(f"gemwright_native.{_OPERATIONS[name]}"), name)
    globals()[name] = operation
    return operation
