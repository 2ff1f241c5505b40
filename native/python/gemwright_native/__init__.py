"""C++ kernels for CPUs behind JAX's FFI: products with GGUF-quantized weights, attention, a recurrence and a loss.

A weight `[out, in]` in one of `ENCODINGS` (block formats of GGUF files, and plain floats) is repacked once,
`packed = repack(encoding, raw, (out, in))`, and stays quantized in memory: decoding is bound by the bytes it reads.
`matmul`, `fused_linear`, `top`, `rows`, `attention`, `rg_lru` and `cross_entropy` are JAX operations for the CPU
backend and work under `jit`.

The environment variable GEMWRIGHT_NATIVE_ISA selects one of `isas()` instead of the first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gemwright_native._library import available, isa, isas, select_isa
from gemwright_native._repack import (
    ALIGNMENT,
    ENCODINGS,
    LANES,
    SPLIT,
    empty,
    packed_bytes,
    repack,
    repack_rows,
)

if TYPE_CHECKING:
    from gemwright_native._attention import attention
    from gemwright_native._cross_entropy import cross_entropy
    from gemwright_native._linear import fused_linear, matmul, rows, top
    from gemwright_native._rg_lru import rg_lru

__all__ = [
    "ALIGNMENT",
    "ENCODINGS",
    "LANES",
    "SPLIT",
    "attention",
    "available",
    "cross_entropy",
    "empty",
    "fused_linear",
    "isa",
    "isas",
    "matmul",
    "packed_bytes",
    "repack",
    "repack_rows",
    "rg_lru",
    "rows",
    "select_isa",
    "top",
]

_OPERATIONS = {
    "attention": "_attention",
    "cross_entropy": "_cross_entropy",
    "fused_linear": "_linear",
    "matmul": "_linear",
    "rg_lru": "_rg_lru",
    "rows": "_linear",
    "top": "_linear",
}


def __getattr__(name: str) -> Any:
    # Repacking does not need JAX, whose import takes most of a second.
    if name not in _OPERATIONS:
        raise AttributeError(f"module 'gemwright_native' has no attribute {name!r}")
    operation = getattr(import_module(f"gemwright_native.{_OPERATIONS[name]}"), name)
    globals()[name] = operation
    return operation
