"""The small functions that every layer uses. All of them work in float32 inside and return their input's dtype."""

import jax
import jax.numpy as jnp

from gemwright.typing import Array, Float, Int


def rms_norm(x: Float[Array, "*any D"], gain: Float[Array, " D"], eps: float) -> Float[Array, "*any D"]:
    """Root-mean-square normalisation with the zero-centred gain of Gemma: x / rms(x) * (1 + gain)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * (1.0 + gain.astype(jnp.float32))).astype(x.dtype)


def rotate(
    x: Float[Array, "B T heads H"], positions: Int[Array, "B T"], base: float, scale: float
) -> Float[Array, "B T heads H"]:
    """Rotary position embedding, pairing dimension i with i + H / 2; the angle is position / scale * base^(-2i/H).

    Positions stay integers until the float32 product with the frequencies: in bfloat16, 8190 and 8191 are one.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half) / scale
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def soft_cap(x: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """Squash into (-cap, cap) with tanh; the identity where the model has no cap."""
    if cap is None:
        return x
    return (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """GELU in its tanh approximation, the only form that Gemma uses."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
