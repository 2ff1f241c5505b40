"""Products and row look-ups with weights at their own bits, attention and a recurrence, as C++ kernels behind XLA FFI.

A weight `[out, in]` in one of `ENCODINGS` (block formats of GGUF files, and plain floats) is packed once,
`packed = pack(encoding, raw, (out, in))`, and stays packed in memory: decoding is bound by the bytes it reads.
`matmul`, `products`, `rows`, `attention` and `rg_lru` are JAX operations for the CPU backend and work under `jit`.

The environment variable GEMWRIGHT_NATIVE_ISA forces one of `isas()` instead of the first.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from gemwright_native._recurrence import rg_lru

__all__ = [
    "ENCODINGS",
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

SPLIT = "Q8_0_SPLIT"  # Q8_0 for a head: `top` reads five of its eight bits, and the others of few rows
ENCODINGS = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
LANES = 16  # rows in a panel, the unit of packing
ALIGNMENT = 64  # bytes; an array that starts so is handed to XLA without a copy

_Shapes: TypeAlias = tuple[tuple[str, int], ...]  # of each weight: encoding, rows
_Inputs: TypeAlias = tuple[Array, Array | None, Array | None, Array | None, Array | None]

_LIBRARY = Path(__file__).with_name("libgemwright_native.so")


@cache
def _library() -> ctypes.CDLL:
    """Loads the kernels, chooses the instruction set and registers the operations with XLA, once."""
    library = ctypes.CDLL(str(_LIBRARY))
    library.gemwright_isa.restype = library.gemwright_isa_name.restype = ctypes.c_char_p
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.gemwright_packed_bytes.restype = size
    library.gemwright_packed_bytes.argtypes = [ctypes.c_char_p, size, size]
    library.gemwright_pack.argtypes = [ctypes.c_char_p, pointer, *[size] * 5, pointer, size, ctypes.c_int]
    forced = os.environ.get("GEMWRIGHT_NATIVE_ISA")
    if forced and not library.gemwright_select_isa(forced.encode()):
        names = ", ".join(_isas(library))
        raise ValueError(f"GEMWRIGHT_NATIVE_ISA={forced} cannot run here; choose from {names}, or leave it unset.")
    for name in (
        "gemwright_products",
        "gemwright_top",
        "gemwright_rows",
        "gemwright_attention_float32",
        "gemwright_attention_bfloat16",
        "gemwright_rg_lru_float32",
        "gemwright_rg_lru_bfloat16",
    ):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _isas(library: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while name := library.gemwright_isa_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def available() -> bool:
    """Tells whether the compiled kernels are installed."""
    return _LIBRARY.is_file()


def isa() -> str:
    """Returns the instruction set in use.

    Raises:
        ValueError: GEMWRIGHT_NATIVE_ISA names one that this machine or build lacks.
    """
    return _library().gemwright_isa().decode()


def isas() -> tuple[str, ...]:
    """Returns the instruction sets that can run here, best first; the last is always `portable`."""
    return _isas(_library())


def select_isa(name: str) -> None:
    """Changes the instruction set of later calls.

    Raises:
        ValueError: It is not one of `isas()`.
    """
    if not _library().gemwright_select_isa(name.encode()):
        raise ValueError(f"instruction set {name!r} cannot run here; choose from {', '.join(isas())}.")


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
    size: int = _library().gemwright_packed_bytes(encoding.encode(), *shape)
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
    packed: NDArray[np.uint8], encoding: str, raw: NDArray[np.uint8], shape: tuple[int, int], rows: range
) -> None:
    """Packs some rows of a weight, as `pack` does all.

    Args:
        packed: `empty(encoding, shape)`.
        encoding: As for `pack`.
        raw: The bytes of the rows.
        shape: Of the whole weight.
        rows: Which they are; they begin at a multiple of 16, and end at one or with the weight.

    Raises:
        ValueError, OverflowError: As for `pack`.
    """
    if raw.dtype != np.uint8 or not raw.flags.c_contiguous:
        raise ValueError(f"raw bytes must be contiguous uint8, and these are {raw.dtype}.")
    threads = len(os.sched_getaffinity(0)) if raw.size > 1 << 20 else 1
    place, size = packed.ctypes.data, packed.size
    status = _library().gemwright_pack(
        encoding.encode(), raw.ctypes.data, raw.size, *shape, rows.start, len(rows), place, size, threads
    )
    if status < 0:
        raise OverflowError("a scale is too large to be split.")
    if status == 0:
        raise ValueError(f"{raw.size} bytes are no {encoding} weight of shape {shape}.")


def matmul(
    x: Array, packed: Array, encoding: str, out_features: int, exact: bool = False, precise: bool = False
) -> Array:
    """Multiplies by a packed weight: `x @ w.T`.

    The weight is frozen: the gradient is that of the exact product with respect to `x`.

    Args:
        x: float32 `[rows, in]`.
        packed: `pack(encoding, raw, (out_features, in))`.
        encoding: The weight's encoding.
        out_features: Rows of the weight.
        exact: Multiply float32 activations. Otherwise a block format meets activations rounded to 8 bits in
            blocks of 32 with a float32 scale, and products are summed as integers within a block. A block of
            `x` that is not finite makes its row of the result NaN.
        precise: Round activations to 16 bits instead, as the sum of two numbers of 8; it takes twice the arithmetic
            and reads the weight once. `SPLIT` is always multiplied so.

    Returns:
        float32 `[rows, out_features]`.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"x must be float32 [rows, in], and it is {x.dtype} {list(x.shape)}.")
    _check_packed(packed, packed_bytes(encoding, (out_features, x.shape[1])), f"{encoding} [{out_features}, in]")
    return _matmul(encoding, out_features, exact, precise, x, packed)


