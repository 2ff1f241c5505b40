"""Tiny random models against transformers (eager attention): whole, block by block, and their gradients.

Weights are drawn large, norm gains too, and sequences are several windows long. That the comparison would notice each
known mistake is proved by `test_a_wrong_number_is_noticed`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright import ops, tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.linear import Norms
from gemwright.model import attention, block, mlp
from gemwright.model.config import Attention, Config, Rope
from gemwright.model.params import AttentionWeights
from gemwright.model.state import Positions
from gemwright.model.transformer import forward, logits
from tests.helpers import assert_close
from tests.tiny.pairs import CONFIGS, LENGTH, WINDOW, Pair, load, make_pair, to_numpy

LOGITS = 1e-4
"""Absolute tolerance of float32 logits, which are of the order of 10 here."""
BLOCK = 2e-6
"""Tolerance of one block in float32, relative to the largest value: sixteen roundings."""


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("gemma2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("gemma3", tmp_path_factory.mktemp("model"))


@partial(jax.jit, static_argnums=(0, 4))
def _attention(spec: Attention, weights: AttentionWeights, x: jax.Array, context: Positions, eps: float) -> jax.Array:
    """Without the norms and the sum of its branch."""
    return attention.apply(spec, weights, Norms(None, None, eps), x, context, None)[0] - x


def _ours(config: Config, weights: Any, tokens: np.ndarray) -> jax.Array:
    hidden, _ = forward(config, weights, jnp.asarray(tokens))
    return logits(config, weights, hidden)


def _theirs(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return to_numpy(model(torch.tensor(tokens)).logits)


def _records(pair: Pair) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Input and output of every module of transformers' model in one pass."""
    records: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def note(name: str, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["input"]
        records[name] = to_numpy(given), to_numpy(output[0] if isinstance(output, tuple) else output)

    hooks = [
        module.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, module in pair.theirs.named_modules()
        if name.startswith("model.") and not name.endswith("rotary_emb")
    ]
    _theirs(pair.theirs, pair.tokens)
    for hook in hooks:
        hook.remove()
    return records


def _context(batch: int) -> Positions:
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (batch, LENGTH))
    return Positions(positions, None, jnp.zeros(batch, jnp.int32))


def test_float32_logits(pair: Pair):
    theirs = _theirs(pair.theirs, pair.tokens)
    ours = _ours(pair.config, pair.weights, pair.tokens)
    assert 2.0 < np.abs(theirs).max() < 100.0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS)


def test_float32_blocks(pair: Pair):
    """Every module on the input that transformers' own had, so that errors do not add up."""
    records, context, eps = _records(pair), _context(len(pair.tokens)), pair.config.norm_eps
    for index, (layer, weights) in enumerate(zip(pair.config.layers, pair.weights.layers, strict=True)):
        name = f"model.layers.{index}"
        given, expected = records[name]
        assert_close(block.apply(layer, weights, jnp.asarray(given), context, None, eps)[0], expected, BLOCK)
        given, expected = records[f"{name}.self_attn"]
        assert_close(_attention(layer.mixer, weights.mixer, jnp.asarray(given), context, eps), expected, BLOCK)
        given, expected = records[f"{name}.mlp"]
        assert_close(mlp.apply(weights.mlp, Norms(None, None, eps), jnp.asarray(given)) - given, expected, BLOCK)
        given, expected = records[f"{name}.input_layernorm"]
        assert_close(ops.rms_norm(jnp.asarray(given), weights.mixer_norm, eps), expected, BLOCK)
        if layer.mixer.qk_norm:
            given, expected = records[f"{name}.self_attn.k_norm"]
            assert_close(ops.rms_norm(jnp.asarray(given), weights.mixer.k_norm, eps), expected, BLOCK)
    given, expected = records["model.norm"]
    assert_close(ops.rms_norm(jnp.asarray(given), pair.weights.final_norm, eps), expected, BLOCK)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embedding_output_is_bitwise_equal(pair: Pair, dtype: Any):
    """sqrt(D) is rounded to bfloat16 in bfloat16 runs, and not in float32 runs."""
    model = pair.theirs if dtype == jnp.float32 else _bfloat16(pair)
    with torch.no_grad():
        expected = to_numpy(model(torch.tensor(pair.tokens), output_hidden_states=True).hidden_states[0])
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), pair.weights)
    # Without layers, and with an epsilon that makes the final norm an exact factor of 2^-20.
    config = replace(pair.config, layers=(), norm_eps=2.0**40)
    weights = replace(weights, layers=(), final_norm=jnp.zeros_like(weights.final_norm))
    hidden, _ = forward(config, weights, jnp.asarray(pair.tokens))
    assert hidden.dtype == dtype
    np.testing.assert_array_equal(np.asarray(hidden, np.float32) * 2.0**20, expected)


def _bfloat16(pair: Pair) -> torch.nn.Module:
    return type(pair.theirs).from_pretrained(pair.folder, dtype=torch.bfloat16, attn_implementation="eager").eval()


