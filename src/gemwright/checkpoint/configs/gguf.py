"""Read and write a config in the metadata of a GGUF file.

Keys and their defaults: ggml-org/llama.cpp `src/models/{gemma,gemma2,gemma3}.cpp`, `src/llama-model.cpp`,
`conversion/gemma.py`; Ollama's older Gemma 3 files: ollama/ollama#13452.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gemwright.checkpoint.configs.gguf_vision import read_tower
from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, cannot_write
from gemwright.checkpoint.configs.uniform import (
    UniformConfig,
    check_config,
    find_architecture,
    find_period,
    local_layers,
    to_uniform,
)
from gemwright.checkpoint.files.lazy_strings import LazyStrings
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.families import FAMILIES, find_family
from gemwright.model.config import Config, Rope

_ARCHITECTURES = sorted({family.gguf for family in FAMILIES if family.gguf})
_PERIODS = {"gemma2": 2, "gemma3": 6}
_SCALED_DEPTHS = (34, 48, 62)
"""Depths of Gemma 3 4B, 12B and 27B, whose older files omit their rope scaling of 8."""


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> Config:
    """Read a config from the metadata of a GGUF file, and the size of its vocabulary from the shape of its embedding.

    Args:
        metadata: The keys of the file.
        tensors: The tensors of the file.
        where: The file, for error messages.

    Raises:
        CheckpointError: The architecture is not supported, or a key is missing or has a value that is not allowed.
    """
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        raise _unsupported(metadata, where)
    prefix = f"{kind}."
    keys = ConfigReader({k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}, where, prefix)

    depth = keys.integer("block_count", most=MAX_LAYERS)
    width = keys.integer("embedding_length")
    heads = keys.integer("attention.head_count", most=width)
    head_dim = keys.integer("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise keys.error(key, f"{head_dim}, like attention.key_length")
    keys.choice("attention.causal", True)
    window = _window(keys, kind)
    local = (False,) * depth if window is None else _local(keys, depth, _PERIODS[kind])
    local_rope, global_rope = _ropes(keys, kind, depth)
    model = UniformConfig(
        width=width,
        vocab=_vocab(metadata, tensors, width, where),
        max_length=keys.integer("context_length", most=MAX_POSITIONS),
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        query_scalar=float(_query_scalar(kind, depth, width, heads, head_dim)),
        hidden=keys.integer("feed_forward_length"),
        local=local,
        window=window if any(local) else None,
        local_rope=local_rope,
        global_rope=global_rope,
        soft_cap=_number(keys, "attn_logit_softcapping", 50.0) if kind == "gemma2" else None,
        final_soft_cap=_final_soft_cap(keys, kind),
        qk_norm=kind == "gemma3",
        post_norms=kind != "gemma",
        tied="output.weight" not in tensors,
        norm_eps=_number(keys, "attention.layer_norm_rms_epsilon", 1e-6),
    )
    config = check_config(model, where)
    has_tower = kind == "gemma3" and any(name.startswith("v.") for name in tensors)
    return replace(config, vision=read_tower(metadata, where)) if has_tower else config


def to_gguf(config: Config) -> dict[str, Any]:
    """Return the metadata of a GGUF file for llama.cpp, without the keys of the tokenizer.

    For a Gemma 3 with images it is that of the decoder: llama.cpp has the tower in a file of another kind.

    Raises:
        CheckpointError: No architecture of the format computes the same as the model.
    """
    family = find_family(config)
    if family.gguf is None:
        raise cannot_write(f"GGUF has no architecture for {family.name}; choose huggingface")
    model = to_uniform(replace(config, vision=None))
    kind = find_architecture(model).gguf
    assert kind is not None
    depth = len(model.local)
    _check_expressible(model, kind)
    keys: dict[str, Any] = {
        "context_length": model.max_length,
        "embedding_length": model.width,
        "block_count": depth,
        "feed_forward_length": model.hidden,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.norm_eps),
    }
    if model.soft_cap is not None:
        keys["attn_logit_softcapping"] = float(model.soft_cap)
    if model.final_soft_cap is not None:
        keys["final_logit_softcapping"] = float(model.final_soft_cap)
    keys |= _window_keys(model, kind) | _rope_keys(model, kind)
    return {"general.architecture": kind} | {f"{kind}.{key}": value for key, value in keys.items()}


def _unsupported(metadata: Mapping[str, Any], where: str) -> CheckpointError:
    """Return the error for a file that is not a model of a supported architecture."""
    keys, kind = ConfigReader(metadata, where), metadata.get("general.architecture")
    content = metadata.get("general.type")
    if isinstance(content, str) and content == "imatrix":
        return CheckpointError(f"{where} is an importance matrix, not a model; give the model's file.")
    if not isinstance(kind, str):
        return keys.error("general.architecture", f"a supported one: {', '.join(_ARCHITECTURES)}")
    if kind == "clip":
        return CheckpointError(f"{where} is a vision tower (mmproj), not a model; give the model's file in its folder.")
    return keys.unsupported(f"the architecture {kind[:40]!r}", _ARCHITECTURES)


def _number(keys: ConfigReader, key: str, default: float) -> float:
    """Return a float32 of the file as the shortest decimal number: 1e-6, not 9.99999997e-7."""
    return float(str(np.float32(keys.real(key, default))))


def _final_soft_cap(keys: ConfigReader, kind: str) -> float | None:
    """Return the final soft-cap: Gemma 2 always has one, Gemma 3 may, and 0 means none."""
    if kind == "gemma" or (kind == "gemma3" and keys.real("final_logit_softcapping", 0.0, least=0.0) == 0.0):
        return None
    return _number(keys, "final_logit_softcapping", 30.0)


def _query_scalar(kind: str, depth: int, width: int, heads: int, head_dim: int) -> int:
    """Return the query scalar, for which there is no key: readers recognize the two 27B models by their depth."""
    return width // heads if (kind, depth) in (("gemma2", 46), ("gemma3", 62)) else head_dim


def _vocab(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], width: int, where: str) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != width:
        found = "missing" if embedding is None else f"of shape {embedding.shape}"
        raise CheckpointError(
            f"{where}: tensor 'token_embd.weight' is {found}, and it must have {width} columns; "
            "download or convert the file again."
        )
    rows = embedding.shape[0]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list | LazyStrings) and len(tokens) > rows:
        raise CheckpointError(
            f"{where}: the tokenizer has {len(tokens)} tokens and tensor 'token_embd.weight' only {rows} rows; "
            "download or convert the file again."
        )
    return ConfigReader({"rows of token_embd.weight": rows}, where).integer("rows of token_embd.weight")


def _window(keys: ConfigReader, kind: str) -> int | None:
    """Return the window: Gemma 2 always has one, Gemma 3 may, and 0 means none."""
    match kind:
        case "gemma2":
            return keys.integer("attention.sliding_window", 4096, most=MAX_POSITIONS)
        case "gemma3":
            return keys.integer("attention.sliding_window", 0, least=0, most=MAX_POSITIONS) or None
        case _:
            return None


def _local(keys: ConfigReader, depth: int, default_period: int) -> tuple[bool, ...]:
    key = "attention.sliding_window_pattern"
    value = keys.data.get(key)
    if isinstance(value, np.ndarray) and value.shape == (depth,):
        return tuple(bool(flag) for flag in value)
    return local_layers(keys.integer(key, default_period, least=0) or depth + 1, depth)  # 0: every layer is local


def _ropes(keys: ConfigReader, kind: str, depth: int) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of local and of global layers."""
    if kind != "gemma3":
        full = Rope(_number(keys, "rope.freq_base", 1e4), _scale(keys, 1.0))
        return Rope(_number(keys, "rope.freq_base_swa", full.base), full.scale), full
    # Ollama's older files have `rope.global.freq_base` and `rope.local.freq_base`, and no scaling.
    base = _number(keys, "rope.global.freq_base", 1e6)
    local_base = _number(keys, "rope.local.freq_base", 1e4)
    full = Rope(_number(keys, "rope.freq_base", base), _scale(keys, 8.0 if depth in _SCALED_DEPTHS else 1.0))
    return Rope(_number(keys, "rope.freq_base_swa", local_base)), full