def products(
    x: Array,
    weights: Sequence[tuple[Array, str, int]],
    *,
    gain: Array | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    post_gain: Array | None = None,
    eps: float = 0.0,
    precise: bool = False,
) -> tuple[Array, ...]:
    """Multiplies one input by several packed weights, with what stands around such products in a decoder.

    In this order: x = gelu(gate) * x (tanh form), x = norm(x, gain), y = x @ w.T as `matmul` does, y = norm(y,
    post_gain), y = residual + y, each where it is asked for; norm(x, gain) = x / rms(x) * (1 + gain).

    Args:
        x: float32 `[rows, in]`.
        weights: Of each the packed bytes, the encoding, and `out`, its rows.
        gain: float32 `[in]`.
        gate: float32 `[rows, in]`.
        residual: float32 `[rows, out]`.
        post_gain: float32 `[out]`.
        eps: Of the norms.
        precise: As for `matmul`, unless one of the weights is of plain floats.

    Returns:
        float32 `[rows, out]` for each weight. The gradient is that of exact products; weights have none.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    single = residual is not None or post_gain is not None
    if x.ndim != 2 or not weights or (len(weights) > 1 and single):
        raise ValueError("products takes x [rows, in] and weights; what is done to a result needs a single weight.")
    out = weights[0][2]
    expected = {
        "x": (x, x.shape),
        "gain": (gain, x.shape[1:]),
        "gate": (gate, x.shape),
        "residual": (residual, (x.shape[0], out)),
        "post_gain": (post_gain, (out,)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and (array.dtype != jnp.float32 or array.shape != shape):
            raise ValueError(f"{name} must be float32 {list(shape)}, and is {array.dtype} {list(array.shape)}.")
    for packed, encoding, out in weights:
        _check_packed(packed, packed_bytes(encoding, (out, x.shape[1])), f"{encoding} [{out}, in]")
    shapes = tuple((encoding, out) for _, encoding, out in weights)
    inputs = (x, gain, gate, residual, post_gain)
    return _products(shapes, precise, eps, inputs, tuple(weight[0] for weight in weights))


def top(x: Array, packed: Array, encoding: str, out_features: int, limit: int, count: int) -> tuple[Array, Array]:
    """The largest products of each row with a packed weight, out of its first `limit` rows.

    They are the numbers that `matmul` gives when precise, in descending order, the lower id first where two are equal.
    A weight in the encoding `SPLIT` is read in two passes: five bits of every row, then the other three of those rows
    that may still be among the largest, which the Cauchy-Schwarz inequality tells.

    Args:
        x: float32 `[rows, in]`.
        packed: `pack(encoding, raw, (out_features, in))`.
        encoding: The weight's encoding.
        out_features: Rows of the weight.
        limit: Rows of the weight that count.
        count: How many products are wanted, `limit` at most.

    Returns:
        float32 and int32 `[rows, count]`: the products and their rows. Where products are no numbers there may be too
        few; NaN fills their place.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"x must be float32 [rows, in], and it is {x.dtype} {list(x.shape)}.")
    if not 1 <= count <= limit <= out_features:
        raise ValueError(f"there are no {count} largest of the first {limit} of {out_features} rows.")
    _check_packed(packed, packed_bytes(encoding, (out_features, x.shape[1])), f"{encoding} [{out_features}, in]")
    shape = (x.shape[0], count)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)]
    call = jax.ffi.ffi_call("gemwright_top", results)
    values, ids = call(x, packed, encoding=encoding, out=np.int64(out_features), limit=np.int64(limit))
    return values, ids


