"""The real-gated linear recurrent unit by the C++ kernel of gemwright-native, where it can run.

`model/recurrent.py` is the reference: it computes the same in jax.numpy, on every device and with gradients.
"""

import importlib

import jax.numpy as jnp

from gemwright.kernels.native import native_enabled
from gemwright.typing import Array, Float, Int

GATES = (jnp.float32, jnp.bfloat16)
"""What the kernel reads a gate's weights in. It computes in float32."""


def supports(input_gate: Array, decay_gate: Array) -> bool:
    """Whether the kernel takes these gates: both of one of `GATES`, on a CPU with gemwright-native."""
    return input_gate.dtype == decay_gate.dtype and input_gate.dtype in GATES and native_enabled()


def rg_lru(
    u: Float[Array, "B T R"],
    positions: Int[Array, "B T"],
    initial: Float[Array, "B R"],
    input_gate: tuple[Float[Array, "blocks in out"], Float[Array, "blocks out"]],
    decay_gate: tuple[Float[Array, "blocks in out"], Float[Array, "blocks out"]],
    decay: Float[Array, " R"],
) -> Float[Array, "B T R"]:
    """The hidden state after each token, in float32; see `gemwright_native.rg_lru`. There is no gradient.

    Args:
        u: inputs.
        positions: 0 starts anew, negative ones are padding.
        initial: the hidden state before the first token.
        input_gate: weight and bias of what is let in.
        decay_gate: weight and bias of what is kept.
        decay: how fast each channel forgets.
    """
    native = importlib.import_module("gemwright_native")
    wide = jnp.float32
    gates = [(weight, bias.astype(wide)) for weight, bias in (input_gate, decay_gate)]
    return native.rg_lru(u.astype(wide), positions.astype(jnp.int32), initial, *gates, decay.astype(wide))
