"""Attention from new tokens to a ring of earlier ones, by the C++ kernel of gemwright-native where it can run.

`model/attention.py` is the reference: it computes the same in jax.numpy, on every device and with gradients.
"""

import importlib

import jax.numpy as jnp

from gemwright.kernels.native import native_enabled
from gemwright.typing import Array, Float, Int

LANES = 16
"""Heads of the kernel are a multiple of this wide."""
CACHE_DTYPES = (jnp.float32, jnp.bfloat16)
"""What the kernel keeps keys and values in. It computes in float32."""


def supports(q: Array, ring: Array) -> bool:
    """Whether the kernel takes these: float32 queries and a ring of `CACHE_DTYPES`, on a CPU with gemwright-native."""
    return q.dtype == jnp.float32 and ring.dtype in CACHE_DTYPES and q.shape[-1] % LANES == 0 and native_enabled()


def attend_cached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    ring: tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]],
    positions: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    rotation: Float[Array, "B T 2 half"],
    gains: tuple[Float[Array, " H"], Float[Array, " H"]] | None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Float[Array, "B T N H"], tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]]:
    """Normalise, rotate, store the new keys and values, and mix; see `gemwright_native.attention`."""
    native = importlib.import_module("gemwright_native")
    return native.attention(
        q, k, v, ring, positions, lengths, rotation, gains, window=window, scale=scale, cap=cap, eps=eps
    )
