"""The objective of documents with images: the soft tokens of a batch, and the mask of its model."""

import jax.numpy as jnp

from gemwright.families import ImagePrompt, find_family
from gemwright.model import stack
from gemwright.model.config import Config
from gemwright.model.params import VisionWeights
from gemwright.model.stack import Remat
from gemwright.model.transformer import SoftTokens
from gemwright.typing import Array, Bool, Float, Int


def make_soft_tokens(
    config: Config,
    tower: VisionWeights,
    pixels: Float[Array, "B n P P 3"],
    tokens: Int[Array, "B T"],
    learned: Bool[Array, "B T"],
    segments: Int[Array, "B T"],
    remat: Remat,
) -> SoftTokens:
    """Return the embeddings of the images of a batch at their places, and which tokens attend to each other both ways.

    Args:
        config: The model.
        tower: The tower, stacked.
        pixels: The images of each row in order; those beyond the row's own are not used.
        tokens: Negative for soft tokens.
        learned: Whether the target of a token is learned.
        segments: The document of each token; 0 for padding.
        remat: What is kept for the gradient.
    """
    assert config.vision is not None
    B = len(tokens)
    rows = stack.encode(config.vision, tower, pixels.reshape(-1, *pixels.shape[2:]), remat)
    order = jnp.clip(jnp.cumsum(tokens < 0, axis=1) - 1, 0)
    embeddings = jnp.take_along_axis(rows.reshape(B, -1, config.width), order[:, :, None], axis=1)
    return SoftTokens(embeddings, make_groups(config, tokens, learned, segments))


def make_groups(
    config: Config, tokens: Int[Array, "B T"], learned: Bool[Array, "B T"], segments: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Return the groups of `transformer.SoftTokens`.

    In a prefix-LM they are the prompts of documents, whose answers are learned; else each image is one.
    """
    style: ImagePrompt | None = find_family(config).image_prompt
    if style == "prefix":
        before = jnp.pad(learned, ((0, 0), (1, 0)))[:, :-1]
        is_first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        return jnp.where((segments > 0) & (is_first | ~before), segments, -1)
    assert config.vision is not None
    soft = tokens < 0
    return jnp.where(soft, (jnp.cumsum(soft, axis=1) - 1) // config.vision.tokens, -1)
