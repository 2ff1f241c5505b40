"""A tiny random RecurrentGemma against transformers (eager attention) and DeepMind's recurrentgemma package.

The two differ in one number: with the same setting DeepMind's attention spans one token more.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright import ops, tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.linear import Norms
from gemwright.model import block, mlp, recurrent
from gemwright.model.config import Attention, Config, Recurrent, Rope
from gemwright.model.params import ModelWeights, RecurrentWeights
from gemwright.model.state import Positions, empty_state
from gemwright.model.transformer import forward, logits
from tests.helpers import assert_close
from tests.tiny.pairs import LENGTH, load, to_numpy
from tests.tiny.recurrent_trio import WINDOW, Trio, make_trio, replace_attention

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOGITS = 1e-4
"""Absolute tolerance of float32 logits, which are of the order of 1 here."""
BLOCK = 2e-6
"""Tolerance of one block in float32, relative to the largest value: sixteen roundings."""


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    return make_trio(tmp_path_factory.mktemp("model"))


def _ours(config: Config, weights: Any, tokens: Any, segments: Any = None) -> jax.Array:
    segments = None if segments is None else jnp.asarray(segments)
    hidden, _ = forward(config, weights, jnp.asarray(tokens), segments=segments)
    return logits(config, weights, hidden)


def _step(config: Config, weights: Any, tokens: Any, state: Any) -> tuple[jax.Array, Any]:
    hidden, state = forward(config, weights, jnp.asarray(tokens), state)
    return logits(config, weights, hidden), state


@pytest.fixture(scope="module")
def ours(trio: Trio) -> dict[int, np.ndarray]:
    """Our logits with transformers' window and with DeepMind's."""
    return {
        WINDOW: np.asarray(_ours(trio.config_transformers, trio.weights, trio.tokens)),
        WINDOW + 1: np.asarray(_ours(trio.config, trio.weights, trio.tokens)),
    }


@pytest.fixture(scope="module")
def transformers(trio: Trio) -> np.ndarray:
    return _transformers(trio.transformers, trio.tokens)


def _transformers(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return to_numpy(model(torch.tensor(tokens)).logits)


@pytest.fixture(scope="module")
def deepmind(trio: Trio) -> Callable[..., tuple[np.ndarray, Any]]:
    """DeepMind's model: tokens, positions and a cache give logits and a cache."""
    return jax.jit(functools.partial(trio.deepmind.apply, trio.deepmind_params))


def _positions(start: int, end: int) -> np.ndarray:
    return np.tile(np.arange(start, end), (2, 1))


def test_the_config_of_the_files_is_deepminds(trio: Trio):
    assert {layer.mixer.window for layer in trio.config.layers if isinstance(layer.mixer, Attention)} == {WINDOW + 1}
    assert trio.config.embed_scale == 6.9375  # the square root of 48, rounded to bfloat16


