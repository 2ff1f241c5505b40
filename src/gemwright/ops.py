"""Small functions of every layer. They compute in float32 and return the dtype of their input."""

import jax
import jax.numpy as jnp
import numpy as np

from gemwright.typing import Array, Float, Int


def rms_norm(x: Float[Array, "*any D"], gain: Float[Array, " D"], eps: float) -> Float[Array, "*any D"]:
    """Return the root-mean-square norm with Gemma's zero-centered gain: x / rms(x) * (1 + gain)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * (1.0 + gain.astype(jnp.float32))).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*any D"], gain: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*any D"]:
    """Return the layer norm of SigLIP: (x - mean) / deviation * gain + bias."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rotation(positions: Int[Array, "B T"], width: int, base: float, scale: float) -> Float[Array, "B T 2 half"]:
    """Return cosines and sines of the angles position / scale * base^(-2i / width), for i below width / 2.

    Positions are integers until the float32 product with the frequencies: in bfloat16, 8190 and 8191 are equal.
    """
    half = width // 2
    # A constant, so that the compiler computes the angles once for all layers of a kind.
    frequency = (base ** (-np.arange(half) / half) / scale).astype(np.float32)
    angle = positions[:, :, None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=2)


def rotate(x: Float[Array, "B T heads H"], rotation: Float[Array, "B T 2 half"]) -> Float[Array, "B T heads H"]:
    """Apply rotary position embedding to pairs of dimensions i and i + half; later dimensions are unchanged."""
    cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
    half = rotation.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def biased(x: Float[Array, "*any D"], bias: Float[Array, " D"] | None) -> Float[Array, "*any D"]:
    """Return x + bias, or x if the bias is None."""
    return x if bias is None else x + bias.astype(x.dtype)


def soft_cap(x: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """Return cap * tanh(x / cap), or x if the cap is None."""
    if cap is None:
        return x
    return (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return GELU in its tanh approximation, the only form in Gemma."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
