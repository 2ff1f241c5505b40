"""Products and row look-ups as JAX operations, with their gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation
from gemwright_native._packing import LANES, SPLIT, packed_bytes

_Shapes: TypeAlias = tuple[tuple[str, int], ...]  # of each weight: encoding, rows
_Inputs: TypeAlias = tuple[Array, Array | None, Array | None, Array | None, Array | None]


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
            `x` that is not finite makes its row of the result NaN. On a processor with AMX more than 64 rows, and the
            weight, are rounded to bfloat16 and summed in float32, `precise` or not.
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
    call = operation("gemwright_top", results)
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


def _check_packed(packed: Array, size: int, what: str) -> None:
    if packed.dtype != jnp.uint8 or packed.shape != (size,):
        raise ValueError(
            f"packed must be uint8 [{size}] for {what}, and it is {packed.dtype} {list(packed.shape)}; "
            "make it with pack()."
        )


def _rows(packed: Array, ids: Array, encoding: str, width: int) -> Array:
    result = jax.ShapeDtypeStruct((ids.shape[0], width), jnp.float32)
    return operation("gemwright_rows", result)(packed, ids, encoding=encoding)


def _call(
    shapes: _Shapes, exact: bool, precise: bool, eps: float, inputs: _Inputs, packed: Sequence[Array]
) -> tuple[Array, ...]:
    x, gain, gate, residual, post_gain = inputs
    results = [jax.ShapeDtypeStruct((x.shape[0], out), jnp.float32) for _, out in shapes]
    row, matrix = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)  # jnp.zeros is traced, at length
    return tuple(
        operation("gemwright_products", results)(
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
