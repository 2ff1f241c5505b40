"""The recurrent unit of Griffin (arXiv:2402.19427, section 2.4) as a JAX operation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation


def rg_lru(
    u: Array,
    positions: Array,
    initial: Array,
    input_gate: tuple[Array, Array],
    decay_gate: tuple[Array, Array],
    decay: Array,
) -> Array:
    """Run the real-gated linear recurrent unit over new tokens; there is no gradient.

    A gate is `sigmoid(u @ weight + bias)` with a block-diagonal weight. With
    `a = exp(-8 softplus(decay) decay_gate)`, `h = a h + sqrt(1 - a^2) input_gate u`; at position 0 `h = input_gate u`.

    Args:
        u: float32 `[B, T, R]`.
        positions: int32 `[B, T]`; 0 resets h, and a negative one is padding, which leaves h unchanged.
        initial: float32 `[B, R]`, h before the first token.
        input_gate: Weight `[blocks, R / blocks in, R / blocks out]`, float32 or bfloat16, and bias, float32
            `[blocks, R / blocks]`.
        decay_gate: Weight and bias, with the shapes and dtypes of `input_gate`.
        decay: float32 `[R]`.

    Returns:
        h after each token, float32 `[B, T, R]`.

    Raises:
        ValueError: A dtype or shape is wrong.
    """
    B, T, R = u.shape if u.ndim == 3 else (0, 0, 0)
    blocks = max(input_gate[0].shape[0], 1)
    width = R // blocks
    stored = jnp.bfloat16 if input_gate[0].dtype == jnp.bfloat16 else jnp.float32
    expected = {
        "u": (u, jnp.float32, (B, T, blocks * width)),
        "positions": (positions, jnp.int32, (B, T)),
        "initial": (initial, jnp.float32, (B, R)),
        "the input gate": (input_gate[0], stored, (blocks, width, width)),
        "the input gate's bias": (input_gate[1], jnp.float32, (blocks, width)),
        "the decay gate": (decay_gate[0], stored, (blocks, width, width)),
        "the decay gate's bias": (decay_gate[1], jnp.float32, (blocks, width)),
        "decay": (decay, jnp.float32, (R,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}.")
    call = operation(f"gemwright_rg_lru_{input_gate[0].dtype}", jax.ShapeDtypeStruct(u.shape, jnp.float32))
    return call(u, positions, initial, *input_gate, *decay_gate, decay)
