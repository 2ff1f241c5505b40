"""Tiny random models that see, each saved by transformers and read by gemwright, and sequences with pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from reference import LENGTH, MODELS, VOCAB, array, load
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

from gemwright.model import vision
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import SoftTokens, forward, logits

IMAGE = VOCAB - 1
"""transformers' id of the token that stands for a row of a picture; ours is any negative number."""


def _tower(image_size: int, patch: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=36,
        num_attention_heads=3,
        intermediate_size=52,
        num_hidden_layers=3,
        image_size=image_size,
        patch_size=patch,
        hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
    )


def _paligemma(text: str, window: int | None) -> PreTrainedModel:
    """16 rows a picture."""
    decoder = MODELS[text]().config
    if window is not None:
        decoder.sliding_window = window
    config = PaliGemmaConfig(
        vision_config=_tower(20, 5),
        text_config=decoder,
        projection_dim=decoder.hidden_size,
        hidden_size=decoder.hidden_size,
        image_token_index=IMAGE,
        attn_implementation="eager",
    )
    return PaliGemmaForConditionalGeneration(config)


def _gemma3() -> PreTrainedModel:
    """4 rows a picture, each the average of 9 patches; the window is 8."""
    config = Gemma3Config(
        vision_config=_tower(24, 4),
        text_config=MODELS["gemma3"]().config,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3,
        attn_implementation="eager",
    )
    return Gemma3ForConditionalGeneration(config)


SEEING: dict[str, Callable[[], PreTrainedModel]] = {
    "paligemma": lambda: _paligemma("gemma, multi-query", None),
    "paligemma2, window 8": lambda: _paligemma("gemma2", 8),
    "paligemma2, window 40": lambda: _paligemma("gemma2", 40),
    "gemma3": _gemma3,
}
PREFIXES = (23, 31)
"""Tokens of the prompts of PaliGemma's two sequences: a picture and text."""
PLACES = ((2, 9, 20), (0,))
"""Where the pictures of Gemma 3's two sequences begin."""


@dataclass(frozen=True)
class Batch:
    """Two sequences as both sides take them.

    Attributes:
        tokens: [2, LENGTH] -1 for a row of a picture.
        kinds: [2, LENGTH] transformers' `token_type_ids`: 1 in PaliGemma's suffix, or in Gemma 3's pictures.
        blocks: [2, LENGTH] ours.
        pixels: [pictures, P, P, 3] in the order of their rows.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    blocks: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Pair:
    """The same model on both sides, in float32, and what it is shown."""

    folder: Path
    theirs: Any
    config: Config
    weights: ModelWeights
    batch: Batch


def make(name: str, folder: Path) -> Pair:
    """A model with weights so large that every part of it matters, written by transformers and read by gemwright."""
    torch.manual_seed(0)
    theirs = SEEING[name]().eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "norm" in key:  # the tower's gains are around one, the others' around zero
                one = 1.0 if "vision_tower" in key and key.endswith("weight") else 0.0
                parameter.normal_(one, 0.3)
            else:
                parameter.normal_(0.0, 0.15)
    theirs.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    assert config.vision is not None
    return Pair(folder, theirs, config, weights, _batch(config))


def soft_tokens(pair: Pair, rows: Any = None) -> SoftTokens:
    """What our side has to know of the pictures; `rows` [pictures, tokens, D] are the tower's unless given."""
    batch, config = pair.batch, pair.config
    if rows is None:
        rows = vision.encode(config.vision, pair.weights.vision, jnp.asarray(batch.pixels))
    placed = np.zeros((*batch.tokens.shape, config.width), np.float32)
    placed[batch.tokens < 0] = np.asarray(rows, np.float32).reshape(-1, config.width)
    return SoftTokens(jnp.asarray(placed), jnp.asarray(batch.blocks))


def ours(pair: Pair, given: SoftTokens | None = None) -> jax.Array:
    """Logits [2, LENGTH, V] of one pass."""
    given = soft_tokens(pair) if given is None else given
    hidden, _ = forward(pair.config, pair.weights, jnp.asarray(pair.batch.tokens), soft_tokens=given)
    return logits(pair.config, pair.weights, hidden)


def theirs(pair: Pair) -> np.ndarray:
    """The same of transformers, which is told which tokens are of what kind."""
    batch = pair.batch
    with torch.no_grad():
        output = pair.theirs(
            input_ids=torch.tensor(np.where(batch.tokens < 0, IMAGE, batch.tokens)),
            attention_mask=torch.ones(batch.tokens.shape, dtype=torch.long),
            token_type_ids=torch.tensor(batch.kinds),
            pixel_values=channels_first(batch.pixels),
        )
    return array(output.logits)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """Pictures as torch wants them."""
    return torch.tensor(pixels.transpose(0, 3, 1, 2).copy())


def in_bfloat16(pair: Pair) -> Pair:
    """The same files, read as bfloat16 by both."""
    model = type(pair.theirs).from_pretrained(pair.folder, dtype=torch.bfloat16, attn_implementation="eager")
    config, weights = load(pair.folder, jnp.bfloat16)
    return replace(pair, theirs=model.eval(), config=config, weights=weights)


def _batch(config: Config) -> Batch:
    assert config.vision is not None
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCAB - 3, (2, LENGTH))
    kinds, blocks = np.zeros((2, LENGTH), np.int64), np.full((2, LENGTH), -1, np.int32)
    starts = ((0,), (0,)) if config.vision.prefix_lm else PLACES
    for row in range(2):
        for number, start in enumerate(starts[row]):
            picture = slice(start, start + config.vision.tokens)
            tokens[row, picture] = -1
            if not config.vision.prefix_lm:
                kinds[row, picture], blocks[row, picture] = 1, number
        if config.vision.prefix_lm:
            kinds[row, PREFIXES[row] :], blocks[row, : PREFIXES[row]] = 1, 0
    side = config.vision.image_size
    pixels = random.uniform(-1, 1, (sum(map(len, starts)), side, side, 3)).astype(np.float32)
    return Batch(tokens, kinds, blocks, pixels)
