"""Read and write the `config.json` of RecurrentGemma.

Keys and their defaults: huggingface/transformers
`models/recurrent_gemma/configuration_recurrent_gemma.py` (5.23).
"""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from gemwright.checkpoint.configs.huggingface_text import GELU_TANH, ROPE_KEYS, read_rope, rope_parameters
from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, cannot_write
from gemwright.checkpoint.configs.uniform import check_heads
from gemwright.errors import CheckpointError
from gemwright.families import RECURRENTGEMMA
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, pattern

RECURRENT_CLASSES = {
    family.text_model.model_type: family.text_model.model_class for family in (RECURRENTGEMMA,) if family.text_model
}
"""The class of its `model_type`."""
_KINDS = ("recurrent", "attention")
_PATTERN = ["recurrent", "recurrent", "attention"]


def read_recurrent(keys: ConfigReader, *, tied: bool) -> Config:
    """Read a RecurrentGemma.

    Raises:
        CheckpointError: A key is missing or has a value that is not allowed.
    """
    width = keys.integer("hidden_size")
    depth = keys.integer("num_hidden_layers", most=MAX_LAYERS)
    keys.choice("embeddings_scale_by_sqrt_dim", True)
    attention = _attention(keys, width)
    recurrent = Recurrent(
        width=width if keys.data.get("lru_width") is None else keys.integer("lru_width"),
        blocks=attention.heads,
        conv_width=keys.integer("conv1d_width", 4, most=1024),
    )
    if recurrent.width % recurrent.blocks:
        raise keys.error("lru_width", f"a multiple of the {recurrent.blocks} heads")
    mlp = Mlp(keys.integer("intermediate_size", least=2) // 2, bias=True)  # the key counts both branches
    layers = {"recurrent": Layer(recurrent, mlp), "attention": Layer(attention, mlp)}
    return Config(
        width=width,
        vocab=keys.integer("vocab_size", 256_000),
        layers=pattern(depth, *(layers[kind] for kind in _block_types(keys))),
        max_length=MAX_POSITIONS,  # its state does not grow
        final_soft_cap=keys.real("logits_soft_cap", 30.0),
        tied=tied,
        norm_eps=keys.real("rms_norm_eps", 1e-6),
        embed_scale=_embed_scale(width),
    )


def write_recurrent(config: Config, dtype: str) -> dict[str, Any]:
    """Return the keys of a RecurrentGemma for transformers 4.50 and later.

    Raises:
        CheckpointError: Its architecture does not compute the same as the model.
    """
    ((model_type, model_class),) = RECURRENT_CLASSES.items()
    attention, recurrent = _mixers(config)
    kinds = ["recurrent" if isinstance(layer.mixer, Recurrent) else "attention" for layer in config.layers]
    rope = {"partial_rotary_factor": attention.rope.fraction}
    data: dict[str, Any] = {
        "architectures": [model_class],
        "model_type": model_type,
        "torch_dtype": dtype,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": 2 * config.layers[0].mlp.hidden,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "attention_window_size": (attention.window or 0) - 1,
        "block_types": _PATTERN if kinds == [_PATTERN[i % 3] for i in range(len(kinds))] else kinds,
        "lru_width": recurrent.width,
        "conv1d_width": recurrent.conv_width,
        "logits_soft_cap": config.final_soft_cap,
        "rms_norm_eps": config.norm_eps,
        "embeddings_scale_by_sqrt_dim": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied,
        "hidden_activation": GELU_TANH,
        "rope_theta": attention.rope.base,
        "rope_parameters": rope_parameters(attention.rope) | rope,
    } | rope
    try:
        described = read_recurrent(ConfigReader(data, ""), tied=config.tied)
    except CheckpointError:
        described = None
    if config != described:
        raise cannot_write("transformers' RecurrentGemma has no keys for all of its numbers")
    return data


def _attention(keys: ConfigReader, width: int) -> Attention:
    heads = keys.integer("num_attention_heads", 10, most=width)
    kv_heads = heads if keys.data.get("num_key_value_heads") is None else keys.integer("num_key_value_heads")
    head_dim = keys.integer("head_dim", width // heads)
    if head_dim != width // heads:
        raise keys.error("head_dim", f"{width // heads}, the width divided by the heads")
    check_heads(heads, kv_heads, head_dim, keys.where)
    group = keys.mapping("rope_parameters", *ROPE_KEYS, "partial_rotary_factor")
    fraction_keys = group if "partial_rotary_factor" in group.data else keys
    fraction = fraction_keys.real("partial_rotary_factor", 0.5, most=1.0)
    if int(head_dim * fraction) % 2 or not int(head_dim * fraction):
        raise fraction_keys.error("partial_rotary_factor", f"a fraction of {head_dim} that is a positive even number")
    # In the released code a token attends to itself and to this many before it; in transformers to one fewer.
    window = keys.integer("attention_window_size", 2048, most=MAX_POSITIONS - 1) + 1
    rope = replace(read_rope(group, keys, "rope_theta", 1e4), fraction=fraction)
    return Attention(heads, kv_heads, head_dim, query_scalar=head_dim, rope=rope, window=window, out_bias=True)


def _block_types(keys: ConfigReader) -> list[str]:
    key = "block_types" if "block_types" in keys.data else "_block_types"
    kinds = keys.data.get(key, _PATTERN)
    if not isinstance(kinds, list) or not 0 < len(kinds) <= MAX_LAYERS or any(kind not in _KINDS for kind in kinds):
        raise keys.error(key, f"a list of {' and '.join(_KINDS)}")
    return kinds


def _mixers(config: Config) -> tuple[Attention, Recurrent]:
    """Return a mixer of each kind; if the model has none of a kind, one that fits the other."""
    attention = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)), None)
    recurrent = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Recurrent)), None)
    if attention is None:
        blocks = recurrent.blocks if recurrent else 1
        attention = Attention(blocks, 1, config.width // blocks, config.width // blocks, window=2049)
    return attention, recurrent or Recurrent(config.width, attention.heads)


def _embed_scale(width: int) -> float:
    """Return the square root of the width, rounded to bfloat16 for activations of every dtype."""
    return float(np.sqrt(np.float32(width)).astype(ml_dtypes.bfloat16))
