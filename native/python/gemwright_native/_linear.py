"""Matrix products and row look-ups as JAX operations, with gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation
from gemwright_native._repack import LANES, SPLIT, packed_bytes

_Shapes: TypeAlias = tuple[tuple[str, int], ...]  # (encoding, rows) of each weight
_Inputs: TypeAlias = tuple[Array, Array | None, Array | None, Array | None, Array | None]


def matmul(
    x: Array, packed: Array, encoding: str, out_features: int, exact: bool = False, activation_bits: int = 8
) -> Array:
    """Multiply by a packed weight: `x @ w.T`.

    The gradient is that of the exact product with respect to `x`; the weight has none.

    Args:
        x: float32 `[rows, in]`.
        packed: `repack(encoding, raw, (out_features, in))`.
        encoding: The weight's encoding.
        out_features: Rows of the weight.
        exact: Multiply float32 activations. Otherwise, for a block format, activations are quantized in blocks of 32
            with a float32 scale, and products are summed as integers within a block. A block of `x` that is not finite
            makes its row of the result NaN. On a processor with AMX, if `x` has more than 64 rows, `x` and the weight
            are rounded to bfloat16 instead and summed in float32.
        activation_bits: Bits of a quantized activation, 8 or 16. 16 is the sum of two 8-bit numbers: twice the
            arithmetic, one pass over the weight. `SPLIT` always uses 16.

    Returns:
        float32 `[rows, out_features]`.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"x must be float32 [rows, in], got {x.dtype} {list(x.shape)}.")
    _check_bits(activation_bits)
    _check_packed(packed, packed_bytes(encoding, (out_features, x.shape[1])), f"{encoding} [{out_features}, in]")
    return _matmul(encoding, out_features, exact, activation_bits, x, packed)


def fused_linear(
    x: Array,
    weights: Sequence[tuple[Array, str, int]],
    *,
    gain: Array | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    post_gain: Array | None = None,
    eps: float = 0.0,
    activation_bits: int = 8,
) -> tuple[Array, ...]:
    """Multiply one input by several packed weights, fused with the gate, norms and residual sum of a decoder block.

    In this order, each step only if its argument is given: x = gelu(gate) * x (tanh form), x = norm(x, gain),
    y = x @ w.T as in `matmul`, y = norm(y, post_gain), y = residual + y; norm(x, gain) = x / rms(x) * (1 + gain).

    Args:
        x: float32 `[rows, in]`.
        weights: (packed bytes, encoding, `out`) of each weight `[out, in]`.
        gain: float32 `[in]`.
        gate: float32 `[rows, in]`.
        residual: float32 `[rows, out]`; takes a single weight.
        post_gain: float32 `[out]`; takes a single weight.
        eps: Epsilon of the norms.
        activation_bits: As for `matmul`; 8 is used if one of the weights is of plain floats.

    Returns:
        float32 `[rows, out]` for each weight. The gradient is that of exact products; weights have none.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    single = residual is not None or post_gain is not None
    if x.ndim != 2 or not weights or (len(weights) > 1 and single):
        raise ValueError("fused_linear takes x [rows, in] and weights; residual and post_gain need a single weight.")
    _check_bits(activation_bits)
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
            raise ValueError(f"{name} must be float32 {list(shape)}, got {array.dtype} {list(array.shape)}.")
    for packed, encoding, out in weights:
        _check_packed(packed, packed_bytes(encoding, (out, x.shape[1])), f"{encoding} [{out}, in]")
    shapes = tuple((encoding, out) for _, encoding, out in weights)
    inputs = (x, gain, gate, residual, post_gain)
    return _fused_linear(shapes, activation_bits, eps, inputs, tuple(weight[0] for weight in weights))


def top(x: Array, packed: Array, encoding: str, out_features: int, limit: int, count: int) -> tuple[Array, Array]:
    """Return the largest products of each row of x with the first `limit` rows of a packed weight.

    They equal those of `matmul` with `activation_bits=16`, in descending order, the lower id first if two are equal.
    A `SPLIT` weight is read in two passes: five bits of every row, then the other three bits of the rows that may still
    be among the largest, by the Cauchy-Schwarz inequality.

    Args:
        x: float32 `[rows, in]`.
        packed: `repack(encoding, raw, (out_features, in))`.
        encoding: The weight's encoding.
        out_features: Rows of the weight.
        limit: Rows of the weight to consider.
        count: Number of products, `limit` at most.

    Returns:
        float32 and int32 `[rows, count]`: the products and their rows. If NaN products leave too few, NaN fills the
        rest.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"x must be float32 [rows, in], got {x.dtype} {list(x.shape)}.")
    if not 1 <= count <= limit <= out_features:
        raise ValueError(f"top needs 1 <= count <= limit <= out_features, got {count}, {limit} and {out_features}.")
    _check_packed(packed, packed_bytes(encoding, (out_features, x.shape[1])), f"{encoding} [{out_features}, in]")
    shape = (x.shape[0], count)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)]
    call = operation("gemwright_top", results)
    values, ids = call(x, packed, encoding=encoding, out=np.int64(out_features), limit=np.int64(limit))
    return values, ids


