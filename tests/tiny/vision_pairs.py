"""Tiny random vision models in transformers and in gemwright, and sequences with images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Gemma3Config, PaliGemmaConfig, PreTrainedConfig, SiglipVisionConfig

from gemwright.families import find_family
from gemwright.model import vision
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import SoftTokens, forward, logits
from tests.tiny.hf import make_random_model
from tests.tiny.pairs import CONFIGS, LENGTH, VOCAB, load, to_numpy

IMAGE = VOCAB - 1
"""transformers' id of the placeholder of an image's soft token; ours is any negative number."""


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


def _paligemma(text: str, window: int | None) -> PreTrainedConfig:
    """16 soft tokens per image."""
    decoder = CONFIGS[text]()
    if window is not None:
        decoder.sliding_window = window
    return PaliGemmaConfig(
        vision_config=_tower(20, 5),
        text_config=decoder,
        projection_dim=decoder.hidden_size,
        hidden_size=decoder.hidden_size,
        image_token_index=IMAGE,
        attn_implementation="eager",
    )


def _gemma3() -> PreTrainedConfig:
    """4 soft tokens per image, each the average of 9 patches; the window is 8."""
    return Gemma3Config(
        vision_config=_tower(24, 4),
        text_config=CONFIGS["gemma3"](),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3,
        attn_implementation="eager",
    )


VISION_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "paligemma": lambda: _paligemma("gemma, multi-query", None),
    "paligemma2, window 8": lambda: _paligemma("gemma2", 8),
    "paligemma2, window 40": lambda: _paligemma("gemma2", 40),
    "gemma3": _gemma3,
}
PREFIXES = (23, 31)
"""Tokens of the prompts of PaliGemma's two sequences: an image and text."""
PLACES = ((2, 9, 20), (0,))
"""First positions of the images of Gemma 3's two sequences."""


@dataclass(frozen=True)
class Batch:
    """Two sequences as inputs of both sides.

    Attributes:
        tokens: [2, LENGTH] -1 for a soft token of an image.
        kinds: [2, LENGTH] transformers' `token_type_ids`: 1 in PaliGemma's suffix, or in Gemma 3's images.
        blocks: [2, LENGTH] ours.
        pixels: [images, P, P, 3] in the order of their soft tokens.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    blocks: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class VisionPair:
    """The same model in transformers and in gemwright, in float32, and its inputs."""

    folder: Path
    theirs: Any
    config: Config
    weights: ModelWeights
    batch: Batch


def _distribution(name: str) -> tuple[float, float]:
    """Center the norm gains of the vision tower at one and those of the decoder at zero."""
    if "norm" not in name:
        return 0.0, 0.15
    return (1.0 if "vision_tower" in name and name.endswith("weight") else 0.0), 0.3


def make_vision_pair(name: str, folder: Path) -> VisionPair:
    """Return a model with weights so large that every part of it matters, saved to `folder` and loaded from it."""
    theirs = make_random_model(VISION_CONFIGS[name](), _distribution)
    theirs.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    assert config.vision is not None
    return VisionPair(folder, theirs, config, weights, _batch(config))


def image_input(pair: VisionPair, rows: Any = None) -> SoftTokens:
    """Return the image input of our side; `rows` [images, tokens, D] default to those of the vision tower."""
    batch, config = pair.batch, pair.config
    if rows is None:
        rows = vision.encode(config.vision, pair.weights.vision, jnp.asarray(batch.pixels))
    placed = np.zeros((*batch.tokens.shape, config.width), np.float32)
    placed[batch.tokens < 0] = np.asarray(rows, np.float32).reshape(-1, config.width)
    return SoftTokens(jnp.asarray(placed), jnp.asarray(batch.blocks))


def our_logits(pair: VisionPair, given: SoftTokens | None = None) -> jax.Array:
    """Return gemwright's logits [2, LENGTH, V] of one pass."""
    given = image_input(pair) if given is None else given
    hidden, _ = forward(pair.config, pair.weights, jnp.asarray(pair.batch.tokens), soft_tokens=given)
    return logits(pair.config, pair.weights, hidden)


def their_logits(pair: VisionPair) -> np.ndarray:
    """Return transformers' logits [2, LENGTH, V] of one pass."""
    batch = pair.batch
    with torch.no_grad():
        output = pair.theirs(
            input_ids=torch.tensor(np.where(batch.tokens < 0, IMAGE, batch.tokens)),
            attention_mask=torch.ones(batch.tokens.shape, dtype=torch.long),
            token_type_ids=torch.tensor(batch.kinds),
            pixel_values=channels_first(batch.pixels),
        )
    return to_numpy(output.logits)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """Convert images [N, P, P, 3] to torch's [N, 3, P, P]."""
    return torch.tensor(pixels.transpose(0, 3, 1, 2).copy())


def load_in_bfloat16(pair: VisionPair) -> VisionPair:
    """Return the pair loaded in bfloat16 on both sides."""
    model = type(pair.theirs).from_pretrained(pair.folder, dtype=torch.bfloat16, attn_implementation="eager")
    config, weights = load(pair.folder, jnp.bfloat16)
    return replace(pair, theirs=model.eval(), config=config, weights=weights)


def _batch(config: Config) -> Batch:
    assert config.vision is not None
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCAB - 3, (2, LENGTH))
    kinds, blocks = np.zeros((2, LENGTH), np.int64), np.full((2, LENGTH), -1, np.int32)
    prefix = find_family(config).image_prompt == "prefix"
    starts = ((0,), (0,)) if prefix else PLACES
    for row in range(2):
        for number, start in enumerate(starts[row]):
            image = slice(start, start + config.vision.tokens)
            tokens[row, image] = -1
            if not prefix:
                kinds[row, image], blocks[row, image] = 1, number
        if prefix:
            kinds[row, PREFIXES[row] :], blocks[row, : PREFIXES[row]] = 1, 0
    side = config.vision.image_size
    pixels = random.uniform(-1, 1, (sum(map(len, starts)), side, side, 3)).astype(np.float32)
    return Batch(tokens, kinds, blocks, pixels)
