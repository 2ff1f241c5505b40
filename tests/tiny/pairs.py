"""Tiny random text models as a pair: transformers' model and gemwright's, loaded from the folder that it saves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VaultGemmaConfig,
)

from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.precision import parse_precision
from tests.helpers import random_ids
from tests.tiny.hf import make_random_model

torch.set_num_threads(1)  # more threads only wait for each other on such small products
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


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma, multi-query": lambda: GemmaConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, **_SIZES
    ),
    "gemma, full heads": lambda: GemmaConfig(
        num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, **_SIZES
    ),
    "gemma2": lambda: Gemma2Config(
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=8.0,
        **_SIZES,
    ),
    "vaultgemma": lambda: VaultGemmaConfig(
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=8.0,
        **_SIZES,
    ),
    "gemma3": lambda: Gemma3TextConfig(
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
    ),
}


@dataclass(frozen=True)
class Pair:
    """The same model in transformers and in gemwright, in float32."""

    folder: Path
    theirs: PreTrainedModel
    config: Config
    weights: ModelWeights
    tokens: np.ndarray
    """[2, LENGTH] random ids."""


def make_pair(name: str, folder: Path) -> Pair:
    """Return a model with weights so large that every part of it matters, saved to `folder` and loaded from it."""
    theirs = make_random_model(CONFIGS[name](), lambda key: (0.0, 0.3 if key.endswith("norm.weight") else 0.15))
    theirs.save_pretrained(folder)
    config, weights = load(folder, jnp.float32)
    return Pair(folder, theirs, config, weights, random_ids(VOCAB, (2, LENGTH), seed=1))


def load(folder: Path, dtype: Any) -> tuple[Config, ModelWeights]:
    """Load config and weights of a folder as `gemwright.load` does."""
    checkpoint = open_checkpoint(folder)
    return checkpoint.config, load_weights(
        checkpoint.file, checkpoint.mapping, checkpoint.config, parse_precision(dtype)
    )


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a float32 array."""
    return tensor.detach().float().numpy()