def test_bfloat16_is_as_near_to_the_truth_as_transformers(pair: Pair):
    """The truth is float32 arithmetic on the rounded weights. Rounding errors are random, so their root mean square
    over 12,120 logits is what two equally careful implementations share; ours may be 1.1 times transformers'."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), pair.weights)
    truth = np.asarray(_ours(pair.config, rounded, pair.tokens))
    config, weights = load(pair.folder, jnp.bfloat16)
    ours = np.asarray(_ours(config, weights, pair.tokens))
    theirs = _theirs(_bfloat16(pair), pair.tokens)

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found - truth) ** 2)))

    assert 0 < error(ours) < 1.1 * error(theirs)
    # Where the best token leads by more than six times the error, it leads in bfloat16 too.
    best_two = np.sort(truth, axis=-1)[..., -2:]
    clear = best_two[..., 1] - best_two[..., 0] > 6 * error(ours)
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(ours.argmax(-1)[clear], truth.argmax(-1)[clear])


@pytest.mark.usefixtures("quick_compilation")
def test_gradients(gemma3: Pair):
    """Of the mean cross-entropy, for every weight; the tolerance is 1e-5 of the largest entry of each tensor."""
    tokens = torch.tensor(gemma3.tokens)
    gemma3.theirs.zero_grad()
    scores = gemma3.theirs(tokens).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, tokens[:, 1:].flatten()).backward()
    expected = {name: to_numpy(parameter.grad) for name, parameter in gemma3.theirs.named_parameters()}

    def loss(weights: Any) -> jax.Array:
        logprobs = jax.nn.log_softmax(_ours(gemma3.config, weights, gemma3.tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logprobs, gemma3.tokens[:, 1:, None], axis=-1))

    ours = tree.flatten(jax.grad(loss)(gemma3.weights))
    mapping = map_huggingface(gemma3.config)
    assert {mapping[path].name for path in ours} == expected.keys()
    for path, gradient in ours.items():
        reference = expected[mapping[path].name]
        assert np.abs(reference).max() > 1e-6, path
        np.testing.assert_allclose(
            np.asarray(gradient).reshape(reference.shape), reference, rtol=0, atol=1e-5 * np.abs(reference).max()
        )


def _mixers(config: Config, change: Callable[[Attention], Attention]) -> Config:
    return replace(config, layers=tuple(replace(layer, mixer=change(layer.mixer)) for layer in config.layers))


def _window(by: int) -> Callable[[Config], Config]:
    return lambda config: _mixers(config, lambda m: replace(m, window=None if m.window is None else m.window + by))


def _rope(change: Callable[[Attention], Rope]) -> Callable[[Config], Config]:
    return lambda config: _mixers(config, lambda m: replace(m, rope=change(m)))


def _mixer(**values: Any) -> Callable[[Config], Config]:
    return lambda config: _mixers(config, lambda m: replace(m, **values))


def _shift(config: Config) -> Config:
    mixers = [layer.mixer for layer in config.layers]
    return replace(
        config,
        layers=tuple(replace(layer, mixer=mixers[i - 1]) for i, layer in enumerate(config.layers)),
    )


MISTAKES: dict[str, tuple[str, Callable[[Config], Config]]] = {
    "query scaled by the head width": ("gemma2", _mixer(query_scalar=16.0)),
    "no attention cap": ("gemma2", _mixer(soft_cap=None)),
    "no final cap": ("gemma2", lambda config: replace(config, final_soft_cap=None)),
    "gemma2 window one longer": ("gemma2", _window(1)),
    "gemma2 window one shorter": ("gemma2", _window(-1)),
    "gemma2 local and global layers exchanged": ("gemma2", _shift),
    "gemma3 window one longer": ("gemma3", _window(1)),
    "gemma3 window one shorter": ("gemma3", _window(-1)),
    "no window": ("gemma3", _mixer(window=None)),
    "gemma3 pattern shifted": ("gemma3", _shift),
    "no query and key norms": ("gemma3", _mixer(qk_norm=False)),
    "no rope scaling": ("gemma3", _rope(lambda mixer: replace(mixer.rope, scale=1.0))),
    "rope scaling of local layers": ("gemma3", _rope(lambda mixer: replace(mixer.rope, scale=8.0))),
    "one rope base": ("gemma3", _rope(lambda mixer: replace(mixer.rope, base=10_000.0))),
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_number_is_noticed(request: pytest.FixtureRequest, mistake: str):
    """Each known mistake moves the logits by more than a hundred tolerances."""
    name, change = MISTAKES[mistake]
    pair: Pair = request.getfixturevalue(name)
    wrong = change(pair.config)
    assert wrong != pair.config
    off = np.abs(np.asarray(_ours(wrong, pair.weights, pair.tokens)) - _theirs(pair.theirs, pair.tokens))
    assert off.max() > 100 * LOGITS


def test_the_window_is_that_of_the_file(gemma2: Pair, gemma3: Pair):
    for pair in (gemma2, gemma3):
        assert {layer.mixer.window for layer in pair.config.layers} == {None, WINDOW}


@pytest.mark.parametrize("start", [3000, 8190, 32_000])
def test_rope_equals_transformers_at_far_positions(gemma3: Pair, start: int):
    """Both sides round an angle of p radians by p * 2^-23 or so; the tolerance is eight times that."""
    from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

    positions = np.arange(start, start + 16)[None]
    x = np.random.default_rng(2).standard_normal((1, 16, 4, 16)).astype(np.float32)
    rotary = gemma3.theirs.model.rotary_emb
    for layer, kind in ((gemma3.config.layers[0], "sliding_attention"), (gemma3.config.layers[5], "full_attention")):
        cos, sin = rotary(torch.tensor(x), torch.tensor(positions), kind)
        expected = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin, unsqueeze_dim=2)[0]
        rope = layer.mixer.rope
        ours = ops.rotate(jnp.asarray(x), ops.rotation(jnp.asarray(positions), x.shape[-1], rope.base, rope.scale))
        np.testing.assert_allclose(ours, to_numpy(expected), rtol=0, atol=start * 2.0**-20)