def _scale(keys: ConfigReader, default: float) -> float:
    kind = keys.data.get("rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise keys.unsupported_scaling(kind)
    key = "rope.scaling.factor" if "rope.scaling.factor" in keys.data else "rope.scale_linear"
    return _number(keys, key, default)


def _check_expressible(model: UniformConfig, kind: str) -> None:
    query_scalar = _query_scalar(kind, len(model.local), model.width, model.heads, model.head_dim)
    if model.query_scalar != query_scalar:
        raise cannot_write(
            f"GGUF has no key for the query scale: readers would use {query_scalar}, not {model.query_scalar}"
        )
    if not model.tied and kind != "gemma3":
        raise cannot_write("GGUF has no output matrix for Gemma 1 and 2")
    if kind == "gemma2" and None in (model.window, model.soft_cap, model.final_soft_cap):
        raise cannot_write("in GGUF a Gemma 2 must have local layers and both soft-caps")
    implied = 1.0 if kind == "gemma3" else model.global_rope.scale
    if any(model.local) and model.local_rope.scale != implied:
        raise cannot_write(f"GGUF readers use the rope scale {implied} for local layers")


def _window_keys(model: UniformConfig, kind: str) -> dict[str, Any]:
    if model.window is None:
        return {}
    keys: dict[str, Any] = {"attention.sliding_window": model.window}
    if model.local != local_layers(_PERIODS[kind], len(model.local)):
        pattern = find_period(model.local)
        keys["attention.sliding_window_pattern"] = np.array(model.local) if pattern is None else pattern
    return keys


def _rope_keys(model: UniformConfig, kind: str) -> dict[str, Any]:
    """Return the keys that differ from a reader's defaults, and Gemma 3's base, which older readers do not know."""
    keys: dict[str, Any] = {}
    base, local_base = float(model.global_rope.base), float(model.local_rope.base)
    if kind == "gemma3" or base != 1e4:
        keys["rope.freq_base"] = base
    if any(model.local) and local_base != (1e4 if kind == "gemma3" else base):
        keys["rope.freq_base_swa"] = local_base
    if model.global_rope.scale != 1.0 or (kind == "gemma3" and len(model.local) in _SCALED_DEPTHS):
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = float(model.global_rope.scale)
    return keys
