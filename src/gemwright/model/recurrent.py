"""Griffin's recurrent block (arXiv:2402.19427): a short convolution and an RG-LRU, beside a gating branch."""

import functools

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import rg_lru as kernel
from gemwright.kernels.scan import linear_recurrence
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model.config import Recurrent
from gemwright.model.params import RecurrentWeights
from gemwright.model.state import Positions, RecurrentState
from gemwright.typing import Array, Float, Int

SHARPNESS = 8.0
"""The most that one step forgets: log a = -8 softplus(decay), with the gate wide open."""
STEEPEST = 1000.0
"""The largest slope of the square root in `bounded_sqrt`."""

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def apply(
    config: Recurrent,
    params: RecurrentWeights,
    norms: Norms,
    x: Float[Array, "B T D"],
    positions: Positions,
    state: RecurrentState | None,
) -> tuple[Float[Array, "B T D"], RecurrentState | None]:
    """Mix tokens over time. With a state, it is continued and the one after the last token is returned.

    A token at position 0 remembers nothing, whatever stands before it, and padding is not remembered. The tokens of a
    row stand together, its padding before or after them.
    """
    inputs, gate = norm_project(x, norms, params.x, params.y)
    inputs, gate = ops.biased(inputs, params.x_bias), ops.biased(gate, params.y_bias)
    line = _line_up(inputs, positions.indices, None if state is None else state.inputs, config.conv_width - 1)
    u = _convolve(params, line, positions.indices)
    # The kernel has no gradient; without a state, as in training, the reference runs.
    if state is not None and kernel.supports(params.input_gate, params.decay_gate):
        gates = (params.input_gate, params.input_gate_bias), (params.decay_gate, params.decay_gate_bias)
        h = kernel.rg_lru(u, positions.indices, state.hidden, *gates, params.decay)
    else:
        initial = jnp.zeros_like(u[:, 0], jnp.float32) if state is None else state.hidden
        h = _rg_lru(params, u, positions.indices, initial)
    out = project_norm_add(x, h.astype(x.dtype), params.out, params.out_bias, norms, gate=gate)
    if state is None:
        return out, None
    last = _last_inputs(line, positions.indices, config.conv_width - 1)
    return out, RecurrentState(h[:, -1], last.astype(state.inputs.dtype))


@jax.custom_jvp
def bounded_sqrt(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The square root; its derivative, infinite at 0, stays at 1000 from there to where it falls below."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return bounded_sqrt(x), 0.5 * dx * jax.lax.rsqrt(jnp.maximum(x, 0.25 / STEEPEST**2))


def _line_up(
    inputs: Float[Array, "B T R"], positions: Int[Array, "B T"], earlier: Float[Array, "B C R"] | None, count: int
) -> Float[Array, "B L R"]:
    """`count` earlier inputs, or as many zeros, and then the inputs.

    Where a row begins with padding, the earlier inputs take its last places, right before the first token.
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
    """The inputs of the last `count` tokens of each row, those of earlier calls among them."""
    valid = positions >= 0
    start = jnp.argmax(valid, axis=1) + jnp.sum(valid, axis=1)
    return jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=count))(line, start)


def _convolve(
    params: RecurrentWeights, line: Float[Array, "B L R"], positions: Int[Array, "B T"]
) -> Float[Array, "B T R"]:
    """Each channel's weighted sum of the token and those before it in its document, plus a bias."""
    taps = params.conv.astype(jnp.float32)
    back = taps.shape[0] - 1
    length = positions.shape[1]
    total = params.conv_bias.astype(jnp.float32)
    for shift in range(back + 1):
        start = back - shift
        reached = line[:, start : start + length].astype(jnp.float32)
        total += jnp.where((positions >= shift)[:, :, None], reached, 0.0) * taps[start]
    return total.astype(line.dtype)


def _rg_lru(
    params: RecurrentWeights, u: Float[Array, "B T R"], positions: Int[Array, "B T"], initial: Float[Array, "B R"]
) -> Float[Array, "B T R"]:
    """The real-gated linear recurrent unit, in float32: what is kept of h, and what is let in, depend on the token."""
    input_gate = jax.nn.sigmoid(_block_diagonal(u, params.input_gate, params.input_gate_bias))
    decay_gate = jax.nn.sigmoid(_block_diagonal(u, params.decay_gate, params.decay_gate_bias))
    log_a = -SHARPNESS * decay_gate * jax.nn.softplus(params.decay.astype(jnp.float32))
    start, padding = (positions == 0)[:, :, None], (positions < 0)[:, :, None]
    kept = jnp.where(start, 0.0, jnp.where(padding, 1.0, jnp.exp(log_a)))
    scale = jnp.where(start, 1.0, bounded_sqrt(1.0 - jnp.exp(2.0 * log_a)))
    added = jnp.where(padding, 0.0, scale * input_gate * u.astype(jnp.float32))
    return linear_recurrence(kept, added, initial)


def _block_diagonal(
    u: Float[Array, "B T R"], blocks: Float[Array, "blocks in out"], bias: Float[Array, "blocks out"]
) -> Float[Array, "B T R"]:
    """A linear map in which each block of channels sees itself only; in float32."""
    # The blocks go first: XLA's CPU backend multiplies bfloat16 only if the batch axes lead.
    parts = u.reshape(-1, *blocks.shape[:2]).swapaxes(0, 1)
    mapped = _product("hni,hij->hnj", parts, blocks).swapaxes(0, 1)
    return (mapped + bias.astype(jnp.float32)).reshape(u.shape)
