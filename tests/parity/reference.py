"""Tiny random models of transformers, each saved and read back by gemwright: the two sides of a comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
)

from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights

torch.set_num_threads(1)  # such small products only wait for each other on more
VOCAB = 101
WINDOW = 8
LENGTH = 60
"""Tokens of a sequence: several windows."""
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}


def _gemma(heads: int, kv_heads: int) -> PreTrainedModel:
    return GemmaForCausalLM(
        GemmaConfig(num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=kv_heads, **_SIZES)
    )


def _gemma2() -> PreTrainedModel:
    config = Gemma2Config(
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=8.0,
        **_SIZES,
    )
    return Gemma2ForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    config = Gemma3TextConfig(
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        },
        **_SIZES,
    )
    return Gemma3ForCausalLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma, multi-query": lambda: _gemma(4, 1),
    "gemma, full heads": lambda: _gemma(3, 3),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}


@dataclass(frozen=True)
class Pair:
    """The same model on both sides, in float32."""

    folder: Path
    theirs: PreTrainedModel
    config: Config
    weights: ModelWeights
    tokens: np.ndarray
    """[2, LENGTH] random ids."""


def make(name: str, folder: Path) -> Pair:
    """A model with weights so large that every part of it matters, written by transformers and read by gemwright."""
    torch.manual_seed(0)
    theirs = MODELS[name]().eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.normal_(0.0, 0.3 if key.endswith("norm.weight") else 0.15)
    theirs.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
    return Pair(folder, theirs, config, weights, tokens)


def load(folder: Path, dtype: Any) -> tuple[Config, ModelWeights]:
    """The model of a folder, by the way that every user goes."""
    checkpoint = open_checkpoint(folder)
    return checkpoint.config, load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype)


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values in float32."""
    return tensor.detach().float().numpy()
