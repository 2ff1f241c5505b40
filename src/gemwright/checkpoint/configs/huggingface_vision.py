"""`config.json` of the models that see, PaliGemma 1 and 2 and Gemma 3, and the settings of their processors.

Keys, and what an absent key means: huggingface/transformers
`models/{paligemma,gemma3,siglip}/configuration_*.py` (5.23).
"""

import math
from dataclasses import replace
from typing import Any

from gemwright.checkpoint.configs.huggingface_text import GELU_TANH, read_text, write_text
from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_SIZE, ConfigReader, cannot_write
from gemwright.model.config import Attention, Config, Vision

VISION_CLASSES = {"gemma3": "Gemma3ForConditionalGeneration", "paligemma": "PaliGemmaForConditionalGeneration"}
"""The class of each `model_type`."""
PALIGEMMA_VOCAB = 257_152
"""Gemma's vocabulary, 1024 places and 128 pieces of masks. What a file has beyond is its `<image>` and padding."""
MAX_IMAGE = 16_384
"""Largest side of a picture, in pixels, that is believed."""
_TOKENS = {
    "gemma3": {"boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144},
    "paligemma": {"image_token_index": PALIGEMMA_VOCAB},
}


def read_multimodal(keys: ConfigReader, text: ConfigReader, kind: str, *, tied: bool) -> Config:
    """Reads a decoder and its tower; a Gemma 3 without `vision_config` is a decoder alone.

    Args:
        keys: The file's.
        text: Its group `text_config`.
        kind: Its `model_type`.
        tied: Whether the output matrix is the embedding's.

    Raises:
        CheckpointError: A key is missing, absurd or not understood.
    """
    if kind == "gemma3":
        config = read_text(text, text.choice("model_type", "gemma3_text"), tied=tied)
        if keys.data.get("vision_config") is None:
            return config
        tokens = keys.integer("mm_tokens_per_image", 256)
        windows = [layer.mixer.window for layer in config.layers if isinstance(layer.mixer, Attention)]
        if any(window is not None and window < tokens for window in windows):  # would part a picture in transformers
            raise keys.error("mm_tokens_per_image", "no more than the window of its local layers")
        return replace(config, vision=_read_vision(keys.mapping("vision_config"), tokens))
    config = read_text(text, text.choice("model_type", "gemma", "gemma2"), tied=tied, **_sparse(text))
    config = replace(config, vocab=min(config.vocab, PALIGEMMA_VOCAB))
    tower = keys.mapping("vision_config")
    for group in (keys, tower):
        group.choice("projection_dim", config.width)
    return replace(config, vision=_read_vision(tower, None))


def write_multimodal(config: Config, vision: Vision, dtype: str) -> dict[str, Any]:
    """The keys of a decoder and its tower, as transformers 4.50 and later reads them.

    Raises:
        CheckpointError: No supported architecture computes what this model computes.
    """
    text = write_text(replace(config, vision=None), dtype)
    kind = "gemma3" if text["model_type"] == "gemma3_text" else "paligemma"
    if _like_published(vision, kind) != vision:
        raise cannot_write(f"transformers' {VISION_CLASSES[kind]} does not see in this way")
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
        "architectures": [VISION_CLASSES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tied,
        **_TOKENS[kind],
    }
    if kind == "gemma3":
        return data | {"mm_tokens_per_image": vision.tokens, "text_config": text, "vision_config": tower}
    width = {"projection_dim": config.width}
    return data | width | {"hidden_size": config.width, "text_config": text, "vision_config": tower | width}


def _read_vision(keys: ConfigReader, tokens: int | None) -> Vision:
    """Reads a tower that gives `tokens` rows, averaged, as Gemma 3's does, or one for each patch, as PaliGemma's."""
    keys.choice("model_type", "siglip_vision_model")
    keys.choice("num_channels", 3)
    keys.choice("hidden_act", GELU_TANH)
    patch = keys.integer("patch_size", 16, most=MAX_IMAGE)
    image_size = keys.integer("image_size", 224, least=patch, most=MAX_IMAGE)
    width = keys.integer("hidden_size", 768)
    heads = keys.integer("num_attention_heads", 12)
    if image_size % patch or (image_size // patch) ** 2 > MAX_SIZE:
        raise keys.error("image_size", f"a multiple of the patches' {patch} pixels, and no more than 4096 of them")
    if width % heads:
        raise keys.error("num_attention_heads", f"a divisor of the width {width}")
    grid = image_size // patch
    side = grid if tokens is None else math.isqrt(tokens)
    if tokens is not None and (side**2 != tokens or grid % side):
        whole = ConfigReader({"mm_tokens_per_image": tokens}, keys.where)
        raise whole.error("mm_tokens_per_image", f"the square of a number that divides the {grid} patches of a side")
    return Vision(
        image_size,
        side**2,
        prefix_lm=tokens is None,
        projector="affine" if tokens is None else "normed",
        patch=patch,
        width=width,
        depth=keys.integer("num_hidden_layers", 12, most=MAX_LAYERS),
        heads=heads,
        hidden=keys.integer("intermediate_size", 3072),
        norm_eps=keys.real("layer_norm_eps", 1e-6),
    )


def _sparse(text: ConfigReader) -> dict[str, Any]:
    """PaliGemma 1 may leave the single key/value head of its decoder unsaid."""
    return {"kv_heads": 1} if text.data.get("model_type", "gemma") == "gemma" else {}


def _like_published(vision: Vision, kind: str) -> Vision:
    if kind == "gemma3":
        return replace(vision, prefix_lm=False, projector="normed")
    return replace(vision, prefix_lm=True, projector="affine", tokens=vision.grid**2)
