"""A tiny random RecurrentGemma in transformers, in gemwright and in DeepMind's package."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recurrentgemma import common
from recurrentgemma import jax as griffin
from transformers import PreTrainedModel, RecurrentGemmaConfig

from gemwright.model.config import Config, Layer, Recurrent
from gemwright.model.params import AttentionWeights, ModelWeights
from tests.helpers import random_ids
from tests.tiny.hf import make_random_model
from tests.tiny.pairs import LENGTH, VOCAB, load

WIDTH, DEPTH, HEADS, RECURRENT, HIDDEN, WINDOW = 48, 5, 3, 60, 72, 8

_SETTINGS = RecurrentGemmaConfig(
    num_hidden_layers=DEPTH,
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=2 * HIDDEN,  # both branches
    num_attention_heads=HEADS,
    num_key_value_heads=1,
    lru_width=RECURRENT,
    attention_window_size=WINDOW,
    logits_soft_cap=8.0,
    use_cache=False,
    attn_implementation="eager",
)
_GRIFFIN = common.GriffinConfig(
    vocab_size=VOCAB,
    width=WIDTH,
    mlp_expanded_width=HIDDEN,
    num_heads=HEADS,
    lru_width=RECURRENT,
    block_types=tuple(
        common.TemporalBlockType.ATTENTION if i % 3 == 2 else common.TemporalBlockType.RECURRENT for i in range(DEPTH)
    ),
    embeddings_scale_by_sqrt_dim=True,
    attention_window_size=WINDOW,
    logits_soft_cap=8.0,
    scan_type=common.ScanType.ASSOCIATIVE_NATIVE,  # compiles fastest
)


@dataclass(frozen=True)
class Trio:
    """The same model in three implementations, in float32."""

    folder: Path
    config: Config
    """DeepMind's config: attention spans WINDOW + 1 tokens, the token itself included."""
    config_transformers: Config
    """transformers' config: attention spans WINDOW tokens."""
    weights: ModelWeights
    transformers: PreTrainedModel
    deepmind: griffin.Griffin
    deepmind_params: dict[str, Any]
    tokens: np.ndarray


def _distribution(name: str) -> tuple[float, float] | None:
    if name.endswith("recurrent_param"):  # keeps 0.9 to 0.999 of its channel a step, to the power of 8 gate
        return None
    return 0.0, 0.3 if "norm" in name or "gate_" in name or "conv" in name else 0.15


def make_trio(folder: Path) -> Trio:
    """Return a model with large weights, and decays that remember for several windows, so that every part matters."""
    model = make_random_model(_SETTINGS, _distribution)
    model.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    return Trio(
        folder,
        config,
        replace_attention(config, window=WINDOW),
        weights,
        model,
        griffin.Griffin(_GRIFFIN, gradient_checkpointing=False),
        _deepmind_params(weights),
        random_ids(VOCAB, (2, LENGTH), seed=1),
    )


def replace_attention(config: Config, **values: Any) -> Config:
    """Replace values of every attention layer."""

    def change(layer: Layer) -> Layer:
        return layer if isinstance(layer.mixer, Recurrent) else replace(layer, mixer=replace(layer.mixer, **values))

    return replace(config, layers=tuple(change(layer) for layer in config.layers))


def _deepmind_params(weights: ModelWeights) -> dict[str, Any]:
    blocks = {
        f"blocks.{index}": {
            "temporal_pre_norm": {"scale": layer.mixer_norm},
            "channel_pre_norm": {"scale": layer.mlp_norm},
            "mlp_block": {
                "ffw_up": {
                    "w": jnp.stack([layer.mlp.gate.T, layer.mlp.up.T]),
                    "b": jnp.stack([layer.mlp.gate_bias, layer.mlp.up_bias])[:, None, None],
                },
                "ffw_down": _dense(layer.mlp.down, layer.mlp.down_bias),
            },
            **(_attention(layer.mixer) if isinstance(layer.mixer, AttentionWeights) else _recurrent(layer.mixer)),
        }
        for index, layer in enumerate(weights.layers)
    }
    return {
        "params": {
            "embedder": {"input_embedding": weights.embed},
            "final_norm": {"scale": weights.final_norm},
            **blocks,
        }
    }


def _attention(mixer: Any) -> dict[str, Any]:
    projections = {f"proj_{part}": _dense(getattr(mixer, part).reshape(-1, WIDTH)) for part in "qkv"}
    return {"attention_block": projections | {"proj_final": _dense(mixer.o.reshape(WIDTH, -1), mixer.o_bias)}}


def _recurrent(mixer: Any) -> dict[str, Any]:
    return {
        "recurrent_block": {
            "linear_x": _dense(mixer.x, mixer.x_bias),
            "linear_y": _dense(mixer.y, mixer.y_bias),
            "linear_out": _dense(mixer.out, mixer.out_bias),
            "conv_1d": {"w": mixer.conv, "b": mixer.conv_bias},
            "rg_lru": {
                "a_param": mixer.decay,
                "input_gate": {"w": mixer.input_gate, "b": mixer.input_gate_bias},
                "a_gate": {"w": mixer.decay_gate, "b": mixer.decay_gate_bias},
            },
        }
    }


def _dense(weight: jax.Array, bias: jax.Array | None = None) -> dict[str, jax.Array]:
    return {"kernel": weight.T} if bias is None else {"kernel": weight.T, "bias": bias}
