"""The SigLIP vision tower (arXiv:2303.15343) and the projection of its outputs to soft tokens of the decoder."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gemwright import linear, ops, weights
from gemwright.kernels.attention import attend
from gemwright.model.config import Vision
from gemwright.model.params import VisionLayerWeights, VisionWeights
from gemwright.typing import Array, Float
from gemwright.weights import Weight

SCORES = 4096**2
"""Maximum number of scores of an image in memory: those of one head at 896 px; all 16 heads would take 1 GB."""

Mix = Callable[[int, Array, Array, Array], Array]
"""Takes the number of heads, and queries, keys and values [B, T, E]."""


def encode(vision: Vision, params: VisionWeights, pixels: Float[Array, "B P P 3"]) -> Float[Array, "B tokens D"]:
    """Return the soft tokens of images.

    Args:
        vision: The tower.
        params: Its weights; activations have the dtype of the patch embedding.
        pixels: Square RGB images of the tower's size, in [-1, 1].

    Returns:
        Unscaled embeddings for the decoder.
    """
    # The parts are compiled separately, so that 27 equal layers are compiled once.
    x = embed(vision, params, pixels)
    for layer_params in params.layers:
        x = layer(vision, layer_params, x)
    return project(vision, params, x)


@functools.partial(jax.jit, static_argnames="vision")
def embed(vision: Vision, params: VisionWeights, pixels: Float[Array, "B P P 3"]) -> Float[Array, "B patches E"]:
    """Return a linear map of each patch, row by row from the top left, plus its position embedding."""
    B, grid, side = pixels.shape[0], vision.grid, vision.patch
    patches = pixels.astype(params.patch.dtype).reshape(B, grid, side, grid, side, 3)
    patches = patches.transpose(0, 1, 3, 5, 2, 4).reshape(B, grid**2, 3 * side**2)
    return _linear(patches, params.patch, params.patch_bias) + params.positions.astype(patches.dtype)


@functools.partial(jax.jit, static_argnames=("vision", "mix"))
def layer(
    vision: Vision, params: VisionLayerWeights, x: Float[Array, "B T E"], mix: Mix | None = None
) -> Float[Array, "B T E"]:
    """Add mixer(norm(x)), then mlp(norm(x)); every patch attends to every other.

    Args:
        vision: The tower.
        params: The weights of the layer.
        x: Its input.
        mix: The attention, for programs of other runtimes; None for the usual one.
    """
    h = ops.layer_norm(x, params.mixer_norm, params.mixer_norm_bias, vision.norm_eps)
    q = _linear(h, params.q, params.q_bias)
    k = _linear(h, params.k, params.k_bias)
    v = _linear(h, params.v, params.v_bias)
    x += _linear((mix or _mix)(vision.heads, q, k, v), params.o, params.o_bias)
    h = ops.layer_norm(x, params.mlp_norm, params.mlp_norm_bias, vision.norm_eps)
    h = ops.gelu(_linear(h, params.up, params.up_bias))
    return x + _linear(h, params.down, params.down_bias)


@functools.partial(jax.jit, static_argnames="vision")
def project(vision: Vision, params: VisionWeights, x: Float[Array, "B patches E"]) -> Float[Array, "B tokens D"]:
    """Apply the final norm, average each square of patches, and project."""
    x = ops.layer_norm(x, params.final_norm, params.final_norm_bias, vision.norm_eps)
    B, side = x.shape[0], math.isqrt(vision.tokens)
    square = vision.grid // side
    x = jnp.mean(x.reshape(B, side, square, side, square, vision.width), axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
    x = x.reshape(B, vision.tokens, vision.width)
    if params.project_norm is not None:
        x = ops.rms_norm(x, params.project_norm, vision.norm_eps)
    return _linear(x, params.project, params.project_bias)


def _linear(x: Float[Array, "B T E"], weight: Weight, bias: Array | None) -> Float[Array, "B T F"]:
    """Return the linear map with its bias, rounded once."""
    return linear.named(ops.biased(weights.matmul(x, weight, out=jnp.float32), bias).astype(x.dtype))


def _mix(
    heads: int, q: Float[Array, "B T E"], k: Float[Array, "B T E"], v: Float[Array, "B T E"]
) -> Float[Array, "B T E"]:
    B, T, E = q.shape
    H = E // heads
    everything = jnp.ones((B, T, T), bool)

    def head(parts: tuple[Array, Array, Array]) -> Float[Array, "B T H"]:
        q, k, v = parts
        return attend(q[:, :, None] * H**-0.5, k[:, None], v[:, None], everything, None)[:, :, 0]

    by_head = tuple(x.reshape(B, T, heads, H).transpose(2, 0, 1, 3) for x in (q, k, v))
    mixed = jax.lax.map(head, by_head, batch_size=min(heads, max(1, SCORES // T**2)))
    return mixed.transpose(1, 2, 0, 3).reshape(B, T, E)
