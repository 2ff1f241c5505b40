"""Every published variant, without its memory: parameter counts, shapes and the size of the state."""

import math

import jax
import jax.numpy as jnp
import pytest

from gemwright import tree
from gemwright.model.spec import init, parameter_count, spec
from gemwright.model.state import abstract_state, state_bytes
from gemwright.model.transformer import forward, logits
from gemwright.variants import VARIANTS

EMBEDDING_AND_REST = {
    # KerasHub's presets give the totals; embedding and rest follow from the shapes of google/gemma_pytorch.
    "gemma-2b": (524_288_000, 1_981_884_416),
    "gemma-7b": (786_432_000, 7_751_248_896),
    "codegemma-2b": (524_288_000, 1_981_884_416),
    "codegemma-7b": (786_432_000, 7_751_248_896),
    "gemma-2-2b": (589_824_000, 2_024_517_888),
    "gemma-2-9b": (917_504_000, 8_324_201_984),
    "gemma-2-27b": (1_179_648_000, 26_047_480_320),
    "gemma-3-270m": (167_772_160, 100_326_016),
    "gemma-3-1b": (301_989_888, 697_896_064),
    "gemma-3-4b": (671_088_640, 3_209_010_688),
    "gemma-3-12b": (1_006_632_960, 10_759_155_456),
    "gemma-3-27b": (1_409_286_144, 25_599_716_096),
}
GLOBAL_LAYERS = {
    "gemma-2-2b": range(1, 26, 2),
    "gemma-2-9b": range(1, 42, 2),
    "gemma-2-27b": range(1, 46, 2),
    "gemma-3-270m": [5, 11, 17],
    "gemma-3-1b": [5, 11, 17, 23],
    "gemma-3-4b": [5, 11, 17, 23, 29],
    "gemma-3-12b": [5, 11, 17, 23, 29, 35, 41, 47],
    "gemma-3-27b": [5, 11, 17, 23, 29, 35, 41, 47, 53, 59],
}
QUERY_SCALARS = {"gemma-2-27b": 144, "gemma-3-27b": 168}  # all others: 256, their head width

variants = pytest.mark.parametrize("name", VARIANTS)


def test_the_table_is_complete():
    assert VARIANTS.keys() == EMBEDDING_AND_REST.keys()
    names = [name for variant in VARIANTS.values() for name in variant.checkpoints]
    assert len(names) == len(set(names))


@variants
def test_parameter_counts_are_the_published_ones(name: str):
    config = VARIANTS[name].config
    embedding, rest = EMBEDDING_AND_REST[name]
    assert spec(config).embed.size == embedding
    assert parameter_count(config) == VARIANTS[name].parameters == embedding + rest


@variants
def test_initial_weights_have_the_shapes_of_the_table(name: str):
    config = VARIANTS[name].config
    weights = jax.eval_shape(lambda: init(config, jax.random.key(0), jnp.bfloat16))
    declared = tree.flatten(spec(config))
    assert {path: leaf.shape for path, leaf in tree.flatten(weights).items()} == {
        path: param.shape for path, param in declared.items()
    }
    assert all(len(param.axes) == len(param.shape) for param in declared.values())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights)) == VARIANTS[name].parameters


@variants
def test_an_abstract_pass_with_a_state_has_the_right_shapes(name: str):
    config = VARIANTS[name].config
    weights = jax.eval_shape(lambda: init(config, jax.random.key(0), jnp.bfloat16))
    state = abstract_state(config, 2, config.context, jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)

    def run(weights, tokens, state):
        hidden, after = forward(config, weights, tokens, state)
        return hidden, logits(config, weights, hidden), after

    hidden, scores, after = jax.eval_shape(run, weights, tokens, state)
    assert (hidden.shape, hidden.dtype) == ((2, 16, config.width), jnp.bfloat16)
    assert (scores.shape, scores.dtype) == ((2, 16, config.vocab), jnp.float32)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


@variants
def test_local_layers_never_store_more_than_their_window(name: str):
    config = VARIANTS[name].config
    for capacity in (256, config.context):
        state = abstract_state(config, 3, capacity, jnp.bfloat16)
        for layer, kv in zip(config.layers, state.layers, strict=True):
            mixer = layer.mixer
            slots = capacity if mixer.window is None else min(mixer.window, capacity)
            assert kv.keys.shape == kv.values.shape == (3, mixer.kv_heads, slots, mixer.head_dim)
        stored = sum(2 * 2 * 3 * kv.keys.shape[1] * kv.keys.shape[2] * kv.keys.shape[3] for kv in state.layers)
        assert state_bytes(config, 3, capacity, jnp.bfloat16) == stored + 3 * 4  # and an int32 length for each row


@variants
def test_local_and_global_layers_stand_where_they_were_published(name: str):
    layers = VARIANTS[name].config.layers
    everywhere = [index for index, layer in enumerate(layers) if layer.mixer.window is None]
    assert everywhere == list(GLOBAL_LAYERS.get(name, range(len(layers))))


@variants
def test_queries_are_scaled_by_the_published_scalar(name: str):
    assert {layer.mixer.query_scalar for layer in VARIANTS[name].config.layers} == {QUERY_SCALARS.get(name, 256)}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("gemma-3")])
def test_rope_scaling_is_for_the_global_layers_of_the_large_ones(name: str):
    scale = 1.0 if name in ("gemma-3-270m", "gemma-3-1b") else 8.0
    for layer in VARIANTS[name].config.layers:
        rope = layer.mixer.rope
        assert (rope.base, rope.scale) == ((1e6, scale) if layer.mixer.window is None else (1e4, 1.0))