def test_float32_logits_equal_those_of_transformers(ours: Any, transformers: np.ndarray):
    assert 2.0 < np.abs(transformers).max() < 7.0
    np.testing.assert_allclose(ours[WINDOW], transformers, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(ours[WINDOW + 1][:, :WINDOW], transformers[:, :WINDOW], rtol=0, atol=LOGITS)
    assert np.abs(ours[WINDOW + 1] - transformers)[:, WINDOW].max() > 100 * LOGITS


def test_float32_logits_equal_those_of_deepmind(trio: Trio, ours: Any, deepmind: Any):
    """Its attention spans one token more than its setting: 2049 in the published models."""
    theirs = np.asarray(deepmind(trio.tokens, _positions(0, LENGTH))[0])
    np.testing.assert_allclose(ours[WINDOW + 1], theirs, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(ours[WINDOW][:, :WINDOW], theirs[:, :WINDOW], rtol=0, atol=LOGITS)
    assert np.abs(ours[WINDOW] - theirs)[:, WINDOW].max() > 100 * LOGITS


def test_packed_documents_equal_those_of_deepmind(trio: Trio, deepmind: Any):
    """Documents begin at position 0: no state, convolution or attention crosses their bounds."""
    ends = ((1, 3, 20, LENGTH), (2, 31, 58, LENGTH))
    positions = np.stack([np.concatenate([np.arange(n) for n in np.diff((0, *row))]) for row in ends])
    segments = np.cumsum(positions == 0, axis=1)
    found = _ours(trio.config, trio.weights, trio.tokens, segments)
    np.testing.assert_allclose(found, deepmind(trio.tokens, positions)[0], rtol=0, atol=LOGITS)


def test_a_prompt_and_single_steps_equal_deepminds_cache(trio: Trio, deepmind: Any):
    """Far beyond the window, each side with its own kind of cache, until both have forgotten the prompt's end."""
    found, state = _step(trio.config, trio.weights, trio.tokens, empty_state(trio.config, 2, 2 * LENGTH, jnp.float32))
    theirs, cache = deepmind(trio.tokens, _positions(0, LENGTH))
    for step in range(2 * WINDOW):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=LOGITS)
        token, position = trio.tokens[:, step : step + 1], LENGTH + step
        found, state = _step(trio.config, trio.weights, token, state)
        theirs, cache = deepmind(token, _positions(position, position + 1), cache)
    for index, layer in enumerate(trio.config.layers):
        if isinstance(layer.mixer, Recurrent):
            entry = cache[f"blocks.{index}"]
            assert_close(state.layers[index].hidden, np.asarray(entry.rg_lru_state), 1e-4)
            assert_close(state.layers[index].inputs, np.asarray(entry.conv1d_state), 1e-4)


def _records(trio: Trio) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Input and output of every module of transformers' model in one pass."""
    records: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def note(name: str, _: Any, args: Any, output: Any) -> None:
        records[name] = to_numpy(args[0]), to_numpy(output[0] if isinstance(output, tuple) else output)

    def note_named(name: str, module: Any, args: Any, named: Any, output: Any) -> None:
        note(name, module, args or (named.get("hidden_states", named.get("input_ids")),), output)

    hooks = [
        module.register_forward_hook(functools.partial(note_named, name), with_kwargs=True)
        for name, module in trio.transformers.named_modules()
        if name.startswith("model.") and not name.endswith("rotary_emb")
    ]
    _transformers(trio.transformers, trio.tokens)
    for hook in hooks:
        hook.remove()
    return records


def test_float32_blocks_equal_those_of_transformers(trio: Trio):
    """Every module on the input that transformers' own had, so that errors do not add up."""
    records, eps = _records(trio), trio.config.norm_eps
    context = Positions(jnp.asarray(_positions(0, LENGTH)), None, jnp.zeros(2, jnp.int32))
    for index, (layer, weights) in enumerate(zip(trio.config_transformers.layers, trio.weights.layers, strict=True)):
        name = f"model.layers.{index}"
        given, expected = records[name]
        assert_close(block.apply(layer, weights, jnp.asarray(given), context, None, eps)[0], expected, BLOCK)
        given, expected = records[f"{name}.mlp_block"]
        assert_close(mlp.apply(weights.mlp, Norms(None, None, eps), jnp.asarray(given)) - given, expected, BLOCK)
        given, expected = records[f"{name}.temporal_pre_norm"]
        assert_close(ops.rms_norm(jnp.asarray(given), weights.mixer_norm, eps), expected, BLOCK)
        if isinstance(layer.mixer, Recurrent):
            given, expected = records[f"{name}.temporal_block"]
            mixed, _ = jax.jit(recurrent.apply, static_argnums=0)(
                layer.mixer, weights.mixer, Norms(None, None, eps), jnp.asarray(given), context, None
            )
            assert_close(mixed - given, expected, BLOCK)


def test_gradients_equal_those_of_transformers(trio: Trio):
    """Of the mean cross-entropy, for every weight; the tolerance is 1e-5 of the largest entry of each tensor."""
    tokens = torch.tensor(trio.tokens)
    trio.transformers.zero_grad()
    scores = trio.transformers(tokens).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, tokens[:, 1:].flatten()).backward()
    expected = {name: to_numpy(parameter.grad) for name, parameter in trio.transformers.named_parameters()}

    def loss(weights: ModelWeights) -> jax.Array:
        logprobs = jax.nn.log_softmax(_ours(trio.config_transformers, weights, trio.tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logprobs, trio.tokens[:, 1:, None], axis=-1))

    ours, mapping = tree.flatten(jax.jit(jax.grad(loss))(trio.weights)), map_huggingface(trio.config)
    assert {mapping[path].name for path in ours} == expected.keys()
    for path, gradient in ours.items():
        reference = expected[mapping[path].name]
        assert np.abs(reference).max() > 1e-6, path
        assert_close(mapping[path].as_stored(np.asarray(gradient)), reference, 1e-5)


