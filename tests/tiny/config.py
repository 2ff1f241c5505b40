"""Tiny configurations, one for every kind of attention in the family, and random weights for them."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from gemwright import tree
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern
from gemwright.model.params import ModelWeights, init
from tests.tiny.vocabulary import make_vocabulary

VOCAB = 97
WINDOW = 7


def _layers(depth: int, *mixers: Attention, post_norms: bool = True) -> tuple[Layer, ...]:
    return pattern(depth, *(Layer(mixer, Mlp(48), post_norms) for mixer in mixers))


_GROUPED = Attention(4, 2, head_dim=16, query_scalar=24.0)
_CAPPED = replace(_GROUPED, soft_cap=5.0)
_QK_NORM = Attention(4, 1, head_dim=16, query_scalar=16.0, rope=Rope(1e6, 8.0), qk_norm=True)
CONFIGS = {
    "multi-query": Config(32, VOCAB, _layers(2, Attention(4, 1, 16, 16.0), post_norms=False), max_length=256),
    "capped": Config(
        32, VOCAB, _layers(2, replace(_CAPPED, window=WINDOW), _CAPPED), max_length=256, final_soft_cap=10.0
    ),
    "qk-norm": Config(32, VOCAB, _layers(2, replace(_QK_NORM, window=WINDOW, rope=Rope()), _QK_NORM), max_length=256),
    "local only": Config(32, VOCAB, _layers(1, replace(_GROUPED, window=WINDOW)), max_length=256),
}


def make_config(context: int = 4096) -> Config:
    """Return two layers of Gemma 3, one local and one global, over the tiny vocabulary."""
    everything = Attention(heads=2, kv_heads=1, head_dim=16, query_scalar=16, rope=Rope(1e6), qk_norm=True)
    local = Attention(heads=2, kv_heads=1, head_dim=16, query_scalar=16, window=16, qk_norm=True)
    layers = tuple(Layer(mixer, Mlp(64), post_norms=True) for mixer in (local, everything))
    return Config(width=32, vocab=make_vocabulary().size, layers=layers, max_length=context, tied=False)


def make_weights(config: Config, seed: int = 0, dtype: Any = jnp.float32) -> ModelWeights:
    """Return random weights with norm gains other than zero, so that every parameter matters."""
    numbers = np.random.default_rng(seed)

    def shake(path: str, leaf: jax.Array) -> jax.Array:
        noise = 0.3 * numbers.standard_normal(leaf.shape) if path.endswith("norm") else 0.0
        return (leaf + noise).astype(dtype)

    return tree.map_with_path(shake, init(config, jax.random.key(seed)))


CONFIG_NUMBERS = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([2, 4]),
        "kv_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([16, 32]),
        "width": st.sampled_from([32, 64]),
        "query_scale": st.sampled_from(["head_dim", "width per head", "other"]),
        "window": st.sampled_from([3, 8]),
        "local": st.lists(st.booleans(), min_size=1, max_size=9),
        "base": st.sampled_from([1e4, 5e5]),
        "scale": st.sampled_from([1.0, 4.0]),
        "local_rope": st.tuples(st.sampled_from([1e4, 2e4]), st.sampled_from([1.0, 1.0, 2.0])),
        "soft_cap": st.sampled_from([None, 50.0]),
        "final_soft_cap": st.sampled_from([None, 30.0]),
        "tied": st.booleans(),
        "norm_eps": st.sampled_from([1e-6, 1e-5]),
    }
)


def make_drawn_config(kind: str, draw: dict[str, Any]) -> Config:
    """Return a configuration that transformers can express, from values drawn from `CONFIG_NUMBERS`."""
    gemma1, gemma3 = kind == "gemma", kind == "gemma3"
    scalars = {"head_dim": draw["head_dim"], "width per head": draw["width"] // draw["heads"], "other": 24}
    everything = Attention(
        draw["heads"],
        draw["kv_heads"],
        draw["head_dim"],
        query_scalar=draw["head_dim"] if gemma1 else scalars[draw["query_scale"]],
        rope=Rope(draw["base"], draw["scale"]),
        soft_cap=draw["soft_cap"] if kind == "gemma2" else None,
        qk_norm=gemma3,
    )
    local = replace(everything, window=draw["window"])
    if gemma3:
        local = replace(local, rope=Rope(*draw["local_rope"]))
    mixers = [local if flag and not gemma1 else everything for flag in draw["local"]]
    return Config(
        width=draw["width"],
        vocab=100,
        layers=tuple(Layer(mixer, Mlp(48), post_norms=not gemma1) for mixer in mixers),
        max_length=64,
        final_soft_cap=None if gemma1 else draw["final_soft_cap"],
        tied=draw["tied"],
        norm_eps=draw["norm_eps"],
    )
