"""Attention: multi-query, grouped or full; local or global; with or without caps and query/key norms."""

import functools

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import attention as kernel
from gemwright.model.branch import Branch
from gemwright.model.config import Attention
from gemwright.model.spec import AttentionWeights
from gemwright.model.state import Context, KVState, insert, slot_positions, together, visible
from gemwright.typing import Array, Bool, Float

MASKED = -2.3819763e38
"""Score of what must not be seen: finite in bfloat16, so that a row that sees nothing has no NaN."""

SCORES = 1 << 25
"""Scores that are held at a time, 128 MB: of a long chunk against a long past, only some queries at once."""

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def apply(
    spec: Attention,
    params: AttentionWeights,
    branch: Branch,
    x: Float[Array, "B T D"],
    context: Context,
    state: KVState | None,
) -> tuple[Float[Array, "B T D"], KVState | None]:
    """Mix tokens over time. With a state, earlier tokens are read from it and the new ones are stored in it."""
    q, k, v = branch.enter(x, params.q, params.k, params.v)
    gains = None
    if spec.qk_norm:
        assert params.q_norm is not None
        assert params.k_norm is not None
        gains = params.q_norm, params.k_norm
    rotation = ops.rotation(context.positions, int(spec.head_dim * spec.rope.fraction), spec.rope.base, spec.rope.scale)
    scale = spec.query_scalar**-0.5

    if state is not None and context.blocks is None and kernel.runs_natively(q, state.keys):
        mixed, (keys, values) = kernel.attend_to_ring(
            q,
            k,
            v,
            (state.keys, state.values),
            context.positions,
            context.lengths,
            rotation,
            gains,
            window=spec.window,
            scale=scale,
            cap=spec.soft_cap,
            eps=branch.eps,
        )
        state = KVState(keys, values)
    else:
        if gains is not None:
            q, k = ops.rms_norm(q, gains[0], branch.eps), ops.rms_norm(k, gains[1], branch.eps)
        keys, values, mask, state = _remembered(spec, ops.rotate(k, rotation), v, context, state)
        mixed = attend(ops.rotate(q, rotation) * scale, keys, values, mask, spec.soft_cap)
    return branch.leave(x, mixed, params.o, params.o_bias), state


def attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """softmax(cap(q k)) v in float32. Query head n reads key/value head n // (N / K). The cap precedes the mask."""
    B, T, N, _ = q.shape
    at_once = max(1, SCORES // (B * N * keys.shape[2]))
    if at_once >= T:
        return _attend(q, keys, values, mask, cap)

    def one(query: tuple[Array, Array]) -> Float[Array, "B N H"]:
        return _attend(query[0][:, None], keys, values, query[1][:, None], cap)[:, 0]

    return jax.lax.map(one, (q.swapaxes(0, 1), mask.swapaxes(0, 1)), batch_size=at_once).swapaxes(0, 1)


def _attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    cap: float | None,
) -> Float[Array, "B T N H"]:
    B, T, N, H = q.shape
    K = keys.shape[1]
    grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # B K G T H
    scores = _product("bkgth,bksh->bkgts", grouped, keys)
    scores = jnp.where(mask[:, None, None], ops.soft_cap(scores, cap), MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    mixed = _product("bkgts,bksh->bkgth", probabilities, values)
    return mixed.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _remembered(
    spec: Attention,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    context: Context,
    state: KVState | None,
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"], Bool[Array, "B T S"], KVState | None]:
    """All keys and values that the new tokens may see, who sees which, and the state after them."""
    positions = context.positions
    head_first = (0, 2, 1, 3)
    if state is None:
        mask = visible(positions, positions, spec.window)
        if context.segments is not None:
            mask &= context.segments[:, :, None] == context.segments[:, None, :]
        if context.blocks is not None:
            mask |= together(context.blocks, context.blocks)
        return k.transpose(head_first), v.transpose(head_first), mask, None

    after = insert(state, k, v, context)
    ring_is_window = spec.window is not None and state.slots >= spec.window
    if context.blocks is None and (k.shape[1] == 1 or not ring_is_window):
        # The ring after the insertion still holds all that any of these queries may see.
        length = context.lengths + jnp.sum(positions >= 0, axis=1)
        return (
            after.keys,
            after.values,
            visible(positions, slot_positions(state.slots, length), spec.window),
            after,
        )

    # The chunk overwrites what its own first queries must see: read the ring as it was, then the chunk. A block lies
    # within the chunk, and may be longer than the window, which then does not part it.
    before = slot_positions(state.slots, context.lengths)
    keys = jnp.concatenate([state.keys, k.transpose(head_first).astype(state.keys.dtype)], axis=2)
    values = jnp.concatenate([state.values, v.transpose(head_first).astype(state.values.dtype)], axis=2)
    mask = visible(positions, jnp.concatenate([before, positions], axis=1), spec.window)
    if context.blocks is not None:
        mask |= together(context.blocks, jnp.pad(context.blocks, ((0, 0), (state.slots, 0)), constant_values=-1))
    return keys, values, mask, after
