"""Griffin's recurrent block (arXiv:2402.19427): a short convolution and an RG-LRU, times a gate."""

import functools

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import rg_lru as kernel
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model.config import Recurrent
from gemwright.model.params import RecurrentWeights
from gemwright.model.state import Positions, RecurrentState
from gemwright.typing import Array, Float, Int


def apply(
    config: Recurrent,
    params: RecurrentWeights,
    norms: Norms,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: RecurrentState | None,
) -> tuple[Float[Array, "B T D"], RecurrentState | None]:
    """Add the block's result to x. With a state, continue from it and return the one after the last token.

    A token at position 0 starts from an empty state, and padding leaves the state unchanged. The tokens of a sequence
    are contiguous, with padding before or after them.
    """
    inputs, gate = norm_project(x, norms, params.x, params.y)
    inputs, gate = ops.biased(inputs, params.x_bias), ops.biased(gate, params.y_bias)
    line = _line_up(inputs, positions.indices, None if state is None else state.inputs, config.conv_width - 1)
    u = convolve(params, line, positions.indices)
    gates = (params.input_gate, params.input_gate_bias), (params.decay_gate, params.decay_gate_bias)
    if state is None:
        initial = jnp.zeros_like(u[:, 0], jnp.float32)
        (h,) = kernel.rg_lru_reference(u, positions.indices, initial, *gates, params.decay)
    else:
        h = kernel.rg_lru(u, positions.indices, state.hidden, *gates, params.decay)
    out = project_norm_add(x, h.astype(x.dtype), params.out, params.out_bias, norms, gate=gate)
    if state is None:
        return out, None
    last = _last_inputs(line, positions.indices, config.conv_width - 1)
    return out, RecurrentState(h[:, -1], last.astype(state.inputs.dtype))


def _line_up(
    inputs: Float[Array, "B T R"], positions: Int[Array, "B T"], earlier: Float[Array, "B C R"] | None, count: int
) -> Float[Array, "B L R"]:
    """Return `count` earlier inputs, or zeros, followed by the inputs.

    If a sequence begins with padding, the earlier inputs replace the end of it, right before the first token.
    """
    line = jnp.pad(inputs, ((0, 0), (count, 0), (0, 0)))
    if earlier is None:
        return line
    earlier = earlier.astype(inputs.dtype)
    if inputs.shape[1] == 1:
        return jnp.concatenate([earlier, inputs], axis=1)
    first = jnp.argmax(positions >= 0, axis=1)
    return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(line, earlier, first)


def _last_inputs(line: Float[Array, "B L R"], positions: Int[Array, "B T"], count: int) -> Float[Array, "B C R"]:
    """Return the inputs of the last `count` tokens of each sequence, including those of earlier calls."""
    valid = positions >= 0
    start = jnp.argmax(valid, axis=1) + jnp.sum(valid, axis=1)
    return jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=count))(line, start)


def convolve(
    params: RecurrentWeights, line: Float[Array, "B L R"], positions: Int[Array, "B T"]
) -> Float[Array, "B T R"]:
    """Return each channel's weighted sum of the token and the earlier ones of its document, plus a bias."""
    taps = params.conv.astype(jnp.float32)
    back = taps.shape[0] - 1
    length = positions.shape[1]
    total = params.conv_bias.astype(jnp.float32)
    for shift in range(back + 1):
        start = back - shift
        reached = line[:, start : start + length].astype(jnp.float32)
        total += jnp.where((positions >= shift)[:, :, None], reached, 0.0) * taps[start]
    return total.astype(line.dtype)
