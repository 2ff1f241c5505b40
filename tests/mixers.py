"""One tiny configuration for every way in which the family mixes tokens, and random weights for it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import tree
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern
from gemwright.model.params import ModelWeights, init

VOCAB = 97
WINDOW = 7


def _layers(depth: int, *mixers: Attention, post_norms: bool = True) -> tuple[Layer, ...]:
    return pattern(depth, *(Layer(mixer, Mlp(48), post_norms) for mixer in mixers))


_GROUPED = Attention(4, 2, head_dim=16, query_scalar=24.0)
_CAPPED = replace(_GROUPED, soft_cap=5.0)
_QK_NORM = Attention(4, 1, head_dim=16, query_scalar=16.0, rope=Rope(1e6, 8.0), qk_norm=True)
CONFIGS = {
    "multi-query": Config(32, VOCAB, _layers(2, Attention(4, 1, 16, 16.0), post_norms=False), max_length=256),
    "capped": Config(32, VOCAB, _layers(2, replace(_CAPPED, window=WINDOW), _CAPPED), max_length=256, final_soft_cap=10.0),
    "qk-norm": Config(32, VOCAB, _layers(2, replace(_QK_NORM, window=WINDOW, rope=Rope()), _QK_NORM), max_length=256),
    "local only": Config(32, VOCAB, _layers(1, replace(_GROUPED, window=WINDOW)), max_length=256),
}


def weights(config: Config, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Random weights whose norm gains are not zero, so that every part has a say."""
    numbers = np.random.default_rng(seed)

    def shake(path: str, leaf: jax.Array) -> jax.Array:
        noise = 0.3 * numbers.standard_normal(leaf.shape) if path.endswith("norm") else 0.0
        return (leaf + noise).astype(dtype)

    return tree.map_with_path(shake, init(config, jax.random.key(seed)))
