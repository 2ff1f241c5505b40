"""Read and write `config.json` and `generation_config.json` in the format of transformers.

Keys and their defaults: huggingface/transformers `models/*gemma*/configuration_*.py` (5.23).
"""

from collections.abc import Mapping
from typing import Any

from gemwright.checkpoint.configs.huggingface_recurrent import RECURRENT_CLASSES, read_recurrent, write_recurrent
from gemwright.checkpoint.configs.huggingface_text import GELU_TANH, TEXT_CLASSES, read_text, write_text
from gemwright.checkpoint.configs.huggingface_vision import VISION_CLASSES, read_multimodal, write_multimodal
from gemwright.checkpoint.configs.reader import MAX_POSITIONS, ConfigReader
from gemwright.errors import CheckpointError
from gemwright.families import FAMILIES, RECURRENTGEMMA, find_family
from gemwright.model.config import Config

MODEL_CLASSES = {**TEXT_CLASSES, **VISION_CLASSES, **RECURRENT_CLASSES}
"""The class of each `model_type`."""
REWARD_CLASSES = {
    names.reward_class: names.model_class
    for family in FAMILIES
    for names in (family.text_model, family.vision_model)
    if names and names.reward_class
}
"""The class that generates text by that of a reward model, whose head, `score.weight`, reads the last token."""
QUANT_METHOD = "gemwright"
"""Our `quant_method` of a `quantization_config`; each safetensors file describes its quantized tensors."""


def from_huggingface(data: Mapping[str, Any], where: str, *, reward: bool = False) -> Config:
    """Read a `config.json`.

    Args:
        data: The file's keys. Sizes are required, all else has defaults.
        where: The file, for error messages.
        reward: Whether a reward model is wanted, and not one that generates text.

    Raises:
        CheckpointError: The architecture is not supported, or a key is missing or has a value that is not allowed.
    """
    keys = ConfigReader(data, where)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_CLASSES:
        raise _unsupported_model(keys)
    _check_purpose(_check_reward(keys, reward))
    tied = keys.boolean("tie_word_embeddings", True)
    if kind in RECURRENT_CLASSES:
        return read_recurrent(keys, tied=tied)
    if kind in VISION_CLASSES:
        text = keys.mapping("text_config")
        _check_purpose(text, bidirectional=kind == "paligemma")
        text.choice("tie_word_embeddings", tied)
        return read_multimodal(keys, text, kind, tied=tied)
    return read_text(keys, kind, tied=tied)


def to_huggingface(config: Config, dtype: str) -> dict[str, Any]:
    """Return the keys of a `config.json` for transformers 4.50 and later.

    Args:
        config: The model.
        dtype: Dtype of the weights in the files, such as `"bfloat16"`.

    Raises:
        CheckpointError: No supported architecture computes the same as the model.
    """
    if find_family(config) is RECURRENTGEMMA:
        return write_recurrent(config, dtype)
    return write_text(config, dtype) if config.vision is None else write_multimodal(config, config.vision, dtype)


def to_reward(config: Config, dtype: str) -> dict[str, Any]:
    """Return the keys of a `config.json` of a reward model.

    Raises:
        CheckpointError: As for `require_reward_class` and `to_huggingface`.
    """
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # by their number, transformers finds one score
    return to_huggingface(config, dtype) | {"architectures": [require_reward_class(config)], **labels}


def require_reward_class(config: Config) -> str:
    """Return the class of a reward model.

    Raises:
        CheckpointError: transformers has none for the family.
    """
    names = find_family(config).text_model
    if names is None or names.reward_class is None:
        raise CheckpointError(
            f"transformers has no class for a reward model of {find_family(config).name}; use a model of another "
            f"family: {', '.join(REWARD_CLASSES)}."
        )
    return names.reward_class


