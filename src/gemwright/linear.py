"""Linear maps fused with the norm before them, or with the gate before and the norm and sum after them.

A residual branch begins with a norm and linear maps, and ends with a linear map, a norm and a sum. Most weights are in
these two groups, so each is one native kernel for weights in their stored format.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemwright import ops, weights
from gemwright.kernels import native
from gemwright.kernels.choice import require_cpu
from gemwright.typing import Array, Float
from gemwright.weights import PackedTensor, Weight

PRODUCT = "product"
"""Name of the results of linear maps, for rematerialization policies."""


class Norms(NamedTuple):
    """The RMS norms of one residual branch.

    Attributes:
        gain: [D] gain of the norm before the branch; None for no norm.
        post_gain: [D] gain of the norm after the branch; None for no norm.
        eps: Epsilon of both norms.
    """

    gain: Array | None
    post_gain: Array | None
    eps: float


def norm_project(x: Float[Array, "B T D"], norms: Norms, *maps: Weight) -> tuple[Array, ...]:
    """Return linear maps of norm(x): a weight [*out, D] gives [B, T, *out]. Without a gain, x is not normalized."""
    if can_fuse(x, maps):
        return tuple(named(y) for y in fused_linear(x, maps, gain=norms.gain, eps=norms.eps))
    if norms.gain is not None:
        x = ops.rms_norm(x, norms.gain, norms.eps)
    return tuple(named(weights.matmul(x, weight)) for weight in maps)


def project_norm_add(
    x: Float[Array, "B T D"],
    inner: Float[Array, "B T *in"],
    weight: Weight,
    bias: Float[Array, " D"] | None,
    norms: Norms,
    *,
    gate: Float[Array, "B T *in"] | None = None,
) -> Float[Array, "B T D"]:
    """Return x + norm(weight inner + bias); `inner` is first multiplied by gelu(gate), if given."""
    if bias is None and can_fuse(x, (weight,)):
        return fused_linear(inner, (weight,), gate=gate, residual=x, post_gain=norms.post_gain, eps=norms.eps)[0]
    if gate is not None:
        inner = ops.gelu(gate) * inner
    out = ops.biased(named(weights.matmul(inner, weight, inputs=inner.ndim - 2)), bias)
    return x + (out if norms.post_gain is None else ops.rms_norm(out, norms.post_gain, norms.eps))


def named(product: Array) -> Array:
    """Name the result of a linear map `PRODUCT`."""
    return checkpoint_name(product, PRODUCT)


def can_fuse(x: Array, maps: Sequence[object]) -> bool:
    """Return whether `fused_linear` supports these: float32 activations and packed weights."""
    return x.dtype == jnp.float32 and all(isinstance(weight, PackedTensor) for weight in maps)


def fused_linear(
    x: Array,
    maps: Sequence[Any],
    *,
    gain: Array | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    post_gain: Array | None = None,
    eps: float,
) -> tuple[Array, ...]:
    """Return linear maps of one input [B, T, *in] by one kernel; see `gemwright_native.fused_linear`."""

    def matrix(array: Array | None) -> Array | None:
        return None if array is None else array.astype(jnp.float32).reshape(-1, math.prod(array.shape[2:]))

    def row(array: Array | None) -> Array | None:
        return None if array is None else array.astype(jnp.float32)

    inputs = x.ndim - 2
    results = native.library().fused_linear(
        matrix(x),
        [(require_cpu(weight.packed), weight.encoding, math.prod(weight.shape[:-inputs])) for weight in maps],
        gain=row(gain),
        gate=matrix(gate),
        residual=matrix(residual),
        post_gain=row(post_gain),
        eps=eps,
        activation_bits=max(weight.activation_bits for weight in maps),
    )
    return tuple(y.reshape(*x.shape[:2], *weight.shape[:-inputs]) for y, weight in zip(results, maps, strict=True))
