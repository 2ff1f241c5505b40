"""One tiny random RecurrentGemma three times over: transformers', gemwright's from its files, and DeepMind's own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from recurrentgemma import common
from recurrentgemma import jax as griffin
from reference import load
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from gemwright.model.config import Config, Layer, Recurrent
from gemwright.model.params import AttentionWeights, ModelWeights

torch.set_num_threads(1)  # such small products only wait for each other on more
VOCAB, WIDTH, DEPTH, HEADS, RECURRENT, HIDDEN, WINDOW = 101, 48, 5, 3, 60, 72, 8
LENGTH = 60
"""Tokens of a sequence: several windows."""

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
    scan_type=common.ScanType.ASSOCIATIVE_NATIVE,  # the quickest to compile
)


@dataclass(frozen=True)
class Trio:
    """The same model on three sides, in float32."""

    folder: Path
    config: Config
    """DeepMind's: its attention sees WINDOW + 1 tokens, the token itself included."""
    config_transformers: Config
    """The same with WINDOW."""
    weights: ModelWeights
    transformers: RecurrentGemmaForCausalLM
    deepmind: griffin.Griffin
    deepmind_params: dict[str, Any]
    tokens: np.ndarray


def make(folder: Path) -> Trio:
    """A model in which every part matters: large weights, and decays that remember for several windows."""
    torch.manual_seed(0)
    model = RecurrentGemmaForCausalLM(_SETTINGS).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("recurrent_param"):  # keeps 0.9 to 0.999 of its channel a step, to the power of 8 gate
                parameter.normal_(0.0, 0.3 if "norm" in name or "gate_" in name or "conv" in name else 0.15)
    model.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
    return Trio(
        folder,
        config,
        attention(config, window=WINDOW),
        weights,
        model,
        griffin.Griffin(_GRIFFIN, gradient_checkpointing=False),
        _deepmind_params(weights),
        tokens,
    )


def attention(config: Config, **values: Any) -> Config:
    """The same model with other numbers in its attention layers."""

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
