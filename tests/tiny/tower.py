"""The vision tower of a tiny Gemma 3 as GGUF, written by the `gguf` package with its own table of names."""

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.tiny.hf import IMAGE_SIZE, PATCH_SIZE, VISION_HEADS, VISION_LAYERS

Style = Literal["llama.cpp", "llama.cpp of 2025", "ollama"]
STYLES: tuple[Style, ...] = ("llama.cpp", "llama.cpp of 2025", "ollama")
OLLAMA = (
    ("vision_tower.vision_model.embeddings", "v"),
    ("vision_tower.vision_model", "v"),
    ("encoder.layers", "blk"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_output"),
    ("input_projection_weight", "input_projection.weight"),
    ("multi_modal_projector", "mm"),
)
"""Replacements in ollama/ollama `convert/convert_gemma3.go`."""


def tower_tensors(folder: Path, style: Style) -> dict[str, np.ndarray]:
    """Return the tensors of the tower in a folder of transformers under the names of a GGUF file."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, VISION_LAYERS)
    tensors: dict[str, np.ndarray] = {}
    for theirs, value in load_file(folder / "model.safetensors").items():
        name = theirs.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.", 1)
        name = name.replace("vision_model.vision_model.", "vision_model.")
        if not name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        if "soft_emb_norm" in name:
            value = value + 1
        if style == "ollama":
            for old, new in OLLAMA:
                name = name.replace(old, new)
        else:
            name = table.get_name(name.replace("_weight", ".weight"), (".weight", ".bias"))
            assert name is not None, theirs
        if style == "llama.cpp of 2025":
            swapped = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
            name = ".".join(swapped.get(part, part) for part in name.split("."))
        tensors[name] = value
    return tensors


def write_gguf_with(path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a file with the `gguf` package."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add: Any = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mmproj(path: Path, folder: Path, style: Style = "llama.cpp", **changed: Any) -> Path:
    """Write the tower of a folder of transformers as llama.cpp does; `changed` replaces keys, with `_` for `.`."""
    keys: dict[str, Any] = {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.use_gelu": True,
        "clip.vision.image_size": IMAGE_SIZE,
        "clip.vision.patch_size": PATCH_SIZE,
        "clip.vision.embedding_length": 48,
        "clip.vision.feed_forward_length": 80,
        "clip.vision.block_count": VISION_LAYERS,
        "clip.vision.attention.head_count": VISION_HEADS,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.projection_dim": 64,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
        "clip.vision.projector.scale_factor": 2,
    } | changed
    return write_gguf_with(path, "clip", keys, tower_tensors(folder, style))


def ollama_keys() -> dict[str, Any]:
    """Return the keys of the tower in Ollama's file of the whole model."""
    return {
        "gemma3.vision.image_size": IMAGE_SIZE,
        "gemma3.vision.patch_size": PATCH_SIZE,
        "gemma3.vision.num_channels": 3,
        "gemma3.vision.embedding_length": 48,
        "gemma3.vision.feed_forward_length": 80,
        "gemma3.vision.block_count": VISION_LAYERS,
        "gemma3.vision.attention.head_count": VISION_HEADS,
        "gemma3.vision.attention.layer_norm_epsilon": 1e-6,
        "gemma3.mm.tokens_per_image": 4,
    }
