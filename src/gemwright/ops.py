"""The small functions that every layer uses. All of them work in float32 inside and return their input's dtype."""

import jax
import jax.numpy as jnp
import numpy as np

from gemwright.typing import Array, Float, Int


def rms_norm(x: Float[Array, "*any D"], gain: Float[Array, " D"], eps: float) -> Float[Array, "*any D"]:
    """Root-mean-square normalisation with the zero-centred gain of Gemma: x / rms(x) * (1 + gain)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * (1.0 + gain.astype(jnp.float32))).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*any D"], gain: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*any D"]:
    """Layer normalisation, as in SigLIP: (x - mean) / deviation * gain + bias."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rotation(positions: Int[Array, "B T"], width: int, base: float, scale: float) -> Float[Array, "B T 2 half"]:
    """Cosines and sines of the angles position / scale * base^(-2i / width), for i below width / 2.

    Positions stay integers until the float32 product with the frequencies: in bfloat16, 8190 and 8191 are one.
    """
    half = width // 2
    # A constant, by which a compiler sees that all layers of a kind share their angles.
    frequency = (base ** (-np.arange(half) / half) / scale).astype(np.float32)
    angle = positions[:, :, None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=2)


def rotate(x: Float[Array, "B T heads H"], rotation: Float[Array, "B T 2 half"]) -> Float[Array, "B T heads H"]:
    """Rotary position embedding, pairing dimension i with i + half; what lies beyond both halves stays as it is."""
    cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
    half = rotation.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def biased(x: Float[Array, "*any D"], bias: Float[Array, " D"] | None) -> Float[Array, "*any D"]:
    """The sum with a bias, where the model has one."""
    return x if bias is None else x + bias.astype(x.dtype)


def soft_cap(x: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """Squash into (-cap, cap) with tanh; the identity where the model has no cap."""
    if cap is None:
        return x
    return (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """GELU in its tanh approximation, the only form that Gemma uses."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
