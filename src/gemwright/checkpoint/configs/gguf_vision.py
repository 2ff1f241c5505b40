"""Read and write the vision tower of a Gemma 3 in the metadata of a GGUF file.

Sources of the keys: ggml-org/llama.cpp `tools/mtmd/clip.cpp`, `conversion/gemma.py` (`clip.`, in the file beside the
model); ollama/ollama `convert/convert_gemma3.go` (`gemma3.vision.`, in the model's file).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemwright.checkpoint.configs.huggingface_vision import VisionKeys, read_vision
from gemwright.checkpoint.configs.reader import ConfigReader, cannot_write
from gemwright.model.config import Config, Vision

KEYS = VisionKeys(
    "image_size",
    "patch_size",
    "embedding_length",
    "block_count",
    "attention.head_count",
    "feed_forward_length",
    "attention.layer_norm_epsilon",
)
SCALE = 4
"""Default number of patches along a side that are averaged to a soft token."""
TOKENS = 256
"""Default number of soft tokens of an image in Ollama's files."""


def read_tower(metadata: Mapping[str, Any], where: str) -> Vision | None:
    """Read a tower; return None if the metadata have none.

    Raises:
        CheckpointError: A key is missing or has a value that is not allowed.
    """
    if "gemma3.vision.block_count" in metadata:
        keys = _group(metadata, "gemma3.vision.", where)
        keys.choice("num_channels", 3)
        tokens = ConfigReader(metadata, where).integer("gemma3.mm.tokens_per_image", TOKENS)
        return read_vision(keys, tokens, KEYS)
    if "clip.vision.block_count" not in metadata:
        return None
    keys, clip = _group(metadata, "clip.vision.", where), ConfigReader(metadata, where)
    clip.choice("clip.use_gelu", True)
    clip.choice("clip.use_silu", False)
    for key in ("image_mean", "image_std"):
        if not np.array_equal(np.asarray(keys.data.get(key, [0.5] * 3)), [0.5] * 3):
            raise keys.error(key, "0.5 for each color")
    patches = keys.integer("image_size") // keys.integer("patch_size")
    scale = keys.integer("projector.scale_factor", SCALE)
    if patches % scale or not patches:
        raise keys.error("projector.scale_factor", f"a divisor of the {patches} patches of a side")
    return read_vision(keys, (patches // scale) ** 2, KEYS)


def to_clip(config: Config) -> dict[str, Any]:
    """Return the metadata of a file with the tower of a Gemma 3 for llama.cpp.

    Raises:
        CheckpointError: The tower is not one of a Gemma 3.
    """
    vision = config.vision
    if vision is None or vision.projector != "normed":
        raise cannot_write("GGUF has the vision tower of Gemma 3 only")
    half, scale = np.full(3, 0.5, np.float32), vision.grid // math.isqrt(vision.tokens)
    keys: dict[str, Any] = {
        KEYS.image_size: vision.image_size,
        KEYS.patch: vision.patch,
        KEYS.width: vision.width,
        KEYS.depth: vision.depth,
        KEYS.heads: vision.heads,
        KEYS.hidden: vision.hidden,
        KEYS.norm_eps: vision.norm_eps,
        "projection_dim": config.width,
        "image_mean": half,
        "image_std": half,
    }
    if scale != SCALE:
        keys["projector.scale_factor"] = scale
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in keys.items()},
    }


def _group(metadata: Mapping[str, Any], prefix: str, where: str) -> ConfigReader:
    """Return the keys with a prefix, real numbers as the shortest decimal of a float32: 1e-6, not 9.99999997e-7."""
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    rounded = {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in values.items()}
    return ConfigReader(rounded, where, prefix)