def _check_reward(keys: ConfigReader, reward: bool) -> ConfigReader:
    """Return the keys of a model of the wanted purpose, a reward model's without their class."""
    classes = keys.data.get("architectures")
    found = isinstance(classes, list) and len(classes) == 1 and classes[0] in list(REWARD_CLASSES)
    if found and not reward:
        raise CheckpointError(
            f"{keys.where}: this is a reward model, which gives no text; use it with gemwright score --reward."
        )
    if reward and not found:
        raise CheckpointError(
            f"{keys.where}: this is no reward model, whose class is one of {', '.join(REWARD_CLASSES)}; train one with "
            "the objective reward."
        )
    others = {key: value for key, value in keys.data.items() if key != "architectures"}
    return ConfigReader(others, keys.where) if found else keys


def _unsupported_model(keys: ConfigReader) -> CheckpointError:
    """Return the error for a `model_type` that is not supported."""
    kind, supported = keys.data.get("model_type"), ", ".join(MODEL_CLASSES)
    if not isinstance(kind, str):
        return keys.error("model_type", f"a supported architecture: {supported}")
    return keys.unsupported(f"the model_type {kind[:40]!r}", MODEL_CLASSES)


def _check_purpose(keys: ConfigReader, *, bidirectional: bool = False) -> None:
    """Raise if a key changes the result and cannot be expressed in a `Config`."""
    classes = keys.data.get("architectures") or []
    supported = sorted(set(MODEL_CLASSES.values()))
    if not isinstance(classes, list):
        raise keys.error("architectures", f"a list of {', '.join(supported)}")
    for name in classes:
        if not isinstance(name, str):
            raise keys.error("architectures", f"a list of {', '.join(supported)}")
        if name not in supported:
            raise keys.unsupported(f"the class {name[:60]}", supported)
    keys.choice("attention_bias", False)
    if not bidirectional and keys.data.get("use_bidirectional_attention") is True:
        raise keys.unsupported("bidirectional attention (EmbeddingGemma)", ("models that generate text",))
    keys.choice("use_bidirectional_attention", *((None, True) if bidirectional else (False, None)))
    keys.choice("hidden_activation", GELU_TANH, "gelu_new", None)
    # In the first Gemma's files `gelu` means its tanh form (huggingface/transformers#29402); later classes ignore it.
    keys.choice("hidden_act", GELU_TANH, "gelu_new", "gelu", None)


def read_generation_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read a `generation_config.json`: check the known keys that are not null, and leave out others.

    Other programs write -1 for an id that is not set and for no top-k, and whole numbers as reals.

    Returns:
        Any of do_sample, temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, max_length,
        bos_token_id, pad_token_id and eos_token_id (one id or a list), as they are in such a file.

    Raises:
        CheckpointError: A known key has a value that is not allowed.
    """
    given = {key: _whole(value) for key, value in data.items() if value is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    keys = ConfigReader({key: value for key, value in given.items() if value != -1 or key not in _UNSET}, where)
    values: dict[str, Any] = {}
    for key in keys.data:
        match key:
            case "do_sample":
                values[key] = keys.boolean(key, False)
            case "temperature":
                values[key] = keys.real(key, least=0)
            case "top_p" | "min_p":
                values[key] = keys.real(key, least=0, most=1)
            case "repetition_penalty":
                values[key] = keys.real(key)
            case "top_k" | "bos_token_id" | "pad_token_id":
                values[key] = keys.integer(key, least=0)
            case "max_new_tokens" | "max_length":
                values[key] = keys.integer(key, most=MAX_POSITIONS)
            case "eos_token_id":
                values[key] = _token_ids(keys)
            case _:
                pass
    return values


def _token_ids(keys: ConfigReader) -> int | list[int]:
    ids = keys.data["eos_token_id"]
    if not isinstance(ids, list):
        return keys.integer("eos_token_id", least=0)
    if not ids or len(ids) > 256:
        raise keys.error("eos_token_id", "one token id or a list of them")
    return [
        ConfigReader({"eos_token_id": id_}, keys.where).integer("eos_token_id", least=0) for id_ in map(_whole, ids)
    ]


_UNSET = ("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "max_length")
"""Keys for which -1 means that they are not set."""


def _whole(value: Any) -> Any:
    """Return a whole number that is written as a real as an integer, and any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
