"""Attention: multi-query, grouped or full; local or global; with or without soft caps and query/key norms."""

from gemwright import ops
from gemwright.kernels import attention as kernel
from gemwright.kernels.self_attention import attend_uncached
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model.config import Attention
from gemwright.model.params import AttentionWeights
from gemwright.model.state import KVCache, Positions
from gemwright.typing import Array, Float


def apply(
    config: Attention,
    params: AttentionWeights,
    norms: Norms,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: KVCache | None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Add attention to x. With a state, attend to its tokens too, and store the new ones in the state returned."""
    q, k, v = norm_project(x, norms, params.q, params.k, params.v)
    gains = None
    if config.qk_norm:
        assert params.q_norm is not None
        assert params.k_norm is not None
        gains = params.q_norm, params.k_norm
    indices, groups = positions.indices, positions.groups
    rotation = ops.rotation(indices, int(config.head_dim * config.rope.fraction), config.rope.base, config.rope.scale)
    window, scale, cap = config.window, config.query_scalar**-0.5, config.soft_cap
    if state is None:
        mixed = attend_uncached(
            q, k, v, indices, rotation, gains, positions.segments, groups,
            window=window, scale=scale, cap=cap, eps=norms.eps,
        )  # fmt: skip
    else:
        mixed, (keys, values) = kernel.attend_cached(
            q, k, v, (state.keys, state.values), indices, positions.lengths, rotation, gains, groups,
            window=window, scale=scale, cap=cap, eps=norms.eps,
        )  # fmt: skip
        state = KVCache(keys, values)
    return project_norm_add(x, mixed, params.o, params.o_bias, norms), state
