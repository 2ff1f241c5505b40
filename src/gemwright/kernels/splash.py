"""Causal attention on TPUs by JAX's splash attention, a flash kernel in Pallas.

It never holds a full array of scores, skips blocks outside the window, and has soft caps, grouped heads and segments:
https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gemwright.typing import Array, Float, Int

LANES = 128
"""Lengths and head widths are multiples of this."""
BLOCK = 512
"""Maximum number of queries and of keys of a block; 512 is fast on all generations and fits their vector memory."""


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    part: Int[Array, ""],
    *,
    window: int | None,
    cap: float | None,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attend to equal and earlier keys of the same segment.

    Args:
        q: Scaled queries; T is a multiple of `LANES`, as is H.
        k: Keys.
        v: Values.
        q_segments: Segment of each query; a query's own key has the same.
        k_segments: Segment of each key.
        part: Which of the S / T equal parts of the sequence the queries are.
        window: Tokens that a query attends to, itself included; None for all earlier ones.
        cap: Soft cap of the scores.
        interpret: Whether to interpret the kernel, on any platform, slowly.

    Returns:
        The mixed values, and the logarithms of the sums of the exponentiated scores, in float32.
    """
    kernel = _make(q, k, part, window, cap, interpret=interpret, save_residuals=True)

    def one(q: Array, k: Array, v: Array, *segments: Array) -> Any:
        return kernel(q, k, v, _implementation().SegmentIds(*segments))

    with _precision(q):
        mixed, (sums,) = jax.vmap(one)(*map(_swap, (q, k, v)), q_segments, k_segments)
    return _swap(mixed), sums


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    part: Int[Array, ""],
    mixed: Float[Array, "B T N H"],
    sums: Float[Array, "B N T"],
    cotangent: Float[Array, "B T N H"],
    *,
    window: int | None,
    cap: float | None,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Return the gradients of queries, keys and values from the results of `forward` and the cotangent of the first."""
    kernel = _make(q, k, part, window, cap, interpret=interpret, save_residuals=False)
    # The public function computes its forward pass again, because it cannot be given one.
    differentiate: Callable[..., Any] = _implementation()._splash_attention_bwd
    options = {**kernel.kwargs, "residual_checkpoint_name": None}

    def one(q: Array, k: Array, v: Array, q_segments: Array, k_segments: Array, *results: Array) -> Any:
        *known, cotangent = results
        segments = _implementation().SegmentIds(q_segments, k_segments)
        residuals = (q, k, v, segments, None, *known, kernel.dq_mask_info, kernel.dkv_mask_info)
        return differentiate(**options, res=residuals, do=cotangent)[3:6]

    arrays = *map(_swap, (q, k, v)), q_segments, k_segments, _swap(mixed), sums, _swap(cotangent)
    with _precision(q):
        gradients = jax.vmap(one)(*arrays)
    return tuple(map(_swap, gradients))  # type: ignore[return-value]


def _make(q: Array, k: Array, part: Array, window: int | None, cap: float | None, **options: Any) -> Any:
    """Return the kernel for one part of the queries."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, (_, keys, _, _) = q.shape[1], k.shape
    block = math.gcd(length, BLOCK)
    sizes = _implementation().BlockSizes(*(block,) * 8)
    mask = masks.LocalMask((keys, keys), (None if window is None else window - 1, 0), offset=0)
    parts = keys // length
    kernel = _implementation().make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=sizes,
        attn_logits_soft_cap=cap,
        head_shards=1,
        q_seq_shards=parts,
        **options,
    )
    if parts == 1:
        return kernel
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return type(kernel)(*(_take(info, part, parts) for info in infos), **kernel.kwargs)


def _take(info: Any, part: Array, parts: int) -> Any:
    """Return what the kernel is told of the blocks of one part of the queries."""

    def take(array: Array, axis: int) -> Array:
        size = array.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(array, part * size, size, axis)

    return info._replace(
        data_next=take(info.data_next, 1), block_mask=take(info.block_mask, 1), q_sequence=take(info.q_sequence, 0)
    )


def _precision(q: Array) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products of float32 are not rounded to bfloat16."""
    return jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else contextlib.nullcontext()


def _swap(x: Array) -> Array:
    return x.swapaxes(1, 2)


@functools.cache
def _implementation() -> Any:
    """Import the kernel, which takes a second, only where a program has it."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel
