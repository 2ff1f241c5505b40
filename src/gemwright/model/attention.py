"""Attention: multi-query, grouped or full; local or global; with or without caps and query/key norms."""

import functools

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import attention as kernel
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model.config import Attention
from gemwright.model.params import AttentionWeights
from gemwright.model.state import KVCache, Positions, insert, same_group, slot_positions, visible
from gemwright.typing import Array, Bool, Float

MASKED = -2.3819763e38
"""Score of what must not be seen: finite in bfloat16, so that a row that sees nothing has no NaN."""

SCORES = 1 << 25
"""Scores that are held at a time, 128 MB: of a long chunk against a long past, only some queries at once."""

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def apply(
    config: Attention,
    params: AttentionWeights,
    norms: Norms,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: KVCache | None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Mix tokens over time. With a state, earlier tokens are read from it and the new ones are stored in it."""
    q, k, v = norm_project(x, norms, params.q, params.k, params.v)
    gains = None
    if config.qk_norm:
        assert params.q_norm is not None
        assert params.k_norm is not None
        gains = params.q_norm, params.k_norm
    rotation = ops.rotation(
        positions.indices, int(config.head_dim * config.rope.fraction), config.rope.base, config.rope.scale
    )
    scale = config.query_scalar**-0.5

    if state is not None and positions.groups is None and kernel.supports(q, state.keys):
        mixed, (keys, values) = kernel.attend_cached(
            q,
            k,
            v,
            (state.keys, state.values),
            positions.indices,
            positions.lengths,
            rotation,
            gains,
            window=config.window,
            scale=scale,
            cap=config.soft_cap,
            eps=norms.eps,
        )
        state = KVCache(keys, values)
    else:
        if gains is not None:
            q, k = ops.rms_norm(q, gains[0], norms.eps), ops.rms_norm(k, gains[1], norms.eps)
        keys, values, mask, state = _cached_keys(config, ops.rotate(k, rotation), v, positions, state)
        mixed = attend(ops.rotate(q, rotation) * scale, keys, values, mask, config.soft_cap)
    return project_norm_add(x, mixed, params.o, params.o_bias, norms), state


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


def _cached_keys(
    config: Attention,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Positions,
    state: KVCache | None,
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"], Bool[Array, "B T S"], KVCache | None]:
    """All keys and values that the new tokens may see, who sees which, and the state after them."""
    indices = positions.indices
    head_first = (0, 2, 1, 3)
    if state is None:
        mask = visible(indices, indices, config.window)
        if positions.segments is not None:
            mask &= positions.segments[:, :, None] == positions.segments[:, None, :]
        if positions.groups is not None:
            mask |= same_group(positions.groups, positions.groups)
        return k.transpose(head_first), v.transpose(head_first), mask, None

    after = insert(state, k, v, positions)
    ring_is_window = config.window is not None and state.slots >= config.window
    if positions.groups is None and (k.shape[1] == 1 or not ring_is_window):
        # The ring after the insertion still holds all that any of these queries may see.
        length = positions.lengths + jnp.sum(indices >= 0, axis=1)
        return (
            after.keys,
            after.values,
            visible(indices, slot_positions(state.slots, length), config.window),
            after,
        )

    # The chunk overwrites what its own first queries must see: read the ring as it was, then the chunk. A block lies
    # within the chunk, and may be longer than the window, which then does not part it.
    before = slot_positions(state.slots, positions.lengths)
    keys = jnp.concatenate([state.keys, k.transpose(head_first).astype(state.keys.dtype)], axis=2)
    values = jnp.concatenate([state.values, v.transpose(head_first).astype(state.values.dtype)], axis=2)
    mask = visible(indices, jnp.concatenate([before, indices], axis=1), config.window)
    if positions.groups is not None:
        mask |= same_group(positions.groups, jnp.pad(positions.groups, ((0, 0), (state.slots, 0)), constant_values=-1))
    return keys, values, mask, after
