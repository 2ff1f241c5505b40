"""`config.json` and `generation_config.json` as transformers writes them.

Keys, and what an absent key means: huggingface/transformers `models/{gemma,gemma2,gemma3}/configuration_*.py` (5.23).
"""

from collections.abc import Mapping
from typing import Any

from gemwright.checkpoint.configuration import (
    MAX_LAYERS,
    MAX_POSITIONS,
    Keys,
    Uniform,
    architecture,
    cannot_write,
    checked,
    every,
    period,
    uniform,
)
from gemwright.model.config import Config, Rope

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_GELU_TANH = "gelu_pytorch_tanh"

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"vocab": 256_000, "context": 8192, "heads": 16, "kv_heads": 16},
    "gemma2": {"vocab": 256_000, "context": 8192, "heads": 8, "kv_heads": 4},
    "gemma3_text": {"vocab": 262_208, "context": 131_072, "heads": 8, "kv_heads": 4},
}
_CLASSES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
_KNOWN_CLASSES = (*_CLASSES.values(), "Gemma3ForConditionalGeneration")

_ROPE_KEYS = ("rope_theta", "rope_type", "type", "factor")


def from_huggingface(data: Mapping[str, Any], where: str) -> Config:
    """Reads a `config.json`; of a multimodal Gemma 3, its text tower.

    Args:
        data: The file's keys. The sizes of the model must be there, anything else may be absent.
        where: The file, for messages.

    Raises:
        CheckpointError: The architecture is not supported, or a key is missing, absurd or not understood.
    """
    keys = Keys(data, where)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in (*_DEFAULTS, "gemma3"):
        supported = ", ".join((*_DEFAULTS, "gemma3"))
        raise keys.error("model_type", f"a supported architecture, which are {supported}")
    _check_purpose(keys)
    tied = keys.flag("tie_word_embeddings", True)
    if kind == "gemma3":
        keys = keys.mapping("text_config")
        kind = keys.choice("model_type", "gemma3_text")
        _check_purpose(keys)
        keys.choice("tie_word_embeddings", tied)
    default = _DEFAULTS[kind]

    depth = keys.size("num_hidden_layers", most=MAX_LAYERS)
    head_dim = keys.size("head_dim", 256)
    local = (False,) * depth if kind == "gemma" else _local(keys, depth, 2 if kind == "gemma2" else 6)
    local_rope, global_rope = _local_and_global_rope(keys) if kind == "gemma3_text" else _one_rope(keys)
    model = Uniform(
        width=keys.size("hidden_size"),
        vocab=keys.size("vocab_size", default["vocab"]),
        context=keys.size("max_position_embeddings", default["context"], most=MAX_POSITIONS),
        heads=keys.size("num_attention_heads", default["heads"]),
        kv_heads=keys.size("num_key_value_heads", default["kv_heads"]),
        head_dim=head_dim,
        query_scalar=float(head_dim) if kind == "gemma" else keys.number("query_pre_attn_scalar", 256),
        hidden=keys.size("intermediate_size"),
        local=local,
        window=keys.size("sliding_window", 4096, most=MAX_POSITIONS) if any(local) else None,
        local_rope=local_rope,
        global_rope=global_rope,
        soft_cap=keys.optional_number("attn_logit_softcapping", 50.0) if kind == "gemma2" else None,
        final_soft_cap=_final_soft_cap(keys, kind),
        qk_norm=kind == "gemma3_text",
        post_norms=kind != "gemma",
        tied=tied,
        norm_eps=keys.number("rms_norm_eps", 1e-6),
    )
    if kind == "gemma3_text":  # its class has the key, its attention does not use it
        keys.choice("attn_logit_softcapping", None)
    return checked(model, where)


def to_huggingface(config: Config, dtype: str) -> dict[str, Any]:
    """The keys of a `config.json` that transformers 4.50 and later reads with the same meaning.

    Args:
        config: The model.
        dtype: The weights' type in the files, such as `"bfloat16"`.

    Raises:
        CheckpointError: No supported architecture computes what this model computes.
    """
    model = uniform(config)
    kind = architecture(model).replace("gemma3", "gemma3_text")
    data: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": len(model.local),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied,
        "hidden_act" if kind == "gemma" else "hidden_activation": _GELU_TANH,
        **_rope_keys(model, kind),
    }
    return data if kind == "gemma" else data | _later_keys(model)


def _check_purpose(keys: Keys) -> None:
    """Refuses what changes the result and has no place in a `Config`."""
    classes = keys.data.get("architectures") or []
    if not isinstance(classes, list) or any(name not in _KNOWN_CLASSES for name in classes):
        raise keys.error("architectures", f"a list of {', '.join(_KNOWN_CLASSES)}")
    keys.choice("attention_bias", False)
    keys.choice("use_bidirectional_attention", False, None)
    keys.choice("partial_rotary_factor", 1.0, 1, None)
    keys.choice("quantization_config", None)
    keys.choice("hidden_activation", _GELU_TANH, "gelu_new", None)
    # In the first Gemma's files `gelu` means its tanh form (huggingface/transformers#29402); later classes ignore it.
    keys.choice("hidden_act", _GELU_TANH, "gelu_new", "gelu", None)


def _final_soft_cap(keys: Keys, kind: str) -> float | None:
    if kind == "gemma":
        return None
    return keys.optional_number("final_logit_softcapping", 30.0 if kind == "gemma2" else None)