def rows(packed: Array, ids: Array, encoding: str, width: int) -> Array:
    """Look up rows of a packed table and decode them.

    Args:
        packed: `repack(encoding, raw, (n, width))`.
        ids: int32 `[ids]`. A negative id, or one past the table, gives a row of NaN.
        encoding: The table's encoding.
        width: Values in a row.

    Returns:
        float32 `[ids, width]`.

    Raises:
        ValueError: A dtype, shape or encoding is wrong.
    """
    if ids.ndim != 1 or ids.dtype != jnp.int32:
        raise ValueError(f"ids must be int32 [ids], got {ids.dtype} {list(ids.shape)}.")
    panel = packed_bytes(encoding, (LANES, width))
    if panel == 0:
        raise ValueError("width must be positive.")
    if encoding != SPLIT:
        _check_packed(packed, packed.size // panel * panel, f"{encoding} [n, {width}]")
    return _rows(packed, ids, encoding, width)


def _check_bits(activation_bits: int) -> None:
    if activation_bits not in (8, 16):
        raise ValueError(f"activation_bits must be 8 or 16, got {activation_bits}.")


def _check_packed(packed: Array, size: int, what: str) -> None:
    if packed.dtype != jnp.uint8 or packed.shape != (size,):
        raise ValueError(
            f"packed must be uint8 [{size}] for {what}, got {packed.dtype} {list(packed.shape)}; make it with repack()."
        )


def _rows(packed: Array, ids: Array, encoding: str, width: int) -> Array:
    result = jax.ShapeDtypeStruct((ids.shape[0], width), jnp.float32)
    return operation("gemwright_rows", result)(packed, ids, encoding=encoding)


def _call(
    shapes: _Shapes, exact: bool, activation_bits: int, eps: float, inputs: _Inputs, packed: Sequence[Array]
) -> tuple[Array, ...]:
    x, gain, gate, residual, post_gain = inputs
    results = [jax.ShapeDtypeStruct((x.shape[0], out), jnp.float32) for _, out in shapes]
    row, matrix = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)  # jnp.zeros is slow to trace
    return tuple(
        operation("gemwright_fused_linear", results)(
            x,
            row if gain is None else gain,
            matrix if gate is None else gate,
            row if post_gain is None else post_gain,
            matrix if residual is None else residual,
            *packed,
            encodings=" ".join(encoding for encoding, _ in shapes),
            exact=exact,
            activation_bits=np.int64(activation_bits),
            eps=np.float32(eps),
        )
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused_linear(
    shapes: _Shapes, activation_bits: int, eps: float, inputs: _Inputs, packed: tuple[Array, ...]
) -> tuple[Array, ...]:
    return _call(shapes, False, activation_bits, eps, inputs, packed)


def _fused_linear_forward(
    shapes: _Shapes, activation_bits: int, eps: float, inputs: _Inputs, packed: tuple[Array, ...]
) -> tuple[Any, Any]:
    return _fused_linear(shapes, activation_bits, eps, inputs, packed), (inputs, packed)


def _fused_linear_backward(
    shapes: _Shapes, activation_bits: int, eps: float, saved: tuple[_Inputs, tuple[Array, ...]], dy: Any
) -> Any:
    inputs, packed = saved
    pullback: Any = jax.vjp(partial(_composed, shapes, eps, packed), inputs)[1]
    return *pullback(dy), tuple(np.zeros(weight.shape, jax.dtypes.float0) for weight in packed)


def _composed(shapes: _Shapes, eps: float, packed: tuple[Array, ...], inputs: _Inputs) -> tuple[Array, ...]:
    """Compute `fused_linear` from JAX operations and exact products."""
    x, gain, gate, residual, post_gain = inputs
    x = x if gate is None else jax.nn.gelu(gate, approximate=True) * x
    x = x if gain is None else _norm(x, gain, eps)
    results: list[Array] = []
    for (encoding, out), weight in zip(shapes, packed, strict=True):
        y: Any = _matmul(encoding, out, True, 8, x, weight)
        y = y if post_gain is None else _norm(y, post_gain, eps)
        results.append(y if residual is None else residual + y)
    return tuple(results)


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * (1.0 + gain)


_fused_linear.defvjp(_fused_linear_forward, _fused_linear_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _matmul(encoding: str, out_features: int, exact: bool, activation_bits: int, x: Array, packed: Array) -> Array:
    inputs = (x, None, None, None, None)
    return _call(((encoding, out_features),), exact, activation_bits, 0.0, inputs, (packed,))[0]


def _matmul_forward(
    encoding: str, out_features: int, exact: bool, activation_bits: int, x: Array, packed: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(encoding, out_features, exact, activation_bits, x, packed), (x, packed)


def _matmul_backward(
    encoding: str, out_features: int, exact: bool, activation_bits: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Any]:
    """Return `dy @ w`, decoding part of the weight at a time."""
    x, packed = saved
    width, part = x.shape[1], min(out_features, _DECODED_ROWS)
    steps = -(-out_features // part) if part else 0
    dy = jnp.pad(dy, ((0, 0), (0, steps * part - out_features)))

    def add(i: Array, dx: Array) -> Array:
        ids = jnp.minimum(i * part + jnp.arange(part, dtype=jnp.int32), out_features - 1)  # dy is zero past the end
        w = _rows(packed, ids, encoding, width)
        return dx + jax.lax.dynamic_slice_in_dim(dy, i * part, part, 1) @ w

    dx = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x))
    return dx, np.zeros(packed.shape, jax.dtypes.float0)


_DECODED_ROWS = 4096  # rows decoded to float32 at a time: 10 MB at a width of 640
_matmul.defvjp(_matmul_forward, _matmul_backward)
