"""Every published variant, without its memory: parameter counts, shapes and the size of the state."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from gemwright import tree
from gemwright.model.config import Attention, Config, Recurrent, stages
from gemwright.model.params import ModelWeights, init, param_specs, parameter_count
from gemwright.model.state import abstract_state, state_bytes
from gemwright.model.transformer import forward, logits
from gemwright.variants import VARIANTS

TOWER_224, TOWER_448, TOWER_896 = 412_442_352, 413_327_088, 416_866_032  # big_vision `models/vit.py`
EMBEDDING_AND_REST = {
    # KerasHub's presets give the totals; embedding and rest follow from the shapes of google/gemma_pytorch.
    "gemma-2b": (524_288_000, 1_981_884_416),
    "gemma-7b": (786_432_000, 7_751_248_896),
    "codegemma-2b": (524_288_000, 1_981_884_416),
    "codegemma-7b": (786_432_000, 7_751_248_896),
    "gemma-2-2b": (589_824_000, 2_024_517_888),
    "gemma-2-9b": (917_504_000, 8_324_201_984),
    "gemma-2-27b": (1_179_648_000, 26_047_480_320),
    "vaultgemma-1b": (294_912_000, 743_829_120),
    "gemma-3-270m": (167_772_160, 100_326_016),
    "gemma-3-1b": (301_989_888, 697_896_064),
    "gemma-3-4b": (671_088_640, 3_209_010_688 + TOWER_896 + 2_950_272),
    "gemma-3-12b": (1_006_632_960, 10_759_155_456 + TOWER_896 + 4_424_832),
    "gemma-3-27b": (1_409_286_144, 25_599_716_096 + TOWER_896 + 6_194_304),
    "recurrentgemma-2b": (655_360_000, 2_027_502_080),
    "recurrentgemma-9b": (1_048_576_000, 7_531_401_216),
    # A decoder without its embedding, the tower and the projector.
    "paligemma-3b-224": (526_647_296, 1_981_884_416 + TOWER_224 + 2_361_344),
    "paligemma-3b-448": (526_647_296, 1_981_884_416 + TOWER_448 + 2_361_344),
    "paligemma-3b-896": (526_647_296, 1_981_884_416 + TOWER_896 + 2_361_344),
    "paligemma2-3b-224": (592_478_208, 2_024_517_888 + TOWER_224 + 2_656_512),
    "paligemma2-3b-448": (592_478_208, 2_024_517_888 + TOWER_448 + 2_656_512),
    "paligemma2-3b-896": (592_478_208, 2_024_517_888 + TOWER_896 + 2_656_512),
    "paligemma2-10b-224": (921_632_768, 8_324_201_984 + TOWER_224 + 4_132_352),
    "paligemma2-10b-448": (921_632_768, 8_324_201_984 + TOWER_448 + 4_132_352),
    "paligemma2-10b-896": (921_632_768, 8_324_201_984 + TOWER_896 + 4_132_352),
    "paligemma2-28b-224": (1_184_956_416, 26_047_480_320 + TOWER_224 + 5_313_024),
    "paligemma2-28b-448": (1_184_956_416, 26_047_480_320 + TOWER_448 + 5_313_024),
    "paligemma2-28b-896": (1_184_956_416, 26_047_480_320 + TOWER_896 + 5_313_024),
}
TEXT_ONLY = {"gemma-3-4b": 3_880_099_328, "gemma-3-12b": 11_765_788_416, "gemma-3-27b": 27_009_002_240}
GLOBAL_LAYERS = {
    "vaultgemma-1b": range(26),
    "gemma-2-2b": range(1, 26, 2),
    "gemma-2-9b": range(1, 42, 2),
    "gemma-2-27b": range(1, 46, 2),
    "gemma-3-270m": [5, 11, 17],
    "gemma-3-1b": [5, 11, 17, 23],
    "gemma-3-4b": [5, 11, 17, 23, 29],
    "gemma-3-12b": [5, 11, 17, 23, 29, 35, 41, 47],
    "gemma-3-27b": [5, 11, 17, 23, 29, 35, 41, 47, 53, 59],
}
GLOBAL_LAYERS |= {
    f"paligemma2-{size}-{pixels}": GLOBAL_LAYERS[f"gemma-2-{decoder}"]
    for size, decoder in (("3b", "2b"), ("10b", "9b"), ("28b", "27b"))
    for pixels in (224, 448, 896)
}
GLOBAL_LAYERS |= {"recurrentgemma-2b": [], "recurrentgemma-9b": []}
QUERY_SCALARS = {"gemma-2-27b": 144, "gemma-3-27b": 168}  # all others: 256, their head width
QUERY_SCALARS |= {f"paligemma2-28b-{pixels}": 144 for pixels in (224, 448, 896)}
SHAPES = [name for name in VARIANTS if not name.startswith("codegemma") and not name.endswith(("-448", "-896"))]

variants = pytest.mark.parametrize("name", VARIANTS)
shapes = pytest.mark.parametrize("name", SHAPES)  # one of those that differ in nothing that matters to a decoder


@functools.cache
def abstract_weights(name: str) -> ModelWeights:
    """Those that `init` would make, without their values."""
    return jax.eval_shape(lambda: init(VARIANTS[name].config, jax.random.key(0), jnp.bfloat16))


def attention_of(config: Config) -> list[Attention]:
    return [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]


def test_the_table_is_complete():
    assert VARIANTS.keys() == EMBEDDING_AND_REST.keys()
    names = [name for variant in VARIANTS.values() for name in variant.checkpoints]
    assert len(names) == len(set(names))


@variants
def test_parameter_counts_are_the_published_ones(name: str):
    config = VARIANTS[name].config
    embedding, rest = EMBEDDING_AND_REST[name]
    assert param_specs(config).embed.size == embedding
    assert parameter_count(config) == VARIANTS[name].parameters == embedding + rest


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_decoders_alone_have_the_published_counts_too(name: str):
    assert parameter_count(replace(VARIANTS[name].config, vision=None)) == TEXT_ONLY[name]


@variants
def test_initial_weights_have_the_shapes_of_the_table(name: str):
    weights, declared = abstract_weights(name), tree.flatten(param_specs(VARIANTS[name].config))
    assert {path: leaf.shape for path, leaf in tree.flatten(weights).items()} == {
        path: param.shape for path, param in declared.items()
    }
    assert all(len(param.axes) == len(param.shape) for param in declared.values())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights)) == VARIANTS[name].parameters


@shapes
def test_an_abstract_pass_with_a_state_has_the_right_shapes(name: str):
    config, weights = VARIANTS[name].config, abstract_weights(name)
    state = abstract_state(config, 2, config.max_length, jnp.bfloat16)
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


@shapes
def test_layers_never_store_more_than_their_window(name: str):
    config = VARIANTS[name].config
    for capacity in (256, config.max_length):
        state = abstract_state(config, 3, capacity, jnp.bfloat16)
        stored = 0
        for layer, kept in zip(config.layers, state.layers, strict=True):
            mixer = layer.mixer
            if isinstance(mixer, Recurrent):
                assert kept.hidden.shape == (3, mixer.width)
                assert kept.inputs.shape == (3, mixer.conv_width - 1, mixer.width)
                stored += 3 * mixer.width * (4 + 2 * (mixer.conv_width - 1))  # the first in float32
                continue
            slots = capacity if mixer.window is None else min(mixer.window, capacity)
            assert kept.keys.shape == kept.values.shape == (3, mixer.kv_heads, slots, mixer.head_dim)
            stored += 2 * 2 * 3 * mixer.kv_heads * slots * mixer.head_dim
        assert state_bytes(config, 3, capacity, jnp.bfloat16) == stored + 3 * 4  # and an int32 length for each row


@variants
def test_local_and_global_layers_are_in_the_published_order(name: str):
    layers = VARIANTS[name].config.layers
    everywhere = [i for i, x in enumerate(layers) if isinstance(x.mixer, Attention) and x.mixer.window is None]
    assert everywhere == list(GLOBAL_LAYERS.get(name, range(len(layers))))


@variants
def test_queries_are_scaled_by_the_published_scalar(name: str):
    assert {mixer.query_scalar for mixer in attention_of(VARIANTS[name].config)} == {QUERY_SCALARS.get(name, 256)}


@pytest.mark.parametrize(
    ("name", "width", "blocks"), [("recurrentgemma-2b", 2560, 10), ("recurrentgemma-9b", 4096, 16)]
)
def test_every_third_layer_of_a_recurrentgemma_attends(name: str, width: int, blocks: int):
    config = VARIANTS[name].config
    for index, layer in enumerate(config.layers):
        assert (layer.mlp.hidden, layer.mlp.bias) == (3 * width, True)
        if index % 3 == 2:
            assert isinstance(layer.mixer, Attention)
            assert (layer.mixer.heads, layer.mixer.kv_heads, layer.mixer.window) == (blocks, 1, 2049)
            assert (layer.mixer.rope.fraction, layer.mixer.out_bias) == (0.5, True)
        else:
            assert layer.mixer == Recurrent(width, blocks, conv_width=4)
    assert isinstance(config.layers[-1].mixer, Recurrent)
    assert config.embed_scale == float(jnp.sqrt(jnp.float32(width)).astype(jnp.bfloat16))


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.config.vision])
def test_images_become_the_published_number_of_tokens(name: str):
    vision = VARIANTS[name].config.vision
    assert vision is not None
    if name.startswith("gemma-3"):
        assert (vision.image_size, vision.grid, vision.tokens, vision.projector) == (896, 64, 256, "normed")
    else:
        assert (str(vision.image_size), vision.tokens, vision.projector) == (name[-3:], vision.grid**2, "affine")


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("gemma-3")])
def test_rope_scaling_is_for_the_global_layers_of_the_large_ones(name: str):
    scale = 1.0 if name in ("gemma-3-270m", "gemma-3-1b") else 8.0
    for mixer in attention_of(VARIANTS[name].config):
        assert (mixer.rope.base, mixer.rope.scale) == ((1e6, scale) if mixer.window is None else (1e4, 1.0))


def test_stages_are_the_repeated_patterns():
    found = {name: stages(variant.config.layers) for name, variant in VARIANTS.items()}
    sizes = {name: [(len(pattern), repeats) for pattern, repeats in parts] for name, parts in found.items()}
    assert sizes["gemma-2b"] == [(1, 18)]
    assert sizes["gemma-2-2b"] == [(2, 13)]
    assert sizes["gemma-3-1b"] == [(6, 4), (2, 1)]
    assert sizes["recurrentgemma-2b"] == [(3, 8), (2, 1)]
    for name, parts in found.items():
        assert VARIANTS[name].config.layers == tuple(layer for pattern, n in parts for layer in pattern * n)