def rows(packed: Array, ids: Array, encoding: str, width: int) -> Array:
    """Looks up rows of a packed table and decodes them.

    Args:
        packed: `pack(encoding, raw, (n, width))`.
        ids: int32 `[ids]`. A negative id, or one past the table, gives a row of NaN.
        encoding: The table's encoding.
        width: Values in a row.

    Returns:
        float32 `[ids, width]`.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if ids.ndim != 1 or ids.dtype != jnp.int32:
        raise ValueError(f"ids must be int32 [ids], and they are {ids.dtype} {list(ids.shape)}.")
    panel = packed_bytes(encoding, (LANES, width))
    if panel == 0:
        raise ValueError("width must be positive.")
    if encoding != SPLIT:
        _check_packed(packed, packed.size // panel * panel, f"{encoding} [n, {width}]")
    return _rows(packed, ids, encoding, width)


def attention(
    q: Array,
    k: Array,
    v: Array,
    ring: tuple[Array, Array],
    positions: Array,
    lengths: Array,
    rotation: Array,
    gains: tuple[Array, Array] | None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Array, tuple[Array, Array]]:
    """Attends from new tokens to a ring of earlier ones and to each other, and stores them in the ring.

    Queries and keys are normalised where there are gains, x / rms(x) * (1 + gain), then rotated. A query at position
    p sees positions p - window + 1 to p; a ring of S slots holds those from `lengths` - S on, that of p in slot p % S.
    The ring is changed in place where XLA lets go of it. There is no gradient.

    Args:
        q: float32 `[B, T, N, H]`, as projected; H is a multiple of 16.
        k: float32 `[B, T, K, H]`; query head n reads head n // (N / K).
        v: float32 `[B, T, K, H]`.
        ring: Keys and values, float32 or bfloat16 `[B, K, S, H]`; new ones are rounded as it is before any query meets
            them, and arithmetic is float32.
        positions: int32 `[B, T]`, in each row `lengths`, `lengths` + 1 and so on; -1 for padding, which is neither
            stored nor seen, and whose result is zero.
        lengths: int32 `[B]`, tokens of each row before these.
        rotation: float32 `[B, T, 2, R / 2]`, cosines and sines of the angles of the first R values of a head.
        gains: Of queries' and keys' norms, float32 `[H]`.
        window: None sees everything before.
        scale: Scores are multiplied by it.
        cap: Scores are squashed to within it by tanh.
        eps: Of the norms.

    Returns:
        float32 `[B, T, N, H]`, and the ring after these tokens.

    Raises:
        ValueError: A dtype or shape is wrong.
    """
    _library()
    B, T, N, H = q.shape
    K, S = ring[0].shape[1:3] if ring[0].ndim == 4 else (0, 0)
    stored = jnp.bfloat16 if ring[0].dtype == jnp.bfloat16 else jnp.float32
    none = jnp.zeros(0, jnp.float32)
    q_gain, k_gain = (none, none) if gains is None else gains
    expected = {
        "q": (q, jnp.float32, (B, T, N, H)),
        "k": (k, jnp.float32, (B, T, K, H)),
        "v": (v, jnp.float32, (B, T, K, H)),
        "the ring's keys": (ring[0], stored, (B, K, S, H)),
        "the ring's values": (ring[1], stored, (B, K, S, H)),
        "positions": (positions, jnp.int32, (B, T)),
        "lengths": (lengths, jnp.int32, (B,)),
        "rotation": (rotation, jnp.float32, (B, T, 2, rotation.shape[-1])),
        "the queries' gain": (q_gain, jnp.float32, (0 if gains is None else H,)),
        "the keys' gain": (k_gain, jnp.float32, (0 if gains is None else H,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} must be {np.dtype(dtype)} {list(shape)}, and is {array.dtype} {list(array.shape)}."
            )
    if H % LANES or K < 1 or N % K or S < 1 or 2 * rotation.shape[-1] > H or (window is not None and window < 1):
        raise ValueError(f"{N} heads of {H} over {K}, a ring of {S} and a window of {window} do not fit together.")
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *ring)]
    call = jax.ffi.ffi_call(f"gemwright_attention_{ring[0].dtype}", results, input_output_aliases={3: 1, 4: 2})
    y, keys, values = call(
        q,
        k,
        v,
        *ring,
        positions,
        lengths,
        rotation,
        q_gain,
        k_gain,
        window=np.int64(window or 2**62),
        scale=np.float32(scale),
        cap=np.float32(cap or 0.0),
        eps=np.float32(eps),
    )
    return y, (keys, values)


def _check_packed(packed: Array, size: int, what: str) -> None:
    if packed.dtype != jnp.uint8 or packed.shape != (size,):
        raise ValueError(
            f"packed must be uint8 [{size}] for {what}, and it is {packed.dtype} {list(packed.shape)}; "
            "make it with pack()."
        )


def _rows(packed: Array, ids: Array, encoding: str, width: int) -> Array:
    result = jax.ShapeDtypeStruct((ids.shape[0], width), jnp.float32)
    return jax.ffi.ffi_call("gemwright_rows", result)(packed, ids, encoding=encoding)


def _call(
    shapes: _Shapes, exact: bool, precise: bool, eps: float, inputs: _Inputs, packed: Sequence[Array]
) -> tuple[Array, ...]:
    x, gain, gate, residual, post_gain = inputs
    results = [jax.ShapeDtypeStruct((x.shape[0], out), jnp.float32) for _, out in shapes]
    row, matrix = jnp.zeros(0, jnp.float32), jnp.zeros((0, 0), jnp.float32)
    return tuple(
        jax.ffi.ffi_call("gemwright_products", results)(
            x,
            row if gain is None else gain,
            matrix if gate is None else gate,
            row if post_gain is None else post_gain,
            matrix if residual is None else residual,
            *packed,
            encodings=" ".join(encoding for encoding, _ in shapes),
            exact=exact,
            precise=precise,
            eps=np.float32(eps),
        )
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _products(
    shapes: _Shapes, precise: bool, eps: float, inputs: _Inputs, packed: tuple[Array, ...]
) -> tuple[Array, ...]:
    return _call(shapes, False, precise, eps, inputs, packed)


def _products_forward(
    shapes: _Shapes, precise: bool, eps: float, inputs: _Inputs, packed: tuple[Array, ...]
) -> tuple[Any, Any]:
    return _products(shapes, precise, eps, inputs, packed), (inputs, packed)


def _products_backward(
    shapes: _Shapes, precise: bool, eps: float, saved: tuple[_Inputs, tuple[Array, ...]], dy: Any
) -> Any:
    inputs, packed = saved
    pullback: Any = jax.vjp(partial(_composed, shapes, eps, packed), inputs)[1]
    return *pullback(dy), tuple(np.zeros(weight.shape, jax.dtypes.float0) for weight in packed)


def _composed(shapes: _Shapes, eps: float, packed: tuple[Array, ...], inputs: _Inputs) -> tuple[Array, ...]:
    """What `products` computes, step by step."""
    x, gain, gate, residual, post_gain = inputs
    x = x if gate is None else jax.nn.gelu(gate, approximate=True) * x
    x = x if gain is None else _norm(x, gain, eps)
    results: list[Array] = []
    for (encoding, out), weight in zip(shapes, packed, strict=True):
        y: Any = _matmul(encoding, out, True, False, x, weight)
        y = y if post_gain is None else _norm(y, post_gain, eps)
        results.append(y if residual is None else residual + y)
    return tuple(results)


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * (1.0 + gain)


_products.defvjp(_products_forward, _products_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _matmul(encoding: str, out_features: int, exact: bool, precise: bool, x: Array, packed: Array) -> Array:
    inputs = (x, None, None, None, None)
    return _call(((encoding, out_features),), exact, precise, 0.0, inputs, (packed,))[0]


def _matmul_forward(
    encoding: str, out_features: int, exact: bool, precise: bool, x: Array, packed: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(encoding, out_features, exact, precise, x, packed), (x, packed)


def _matmul_backward(
    encoding: str, out_features: int, exact: bool, precise: bool, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Any]:
    """Returns `dy @ w`, decoding the weight a part at a time."""
    x, packed = saved
    width, part = x.shape[1], min(out_features, _DECODED_ROWS)
    steps = -(-out_features // part) if part else 0
    dy = jnp.pad(dy, ((0, 0), (0, steps * part - out_features)))

    def add(i: Array, dx: Array) -> Array:
        ids = jnp.minimum(i * part + jnp.arange(part, dtype=jnp.int32), out_features - 1)  # zero in dy past the end
        w = _rows(packed, ids, encoding, width)
        return dx + jax.lax.dynamic_slice_in_dim(dy, i * part, part, 1) @ w

    dx = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x))
    return dx, np.zeros(packed.shape, jax.dtypes.float0)


_DECODED_ROWS = 4096  # of a weight in float32 at a time: 10 MB at a width of 640
_matmul.defvjp(_matmul_forward, _matmul_backward)
