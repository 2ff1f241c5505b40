"""Low-rank updates over weights of any format: the layout of layers, and gradients against decoded weights."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.kernels.native import native_enabled
from gemwright.model.config import pattern
from gemwright.model.stack import layout, layout_of, stack
from gemwright.train import lora
from gemwright.train.load import load_frozen, load_trained
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate
from gemwright.weights import LoraTensor, PackedTensor
from tests.tiny.config import make_config, make_weights
from tests.tiny.vocabulary import make_vocabulary
from tests.train.cases import largest_difference, make_documents, relative, to_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")
kernels = pytest.mark.skipif(not native_enabled(), reason="the C++ kernels are not installed")
CONFIG = replace(make_config(), layers=pattern(9, *make_config().layers))
ENCODINGS = {"mlp.down": "Q5_0", "mixer.v": "BF16"}
"""Formats of some weights of layers 0, 1 and 4, as mixtures of GGUF have them."""
QUANTIZED = 3e-3
"""Tolerance of gradients with activations of 16 bits, relative to their norm."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A GGUF whose layers have different formats."""
    path, random = tmp_path_factory.mktemp("model") / "a.gguf", np.random.default_rng(0)
    tensors: list[GgufTensor] = []
    for ours, stored in map_gguf(CONFIG).items():
        values = random.normal(size=stored.shape, scale=stored.shape[-1] ** -0.5).astype(np.float32)
        encoding = "Q8_0" if len(stored.shape) > 1 else "F32"
        if ours.startswith(("layers.0.", "layers.1.", "layers.4.")):
            encoding = next((kind for name, kind in ENCODINGS.items() if ours.endswith(name)), encoding)
        tensors.append(GgufTensor(stored.name, stored.shape, encoding, [values]))
    write_gguf(path, to_gguf(CONFIG) | make_vocabulary().gguf_metadata(), tensors)
    return open_checkpoint(path)


def _shaken(adapters: lora.Adapters) -> lora.Adapters:
    random = np.random.default_rng(1)

    def shake(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.asarray(0.1 * random.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(shake, adapters)


def test_layers_are_stacked_by_pattern_and_the_rest_alone():
    assert layout("aaaa") == [[[0, 1, 2, 3]]]
    assert layout("abababa") == [[[0, 2, 4], [1, 3, 5]], [[6]]]
    assert layout("aabaabaa") == [[[0, 3], [1, 4], [2, 5]], [[6, 7]]]
    assert layout("abbbc") == [[[0]], [[1, 2, 3]], [[4]]]
    assert layout("") == []


@pytest.mark.slow
@kernels
def test_updates_over_stored_weights_have_the_gradients_of_decoded_ones(checkpoint: Checkpoint):
    packed, plain = Recipe(method="qlora", rank=3), Recipe(method="lora", rank=3)
    adapters, stored, decoded = load_trained(packed, checkpoint), *(load_frozen(r, checkpoint) for r in (packed, plain))
    assert stored is not None
    assert layout_of(stored) == [[[0]], [[1]], [[2]], [[3]], [[4]], [[5, 7], [6, 8]]]
    leaves = jax.tree.leaves(stored, is_leaf=lambda leaf: isinstance(leaf, PackedTensor))
    assert {leaf.encoding for leaf in leaves if isinstance(leaf, PackedTensor)} >= {"Q8_0", "Q5_0", "BF16"}
    batch = to_batch([make_documents((20, 9)), make_documents((31,))], length=32)
    trained = _shaken(adapters)
    found = jax.jit(functools.partial(accumulate, CONFIG, packed))(trained, stored, batch)
    expected = jax.jit(functools.partial(accumulate, CONFIG, plain))(trained, decoded, batch)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    assert 1e-7 < largest_difference(found[1], expected[1]) < QUANTIZED


def test_factors_follow_their_layers_into_any_layout():
    params = make_weights(CONFIG)
    adapters = _shaken(lora.init(CONFIG, 2, seed=0))
    expected = lora.attach(stack(CONFIG, params), adapters, 0.5)
    odd = replace(params.layers[2], mlp=replace(params.layers[2].mlp, up=_with_lora(params.layers[2].mlp.up)))
    layers = (*params.layers[:2], odd, *params.layers[3:])
    other = stack(CONFIG, replace(params, layers=layers))
    assert layout_of(other) != layout(CONFIG.layers)
    found = lora.attach(other, adapters, 0.5)
    for s, stage in enumerate(layout_of(found)):
        for i, numbers in enumerate(stage):
            for repeat, number in enumerate(numbers):
                ours = found.stages[s][i].mlp.down
                theirs = expected.stages[0][number % 2].mlp.down if number < 8 else expected.stages[1][0].mlp.down
                place = number // 2 if number < 8 else 0
                assert isinstance(ours, LoraTensor)
                assert isinstance(theirs, LoraTensor)
                np.testing.assert_array_equal(ours.a[repeat], theirs.a[place])
                np.testing.assert_array_equal(ours.b[repeat], theirs.b[place])


def _with_lora(weight: Any) -> LoraTensor:
    return LoraTensor(weight, jnp.zeros((1, weight.shape[1])), jnp.zeros((weight.shape[0], 1)), None)


def test_an_update_adds_the_scaled_product_of_its_factors():
    """Of q, whose outputs have two axes, and o, whose inputs have two."""
    params, adapters = stack(CONFIG, make_weights(CONFIG)), _shaken(lora.init(CONFIG, 2, seed=0))
    mixer, attached = params.stages[0][1].mixer, lora.attach(params, adapters, 0.5).stages[0][1].mixer
    for name, inputs in (("q", 1), ("o", 2)):
        base, factors = getattr(mixer, name)[1], adapters[f"stages.0.1.mixer.{name}"]
        update = (0.5 * factors.b[1] @ factors.a[1]).reshape(base.shape)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((3, *base.shape[base.ndim - inputs :])), jnp.float32)
        weight = jax.tree.map(lambda leaf: leaf[1], getattr(attached, name))
        axes = tuple(range(1, 1 + inputs)), tuple(range(base.ndim - inputs, base.ndim))
        found = weight.matmul(x, inputs)
        expected = jnp.tensordot(x, base + update, axes=axes)
        assert relative(found, expected) < 1e-6
