"""Attention with a rotating KV cache as a JAX operation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation
from gemwright_native._repack import LANES


def attention(
    q: Array,
    k: Array,
    v: Array,
    cache: tuple[Array, Array],
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
    """Attend from new tokens to the cached ones and to each other, and store the new ones in the cache.

    Queries and keys are normalized, x / rms(x) * (1 + gain), then rotated. A query at position p attends to positions
    p - window + 1 to p. The cache rotates: its S cells hold the positions from `lengths` - S on, position p in cell
    p % S. It is updated in place if XLA donates it. There is no gradient.

    Args:
        q: float32 `[B, T, N, H]`, as projected; H is a multiple of 16.
        k: float32 `[B, T, K, H]`; query head n uses key/value head n // (N / K).
        v: float32 `[B, T, K, H]`.
        cache: Keys and values, float32 or bfloat16 `[B, K, S, H]`. New ones are rounded to this dtype before any query
            attends to them; arithmetic is float32.
        positions: int32 `[B, T]`: in each sequence `lengths`, `lengths` + 1 and so on; -1 for padding, which is neither
            stored nor attended to, and whose result is zero.
        lengths: int32 `[B]`, tokens of each sequence before these.
        rotation: float32 `[B, T, 2, R / 2]`, cosines and sines of the angles of the first R values of a head.
        gains: Gains of the norms of queries and keys, float32 `[H]`; None for no norms.
        window: Positions that a query attends to, itself included; None for all earlier ones.
        scale: Factor of the scores.
        cap: Soft cap of the scores, cap * tanh(score / cap); None for no cap.
        eps: Epsilon of the norms.

    Returns:
        float32 `[B, T, N, H]`, and the updated cache.

    Raises:
        ValueError: A dtype or shape is wrong.
    """
    B, T, N, H = q.shape
    K, S = cache[0].shape[1:3] if cache[0].ndim == 4 else (0, 0)
    stored = jnp.bfloat16 if cache[0].dtype == jnp.bfloat16 else jnp.float32
    none = jnp.zeros(0, jnp.float32)
    q_gain, k_gain = (none, none) if gains is None else gains
    expected = {
        "q": (q, jnp.float32, (B, T, N, H)),
        "k": (k, jnp.float32, (B, T, K, H)),
        "v": (v, jnp.float32, (B, T, K, H)),
        "the cache's keys": (cache[0], stored, (B, K, S, H)),
        "the cache's values": (cache[1], stored, (B, K, S, H)),
        "positions": (positions, jnp.int32, (B, T)),
        "lengths": (lengths, jnp.int32, (B,)),
        "rotation": (rotation, jnp.float32, (B, T, 2, rotation.shape[-1])),
        "the queries' gain": (q_gain, jnp.float32, (0 if gains is None else H,)),
        "the keys' gain": (k_gain, jnp.float32, (0 if gains is None else H,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}.")
    if H % LANES or K < 1 or N % K or S < 1 or 2 * rotation.shape[-1] > H or (window is not None and window < 1):
        raise ValueError(
            f"the sizes are inconsistent: {N} query heads, {K} key/value heads of width {H}, rotation of "
            f"{2 * rotation.shape[-1]} values, {S} cache cells, window {window}."
        )
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *cache)]
    call = operation(f"gemwright_attention_{cache[0].dtype}", results, input_output_aliases={3: 1, 4: 2})
    y, keys, values = call(
        q,
        k,
        v,
        *cache,
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
