"""Attention to a ring of keys and values as a JAX operation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation
from gemwright_native._packing import LANES


def attention(
    q: Array,
    k: Array,
    v: Array,
    ring: tuple[Array, Array],
    positions: Array,
    lengths: Array,
    rotation: Array,
    gains: tuple[Array, Array] | None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Array, tuple[Array, Array]]:
    """Attends from new tokens to a ring of earlier ones and to each other, and stores them in the ring.

    Queries and keys are normalised where there are gains, x / rms(x) * (1 + gain), then rotated. A query at position
    p sees positions p - window + 1 to p; a ring of S slots holds those from `lengths` - S on, that of p in slot p % S.
    The ring is changed in place where XLA lets go of it. There is no gradient.

    Args:
        q: float32 `[B, T, N, H]`, as projected; H is a multiple of 16.
        k: float32 `[B, T, K, H]`; query head n reads head n // (N / K).
        v: float32 `[B, T, K, H]`.
        ring: Keys and values, float32 or bfloat16 `[B, K, S, H]`; new ones are rounded as it is before any query meets
            them, and arithmetic is float32.
        positions: int32 `[B, T]`, in each row `lengths`, `lengths` + 1 and so on; -1 for padding, which is neither
            stored nor seen, and whose result is zero.
        lengths: int32 `[B]`, tokens of each row before these.
        rotation: float32 `[B, T, 2, R / 2]`, cosines and sines of the angles of the first R values of a head.
        gains: Of queries' and keys' norms, float32 `[H]`.
        window: None sees everything before.
        scale: Scores are multiplied by it.
        cap: Scores are squashed to within it by tanh.
        eps: Of the norms.

    Returns:
        float32 `[B, T, N, H]`, and the ring after these tokens.

    Raises:
        ValueError: A dtype or shape is wrong.
    """
    B, T, N, H = q.shape
    K, S = ring[0].shape[1:3] if ring[0].ndim == 4 else (0, 0)
    stored = jnp.bfloat16 if ring[0].dtype == jnp.bfloat16 else jnp.float32
    none = jnp.zeros(0, jnp.float32)
    q_gain, k_gain = (none, none) if gains is None else gains
    expected = {
        "q": (q, jnp.float32, (B, T, N, H)),
        "k": (k, jnp.float32, (B, T, K, H)),
        "v": (v, jnp.float32, (B, T, K, H)),
        "the ring's keys": (ring[0], stored, (B, K, S, H)),
        "the ring's values": (ring[1], stored, (B, K, S, H)),
        "positions": (positions, jnp.int32, (B, T)),
        "lengths": (lengths, jnp.int32, (B,)),
        "rotation": (rotation, jnp.float32, (B, T, 2, rotation.shape[-1])),
        "the queries' gain": (q_gain, jnp.float32, (0 if gains is None else H,)),
        "the keys' gain": (k_gain, jnp.float32, (0 if gains is None else H,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} must be {np.dtype(dtype)} {list(shape)}, and is {array.dtype} {list(array.shape)}."
            )
    if H % LANES or K < 1 or N % K or S < 1 or 2 * rotation.shape[-1] > H or (window is not None and window < 1):
        raise ValueError(f"{N} heads of {H} over {K}, a ring of {S} and a window of {window} do not fit together.")
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *ring)]
    call = operation(f"gemwright_attention_{ring[0].dtype}", results, input_output_aliases={3: 1, 4: 2})
    y, keys, values = call(
        q,
        k,
        v,
        *ring,
        positions,
        lengths,
        rotation,
        q_gain,
        k_gain,
        window=np.int64(window or 2**62),
        scale=np.float32(scale),
        cap=np.float32(cap or 0.0),
        eps=np.float32(eps),
    )
    return y, (keys, values)