def test_bfloat16_is_as_near_to_the_truth_as_transformers(trio: Trio):
    """The truth is float32 arithmetic on the rounded weights. Rounding errors are random, so their root mean square
    over 12,120 logits is what two equally careful implementations share; ours may be 1.1 times transformers', which
    also rounds its gates and what a channel keeps."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), trio.weights)
    truth = np.asarray(_ours(trio.config_transformers, rounded, trio.tokens))
    weights = load(trio.folder, jnp.bfloat16)[1]
    ours = np.asarray(_ours(trio.config_transformers, weights, trio.tokens))
    model = type(trio.transformers).from_pretrained(trio.folder, dtype=torch.bfloat16, attn_implementation="eager")
    theirs = _transformers(model.eval(), trio.tokens)

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found - truth) ** 2)))

    assert 0 < error(ours) < 1.1 * error(theirs)
    # Where the best token leads by more than six times the error, it leads in bfloat16 too.
    best_two = np.sort(truth, axis=-1)[..., -2:]
    clear = best_two[..., 1] - best_two[..., 0] > 6 * error(ours)
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(ours.argmax(-1)[clear], truth.argmax(-1)[clear])


def test_the_state_stays_in_float32_in_bfloat16(trio: Trio):
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trio.weights)
    before = empty_state(trio.config, 2, LENGTH, jnp.bfloat16)
    hidden, state = jax.eval_shape(functools.partial(forward, trio.config), weights, trio.tokens, before)
    assert hidden.dtype == jnp.bfloat16
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [leaf.dtype for leaf in jax.tree.leaves(before)]
    assert state.layers[0].hidden.dtype == jnp.float32
    assert state.layers[0].inputs.dtype == jnp.bfloat16


def _exchanged(one: str, other: str) -> Callable[[ModelWeights], ModelWeights]:
    def change(weights: ModelWeights) -> ModelWeights:
        layers = [
            replace(
                layer,
                mixer=replace(layer.mixer, **{one: getattr(layer.mixer, other), other: getattr(layer.mixer, one)}),
            )
            if isinstance(layer.mixer, RecurrentWeights)
            else layer
            for layer in weights.layers
        ]
        return replace(weights, layers=tuple(layers))

    return change


def _changed(name: str, function: Callable[[jax.Array], jax.Array]) -> Callable[[ModelWeights], ModelWeights]:
    return lambda weights: tree.map_with_path(
        lambda path, leaf: function(leaf) if path.endswith(name) else leaf, weights
    )


def _same(value: Any) -> Any:
    return value


MISTAKES: dict[str, tuple[Callable[[Config], Config], Callable[[ModelWeights], ModelWeights]]] = {
    "the factor of the embeddings not rounded": (lambda config: replace(config, embed_scale=None), _same),
    "whole heads rotated": (lambda config: replace_attention(config, rope=Rope(fraction=1.0)), _same),
    "no final cap": (lambda config: replace(config, final_soft_cap=None), _same),
    "the convolution turned round": (_same, _changed("mixer.conv", lambda taps: taps[::-1])),
    "the gates transposed": (_same, _changed("_gate", lambda blocks: blocks.swapaxes(1, 2))),
    "the gates exchanged": (_same, _exchanged("input_gate", "decay_gate")),
    "the branches exchanged": (_same, _exchanged("x", "y")),
    "the decay of the other sign": (_same, _changed("mixer.decay", jnp.negative)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(trio: Trio, transformers: np.ndarray, mistake: str):
    """Each moves the logits by more than a hundred tolerances, so that none can hide in the comparisons above."""
    config, weights = MISTAKES[mistake]
    wrong = _ours(config(trio.config_transformers), weights(trio.weights), trio.tokens)
    assert np.abs(np.asarray(wrong) - transformers).max() > 100 * LOGITS
