"""The real-gated linear recurrent unit of Griffin (arXiv:2402.19427, section 2.4).

The reference is jax.numpy, for every platform and with gradients. On a CPU there is a C++ kernel.
"""

import functools

import jax
import jax.numpy as jnp

from gemwright.kernels import choice, native
from gemwright.kernels.scan import linear_recurrence
from gemwright.typing import Array, Float, Int

SHARPNESS = 8.0
"""Decay rate with the gate fully open: log a = -8 softplus(decay)."""
STEEPEST = 1000.0
"""Maximum slope of the square root in `bounded_sqrt`."""
GATE_DTYPES = (jnp.float32, jnp.bfloat16)
"""Dtypes of the gates' weights that the kernel supports. It computes in float32."""

Gate = tuple[Float[Array, "blocks in out"], Float[Array, "blocks out"]]
"""Weight and bias of a block-diagonal linear map."""

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def rg_lru(
    u: Float[Array, "B T R"],
    positions: Int[Array, "B T"],
    initial: Float[Array, "B R"],
    input_gate: Gate,
    decay_gate: Gate,
    decay: Float[Array, " R"],
) -> Float[Array, "B T R"]:
    """Return the hidden state after each token, in float32.

    Args:
        u: Inputs.
        positions: 0 resets the hidden state; negative ones are padding, which leaves it unchanged.
        initial: Hidden state before the first token, float32.
        input_gate: Scales what is added to the hidden state.
        decay_gate: Scales how fast the hidden state decays.
        decay: Decay rate of each channel, before softplus.

    Raises:
        GemwrightError: The native kernel is requested and cannot run.
    """
    impl = choice.resolve("RG-LRU", _obstacle(input_gate[0], decay_gate[0]))
    operation = rg_lru_reference if impl == "reference" else functools.partial(_rg_lru, impl=impl)
    return operation(u, positions, initial, input_gate, decay_gate, decay)[0]


def rg_lru_reference(
    u: Float[Array, "B T R"],
    positions: Int[Array, "B T"],
    initial: Float[Array, "B R"],
    input_gate: Gate,
    decay_gate: Gate,
    decay: Float[Array, " R"],
) -> tuple[Float[Array, "B T R"]]:
    """Return the result of `rg_lru` by jax.numpy, in a tuple."""
    kept, added = find_steps(u, positions, input_gate, decay_gate, decay)
    return (linear_recurrence(kept, added, initial),)


def find_steps(
    u: Float[Array, "B T R"],
    positions: Int[Array, "B T"],
    input_gate: Gate,
    decay_gate: Gate,
    decay: Float[Array, " R"],
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Return the share of the hidden state that each token keeps, and what it adds; the arguments are of `rg_lru`."""
    open_input, open_decay = (jax.nn.sigmoid(_block_diagonal(u, *gate)) for gate in (input_gate, decay_gate))
    log_a = -SHARPNESS * open_decay * jax.nn.softplus(decay.astype(jnp.float32))
    start, padding = (positions == 0)[:, :, None], (positions < 0)[:, :, None]
    kept = jnp.where(start, 0.0, jnp.where(padding, 1.0, jnp.exp(log_a)))
    scale = jnp.where(start, 1.0, bounded_sqrt(1.0 - jnp.exp(2.0 * log_a)))
    return kept, jnp.where(padding, 0.0, scale * open_input * u.astype(jnp.float32))


def _native(
    u: Array, positions: Array, initial: Array, input_gate: Gate, decay_gate: Gate, decay: Array
) -> tuple[Array]:
    gates = [(weight, bias.astype(jnp.float32)) for weight, bias in (input_gate, decay_gate)]
    run = native.library().rg_lru
    wide = u.astype(jnp.float32)
    return (run(wide, positions.astype(jnp.int32), initial, *gates, decay.astype(jnp.float32)),)


_rg_lru = choice.PlatformOperation("RG-LRU", reference=rg_lru_reference, cpu=_native, like=(0,), dtype=jnp.float32)


def _obstacle(input_gate: Array, decay_gate: Array) -> str | None:
    """Return the reason why the kernel does not take these gates, or None."""
    if input_gate.dtype == decay_gate.dtype and input_gate.dtype in GATE_DTYPES:
        return None
    return f"its gates are {input_gate.dtype} and {decay_gate.dtype}, not both float32 or both bfloat16"


def _block_diagonal(
    u: Float[Array, "B T R"], blocks: Float[Array, "blocks in out"], bias: Float[Array, "blocks out"]
) -> Float[Array, "B T R"]:
    """Return a linear map of each block of channels, in float32."""
    # The blocks come first: XLA's CPU backend multiplies bfloat16 only if the batch axes lead.
    parts = u.reshape(-1, *blocks.shape[:2]).swapaxes(0, 1)
    mapped = _product("hni,hij->hnj", parts, blocks).swapaxes(0, 1)
    return (mapped + bias.astype(jnp.float32)).reshape(u.shape)


@jax.custom_jvp
def bounded_sqrt(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return the square root; its derivative, infinite at 0, is at most 1000."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return bounded_sqrt(x), 0.5 * dx * jax.lax.rsqrt(jnp.maximum(x, 0.25 / STEEPEST**2))
