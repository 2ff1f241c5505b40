"""Read and write the `config.json` of vision models: PaliGemma, PaliGemma 2 and Gemma 3.

Keys and their defaults: huggingface/transformers
`models/{paligemma,gemma3,siglip}/configuration_*.py` (5.23).
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from gemwright.checkpoint.configs.huggingface_text import GELU_TANH, read_text, write_text
from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_SIZE, ConfigReader, cannot_write
from gemwright.families import GEMMA_3, PALIGEMMA, find_family
from gemwright.model.config import Attention, Config, Vision

VISION_CLASSES = {
    family.vision_model.model_type: family.vision_model.model_class
    for family in (GEMMA_3, PALIGEMMA)
    if family.vision_model
}
"""The class of each `model_type`."""
PALIGEMMA_VOCAB = 257_152
"""Gemma's vocabulary and 1024 location and 128 segmentation tokens. More rows of a file are `<image>` and padding."""
MAX_IMAGE = 16_384
"""Maximum side of an image in pixels."""


class VisionKeys(NamedTuple):
    """The names of the keys with the sizes of a tower."""

    image_size: str
    patch: str
    width: str
    depth: str
    heads: str
    hidden: str
    norm_eps: str


_KEYS = VisionKeys(
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
)
_TOKENS = {
    "gemma3": {"boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144},
    "paligemma": {"image_token_index": PALIGEMMA_VOCAB},
}


def read_multimodal(keys: ConfigReader, text: ConfigReader, kind: str, *, tied: bool) -> Config:
    """Read a decoder and its tower; a Gemma 3 without `vision_config` is a decoder alone.

    Args:
        keys: The keys of the file.
        text: Its group `text_config`.
        kind: Its `model_type`.
        tied: Whether the output matrix is the embedding's.

    Raises:
        CheckpointError: A key is missing or has a value that is not allowed.
    """
    if kind == "gemma3":
        config = read_text(text, text.choice("model_type", "gemma3_text"), tied=tied)
        if keys.data.get("vision_config") is None:
            return config
        tokens = keys.integer("mm_tokens_per_image", 256)
        windows = [layer.mixer.window for layer in config.layers if isinstance(layer.mixer, Attention)]
        if any(window is not None and window < tokens for window in windows):  # transformers would split an image
            raise keys.error("mm_tokens_per_image", "at most the window of its local layers")
        tower = keys.mapping("vision_config")
        _check_tower(tower)
        return replace(config, vision=read_vision(tower, tokens))
    config = read_text(text, text.choice("model_type", "gemma", "gemma2"), tied=tied, **_default_heads(text))
    config = replace(config, vocab=min(config.vocab, PALIGEMMA_VOCAB))
    tower = keys.mapping("vision_config")
    for group in (keys, tower):
        group.choice("projection_dim", config.width)
    _check_tower(tower)
    return replace(config, vision=read_vision(tower, None))


def write_multimodal(config: Config, vision: Vision, dtype: str) -> dict[str, Any]:
    """Return the keys of a decoder and its tower for transformers 4.50 and later.

    Raises:
        CheckpointError: No supported architecture computes the same as the model.
    """
    text = write_text(replace(config, vision=None), dtype)
    names = find_family(config).vision_model
    if names is None:
        raise cannot_write("no published model has this decoder and this projector")
    kind = names.model_type
    published = ("normed", vision.tokens) if kind == "gemma3" else ("affine", vision.grid**2)
    if (vision.projector, vision.tokens) != published:
        raise cannot_write(f"transformers' {names.model_class} has another projector, or another number of tokens")
    del text["architectures"]
    tower = {
        "model_type": "siglip_vision_model",
        "torch_dtype": dtype,
        "image_size": vision.image_size,
        "patch_size": vision.patch,
        "num_channels": 3,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.hidden,
        "hidden_act": GELU_TANH,
        "layer_norm_eps": vision.norm_eps,
        "vision_use_head": False,
    }
    data = {
        "architectures": [names.model_class],
        "model_type": kind,
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tied,
        **_TOKENS[kind],
    }
    if kind == "gemma3":
        return data | {"mm_tokens_per_image": vision.tokens, "text_config": text, "vision_config": tower}
    width = {"projection_dim": config.width}
    return data | width | {"hidden_size": config.width, "text_config": text, "vision_config": tower | width}


def read_vision(keys: ConfigReader, tokens: int | None, names: VisionKeys = _KEYS) -> Vision:
    """Read the sizes of a tower with `tokens` soft tokens, each an average of patches, or one for each patch if None.

    Args:
        keys: The keys of the tower.
        tokens: The number of soft tokens of an image.
        names: The names of the keys.

    Raises:
        CheckpointError: A key has a value that is not allowed.
    """
    patch = keys.integer(names.patch, 16, most=MAX_IMAGE)
    image_size = keys.integer(names.image_size, 224, least=patch, most=MAX_IMAGE)
    width = keys.integer(names.width, 768)
    heads = keys.integer(names.heads, 12)
    if image_size % patch or (image_size // patch) ** 2 > MAX_SIZE:
        wanted = f"a multiple of the patch size {patch}, with at most 4096 patches on a side"
        raise keys.error(names.image_size, wanted)
    if width % heads:
        raise keys.error(names.heads, f"a divisor of the width {width}")
    grid = image_size // patch
    side = grid if tokens is None else math.isqrt(tokens)
    if tokens is not None and (side**2 != tokens or grid % side):
        whole = ConfigReader({"mm_tokens_per_image": tokens}, keys.where)
        raise whole.error("mm_tokens_per_image", f"the square of a number that divides the {grid} patches of a side")
    return Vision(
        image_size,
        side**2,
        projector="affine" if tokens is None else "normed",
        patch=patch,
        width=width,
        depth=keys.integer(names.depth, 12, most=MAX_LAYERS),
        heads=heads,
        hidden=keys.integer(names.hidden, 3072),
        norm_eps=keys.real(names.norm_eps, 1e-6),
    )


def _check_tower(keys: ConfigReader) -> None:
    """Raise if a key asks for a tower that is not SigLIP's."""
    keys.choice("model_type", "siglip_vision_model")
    keys.choice("num_channels", 3)
    keys.choice("hidden_act", GELU_TANH)


def _default_heads(text: ConfigReader) -> dict[str, Any]:
    """Return the default of one key/value head, which PaliGemma's decoder has and its files may omit."""
    return {"kv_heads": 1} if text.data.get("model_type", "gemma") == "gemma" else {}