def _local(keys: Keys, depth: int, default_period: int) -> tuple[bool, ...]:
    types = keys.data.get("layer_types")
    if types is None:
        return every(keys.size("sliding_window_pattern", default_period), depth)
    if not isinstance(types, list) or len(types) != depth or any(t not in (_LOCAL, _GLOBAL) for t in types):
        raise keys.error("layer_types", f"a list of {depth} times {_LOCAL} or {_GLOBAL}")
    return tuple(t == _LOCAL for t in types)


def _one_rope(keys: Keys) -> tuple[Rope, Rope]:
    """Gemma 1 and 2: one rope for all layers."""
    scaling = keys.mapping("rope_scaling", *_ROPE_KEYS)
    rope = _rope(scaling if scaling.data else keys.mapping("rope_parameters", *_ROPE_KEYS), keys, "rope_theta", 1e4)
    return rope, rope


def _local_and_global_rope(keys: Keys) -> tuple[Rope, Rope]:
    """Gemma 3: the old `rope_scaling` concerns the global layers alone."""
    parameters = keys.mapping("rope_parameters", _LOCAL, _GLOBAL)
    local, everywhere = parameters.mapping(_LOCAL, *_ROPE_KEYS), parameters.mapping(_GLOBAL, *_ROPE_KEYS)
    scaling = keys.mapping("rope_scaling", *_ROPE_KEYS)
    if scaling.data:
        everywhere = Keys({**everywhere.data, **scaling.data}, keys.where, scaling.prefix)
    return _rope(local, keys, "rope_local_base_freq", 1e4), _rope(everywhere, keys, "rope_theta", 1e6)


def _rope(group: Keys, keys: Keys, base_key: str, default_base: float) -> Rope:
    base = group.number("rope_theta") if "rope_theta" in group.data else keys.number(base_key, default_base)
    type_key = "rope_type" if "rope_type" in group.data else "type"
    if group.choice(type_key, "default", "linear") == "linear":
        return Rope(base, group.number("factor"))
    if group.number("factor", 1.0) != 1.0:
        raise group.error("factor", "absent, or used by the rope_type 'linear'")
    return Rope(base)


def _rope_keys(model: Uniform, kind: str) -> dict[str, Any]:
    """The keys of old and new releases side by side."""
    local, everywhere = _rope_parameters(model.local_rope), _rope_parameters(model.global_rope)
    keys: dict[str, Any] = {"rope_theta": model.global_rope.base, "rope_scaling": None}
    if model.global_rope.scale != 1.0:
        keys["rope_scaling"] = {"rope_type": "linear", "factor": model.global_rope.scale}
    if kind == "gemma3_text":
        parameters = {_LOCAL: local, _GLOBAL: everywhere}
        return keys | {"rope_local_base_freq": model.local_rope.base, "rope_parameters": parameters}
    if local != everywhere:
        raise cannot_write("local and global layers of a Gemma 2 share their rotary embedding")
    return keys | {"rope_parameters": everywhere}


def _rope_parameters(rope: Rope) -> dict[str, Any]:
    if rope.scale == 1.0:
        return {"rope_type": "default", "rope_theta": rope.base}
    return {"rope_type": "linear", "factor": rope.scale, "rope_theta": rope.base}


def _later_keys(model: Uniform) -> dict[str, Any]:
    """What Gemma 2 and 3 have and Gemma 1 has not."""
    if model.query_scalar != int(model.query_scalar):
        raise cannot_write(f"query_pre_attn_scalar must be whole and is {model.query_scalar}")
    if model.width % model.heads:
        raise cannot_write(f"transformers wants the width {model.width} to be a multiple of the {model.heads} heads")
    pattern = period(model.local)
    return {
        "query_pre_attn_scalar": int(model.query_scalar),
        "attn_logit_softcapping": model.soft_cap,
        "final_logit_softcapping": model.final_soft_cap,
        "sliding_window": model.window,
        "layer_types": [_LOCAL if local else _GLOBAL for local in model.local],
    } | ({} if pattern is None else {"sliding_window_pattern": pattern})


def read_generation_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Reads a `generation_config.json`: the keys that are known and not null, each checked; others are left out.

    Returns:
        Any of do_sample, temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, max_length,
        bos_token_id, pad_token_id and eos_token_id (one id or a list). It may be written to such a file as it is.

    Raises:
        CheckpointError: A known key holds what it must not.
    """
    keys = Keys({key: value for key, value in data.items() if value is not None}, where)
    values: dict[str, Any] = {}
    for key in keys.data:
        match key:
            case "do_sample":
                values[key] = keys.flag(key, False)
            case "temperature":
                values[key] = keys.number(key, least=0)
            case "top_p" | "min_p":
                values[key] = keys.number(key, least=0, most=1)
            case "repetition_penalty":
                values[key] = keys.number(key)
            case "top_k" | "bos_token_id" | "pad_token_id":
                values[key] = keys.size(key, least=0)
            case "max_new_tokens" | "max_length":
                values[key] = keys.size(key, most=MAX_POSITIONS)
            case "eos_token_id":
                values[key] = _token_ids(keys)
            case _:
                pass
    return values


def _token_ids(keys: Keys) -> int | list[int]:
    ids = keys.data["eos_token_id"]
    if not isinstance(ids, list):
        return keys.size("eos_token_id", least=0)
    if not ids or len(ids) > 256:
        raise keys.error("eos_token_id", "one token id or a list of them")
    return [Keys({"eos_token_id": id_}, keys.where).size("eos_token_id", least=0) for id_ in ids]
