"""Read and write the `config.json` of decoders, and the decoder's group in that of vision models.

Keys and their defaults: huggingface/transformers `models/{gemma,gemma2,gemma3,vaultgemma}/configuration_*.py` (5.23).
"""

from typing import Any

from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, cannot_write
from gemwright.checkpoint.configs.uniform import (
    UniformConfig,
    check_config,
    find_architecture,
    find_period,
    local_layers,
    to_uniform,
)
from gemwright.families import GEMMA_1, GEMMA_2, GEMMA_3, VAULTGEMMA
from gemwright.model.config import Config, Rope

GELU_TANH = "gelu_pytorch_tanh"
ROPE_KEYS = (
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
"""Keys of a rotary embedding; linear scaling does not use the last."""
TEXT_CLASSES = {
    family.text_model.model_type: family.text_model.model_class
    for family in (GEMMA_1, GEMMA_2, VAULTGEMMA, GEMMA_3)
    if family.text_model
}
"""The class of each `model_type`."""

_SOFT_CAPPED = ("gemma2", "vaultgemma")
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"vocab": 256_000, "context": 8192, "heads": 16, "kv_heads": 16},
    "gemma2": {"vocab": 256_000, "context": 8192, "heads": 8, "kv_heads": 4},
    "vaultgemma": {"vocab": 256_000, "context": 8192, "heads": 8, "kv_heads": 4},
    "gemma3_text": {"vocab": 262_208, "context": 131_072, "heads": 8, "kv_heads": 4},
}


def read_text(keys: ConfigReader, kind: str, *, tied: bool, kv_heads: int | None = None) -> Config:
    """Read a decoder.

    Args:
        keys: Its keys. Sizes are required, all else has defaults.
        kind: Its `model_type`.
        tied: Whether the output matrix is the embedding's.
        kv_heads: Default number of key/value heads instead of transformers' default.

    Raises:
        CheckpointError: A key is missing or has a value that is not allowed.
    """
    default = _DEFAULTS[kind]
    keys.choice("partial_rotary_factor", 1.0, 1, None)
    depth = keys.integer("num_hidden_layers", most=MAX_LAYERS)
    head_dim = keys.integer("head_dim", 256)
    local = (False,) * depth if kind == "gemma" else _local(keys, depth, 6 if kind == "gemma3_text" else 2)
    local_rope, global_rope = _local_and_global_rope(keys) if kind == "gemma3_text" else _one_rope(keys)
    model = UniformConfig(
        width=keys.integer("hidden_size"),
        vocab=keys.integer("vocab_size", default["vocab"]),
        max_length=keys.integer("max_position_embeddings", default["context"], most=MAX_POSITIONS),
        heads=keys.integer("num_attention_heads", default["heads"]),
        kv_heads=keys.integer("num_key_value_heads", kv_heads or default["kv_heads"]),
        head_dim=head_dim,
        query_scalar=float(head_dim) if kind == "gemma" else keys.real("query_pre_attn_scalar", 256),
        hidden=keys.integer("intermediate_size"),
        local=local,
        window=keys.integer("sliding_window", 4096, most=MAX_POSITIONS) if any(local) else None,
        local_rope=local_rope,
        global_rope=global_rope,
        soft_cap=keys.optional_real("attn_logit_softcapping", 50.0) if kind in _SOFT_CAPPED else None,
        final_soft_cap=_final_soft_cap(keys, kind),
        qk_norm=kind == "gemma3_text",
        post_norms=kind in ("gemma2", "gemma3_text"),
        tied=tied,
        norm_eps=keys.real("rms_norm_eps", 1e-6),
    )
    if kind == "gemma3_text":  # its config has the key, its attention does not use it
        keys.choice("attn_logit_softcapping", None)
    return check_config(model, keys.where)


def write_text(config: Config, dtype: str) -> dict[str, Any]:
    """Return the keys of a decoder for transformers 4.50 and later.

    Raises:
        CheckpointError: No supported architecture computes the same as the model.
    """
    model = to_uniform(config)
    names = find_architecture(model).text_model
    assert names is not None
    kind = names.model_type
    data: dict[str, Any] = {
        "architectures": [names.model_class],
        "model_type": kind,
        "torch_dtype": dtype,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": len(model.local),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": model.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied,
        "hidden_act" if kind == "gemma" else "hidden_activation": GELU_TANH,
        **_rope_keys(model, kind),
    }
    return data if kind == "gemma" else data | _keys_since_gemma2(model)


def _final_soft_cap(keys: ConfigReader, kind: str) -> float | None:
    if kind == "gemma":
        return None
    return keys.optional_real("final_logit_softcapping", 30.0 if kind in _SOFT_CAPPED else None)


def _local(keys: ConfigReader, depth: int, default_period: int) -> tuple[bool, ...]:
    types = keys.data.get("layer_types")
    if types is None:
        return local_layers(keys.integer("sliding_window_pattern", default_period), depth)
    if not isinstance(types, list) or len(types) != depth or any(t not in (_LOCAL, _GLOBAL) for t in types):
        raise keys.error("layer_types", f"a list of {depth} times {_LOCAL} or {_GLOBAL}")
    return tuple(t == _LOCAL for t in types)


def _one_rope(keys: ConfigReader) -> tuple[Rope, Rope]:
    """Return the ropes of Gemma 1 and 2: one for all layers."""
    scaling = rope_group(keys, "rope_scaling")
    rope = read_rope(scaling if scaling.data else rope_group(keys, "rope_parameters"), keys, "rope_theta", 1e4)
    return rope, rope


def _local_and_global_rope(keys: ConfigReader) -> tuple[Rope, Rope]:
    """Return the ropes of Gemma 3, for whose global layers alone the old `rope_scaling` is."""
    parameters = keys.mapping("rope_parameters", _LOCAL, _GLOBAL)
    local, full = rope_group(parameters, _LOCAL), rope_group(parameters, _GLOBAL)
    scaling = rope_group(keys, "rope_scaling")
    if scaling.data:
        full = ConfigReader({**full.data, **scaling.data}, keys.where, scaling.prefix)
    return read_rope(local, keys, "rope_local_base_freq", 1e4), read_rope(full, keys, "rope_theta", 1e6)


def rope_group(keys: ConfigReader, key: str) -> ConfigReader:
    """Return the group of keys of a rotary embedding.

    Raises:
        CheckpointError: It is of a type that is not supported, such as YaRN, or has unknown keys.
    """
    group = keys.mapping(key)
    for name in ("rope_type", "type"):
        if group.data.get(name, "default") not in ("default", "linear"):
            raise group.unsupported_scaling(group.data[name])
    group = keys.mapping(key, *ROPE_KEYS)
    group.choice("partial_rotary_factor", 1.0, 1, None)
    return group


def read_rope(group: ConfigReader, keys: ConfigReader, base_key: str, default_base: float) -> Rope:
    """Return a rotary embedding from its group of keys; the base may be in `base_key` outside the group."""
    base = group.real("rope_theta") if "rope_theta" in group.data else keys.real(base_key, default_base)
    type_key = "rope_type" if "rope_type" in group.data else "type"
    if group.choice(type_key, "default", "linear") == "linear":
        return Rope(base, group.real("factor"))
    if group.real("factor", 1.0) != 1.0:
        raise group.error("factor", "absent unless rope_type is 'linear'")
    return Rope(base)


def _rope_keys(model: UniformConfig, kind: str) -> dict[str, Any]:
    """Return the keys of old and of new releases."""
    local, full = rope_parameters(model.local_rope), rope_parameters(model.global_rope)
    keys: dict[str, Any] = {"rope_theta": model.global_rope.base, "rope_scaling": None}
    if model.global_rope.scale != 1.0:
        keys["rope_scaling"] = {"rope_type": "linear", "factor": model.global_rope.scale}
    if kind == "gemma3_text":
        parameters = {_LOCAL: local, _GLOBAL: full}
        return keys | {"rope_local_base_freq": model.local_rope.base, "rope_parameters": parameters}
    if local != full:
        raise cannot_write("local and global layers of a Gemma 2 share their rotary embedding")
    return keys | {"rope_parameters": full}


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """Return the group of keys that `read_rope` reads."""
    if rope.scale == 1.0:
        return {"rope_type": "default", "rope_theta": rope.base}
    return {"rope_type": "linear", "factor": rope.scale, "rope_theta": rope.base}


def _keys_since_gemma2(model: UniformConfig) -> dict[str, Any]:
    """Return the keys that Gemma 2 and 3 have and Gemma 1 has not."""
    if model.query_scalar != int(model.query_scalar):
        raise cannot_write(f"query_pre_attn_scalar must be whole and is {model.query_scalar}")
    if model.width % model.heads:
        raise cannot_write(f"transformers needs the width {model.width} to be a multiple of the {model.heads} heads")
    pattern = find_period(model.local)
    return {
        "query_pre_attn_scalar": int(model.query_scalar),
        "attn_logit_softcapping": model.soft_cap,
        "final_logit_softcapping": model.final_soft_cap,
        "sliding_window": model.window,
        "layer_types": [_LOCAL if local else _GLOBAL for local in model.local],
    } | ({} if pattern is None else {"sliding_window_pattern": pattern})
