"""Tiny random vision models against transformers (eager attention): the tower, the whole, and through the state.

Sequences hold one image or several and are several windows long. That the comparison would notice each known mistake
is proved by the last two tests.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright import ops, tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.kernels import self_attention
from gemwright.model import vision
from gemwright.model.state import DecodeState, empty_state
from gemwright.model.transformer import SoftTokens, forward, logits
from tests.helpers import assert_close
from tests.tiny.pairs import LENGTH, to_numpy
from tests.tiny.vision_pairs import (
    VISION_CONFIGS,
    VisionPair,
    channels_first,
    image_input,
    load_in_bfloat16,
    make_vision_pair,
    our_logits,
    their_logits,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOGITS = 1e-4
"""Absolute tolerance of float32 logits, which are of the order of 5 here."""
BLOCK = 2e-6
"""Tolerance of one block in float32, relative to the largest value: sixteen roundings."""
ROWS = 4e-6
"""The same of the whole tower and projector, which are five blocks."""
CHUNK = 40
"""Tokens of a padded chunk."""
PROMPTS = (27, 35)
"""Tokens of the two sequences in the first chunk: all images, and in PaliGemma the whole prefix and some more."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VisionPair]:
    return {name: make_vision_pair(name, tmp_path_factory.mktemp("model")) for name in VISION_CONFIGS}


@pytest.fixture(params=VISION_CONFIGS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, VisionPair]) -> VisionPair:
    return pairs[request.param]


@pytest.fixture(params=["paligemma", "gemma3"])
def sighted(request: pytest.FixtureRequest, pairs: dict[str, VisionPair]) -> VisionPair:
    """One of each kind of projector."""
    return pairs[request.param]


def _rows(pair: VisionPair) -> jax.Array:
    return vision.encode(pair.config.vision, pair.weights.vision, jnp.asarray(pair.batch.pixels))


def _their_rows(pair: VisionPair) -> torch.Tensor:
    return pair.theirs.model.get_image_features(channels_first(pair.batch.pixels)).pooler_output


def test_float32_logits(pair: VisionPair):
    expected = their_logits(pair)
    assert 2.0 < np.abs(expected).max() < 100.0
    np.testing.assert_allclose(our_logits(pair), expected, rtol=0, atol=LOGITS)


def test_the_windows_are_those_that_are_meant(pairs: dict[str, VisionPair]):
    found = {name: {layer.mixer.window for layer in pair.config.layers} for name, pair in pairs.items()}
    assert list(found.values()) == [{None}, {8, None}, {40, None}, {8, None}]


def test_float32_tower(sighted: VisionPair):
    """Every block on the input that transformers' own had, so that errors do not add up, and then the whole."""
    records: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def note(name: str, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        records[name] = to_numpy(given), to_numpy(output)

    tower, params, model = sighted.config.vision, sighted.weights.vision, sighted.theirs.model
    parts = {
        "embeddings": model.vision_tower.embeddings,
        "norm": model.vision_tower.post_layernorm,
        "projector": model.multi_modal_projector,
        **{f"layer {index}": layer for index, layer in enumerate(model.vision_tower.encoder.layers)},
    }
    hooks = [part.register_forward_hook(partial(note, name), with_kwargs=True) for name, part in parts.items()]
    with torch.no_grad():
        expected = to_numpy(_their_rows(sighted))
    for hook in hooks:
        hook.remove()

    given, embedded = records["embeddings"]
    assert_close(vision.embed(tower, params, jnp.asarray(given.transpose(0, 2, 3, 1))), embedded, BLOCK)
    for index, layer in enumerate(params.layers):
        given, output = records[f"layer {index}"]
        assert_close(vision.layer(tower, layer, jnp.asarray(given)), output, BLOCK)
    given, normed = records["norm"]
    assert_close(
        ops.layer_norm(jnp.asarray(given), params.final_norm, params.final_norm_bias, tower.norm_eps), normed, BLOCK
    )
    assert_close(vision.project(tower, params, jnp.asarray(given)), records["projector"][1], BLOCK)
    assert_close(_rows(sighted), expected, ROWS)


def test_gradients_of_the_tower(sighted: VisionPair):
    """Of a random combination of the soft tokens, for every weight; the tolerance is 1e-5 of the largest entry."""
    tower, pixels = sighted.config.vision, jnp.asarray(sighted.batch.pixels)
    sighted.theirs.zero_grad()
    rows = _their_rows(sighted)
    factors = np.random.default_rng(2).standard_normal(rows.shape).astype(np.float32)
    (rows * torch.tensor(factors)).sum().backward()
    expected = {_stored(name): parameter.grad for name, parameter in sighted.theirs.named_parameters()}

    found = tree.flatten(
        jax.grad(lambda params: jnp.sum(vision.encode(tower, params, pixels) * factors))(sighted.weights.vision)
    )
    mapping = map_huggingface(sighted.config)
    assert len(found) > 3 * 16
    for path, gradient in found.items():
        stored = mapping[f"vision.{path}"]
        reference = to_numpy(expected[stored.name])
        reference = reference if stored.permute is None else reference.transpose(stored.permute)
        # A bias of the keys moves all scores of a query alike, so its gradient is nothing but rounding.
        scale = found[path.removesuffix("_bias")] if path.endswith(".k_bias") else reference
        assert np.abs(scale).max() > 1e-6, path
        np.testing.assert_allclose(
            np.asarray(gradient).reshape(reference.shape), reference, rtol=0, atol=1e-5 * np.abs(scale).max()
        )


def _stored(name: str) -> str:
    """The name that a parameter has in a file."""
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return name.replace("model.multi_modal_projector.", "multi_modal_projector.")


def test_bfloat16_is_as_near_to_the_truth_as_transformers(sighted: VisionPair):
    """The truth is float32 arithmetic on the rounded weights. Rounding errors are random, so their root mean square
    over thousands of numbers is what two equally careful implementations share; ours may be 1.1 times transformers'."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), sighted.weights)
    truth, half = replace(sighted, weights=rounded), load_in_bfloat16(sighted)

    def error(found: Any, exact: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(found, np.float32) - np.asarray(exact)) ** 2)))

    with torch.no_grad():
        rows = to_numpy(_their_rows(half))
    assert 0 < error(_rows(half), _rows(truth)) < 1.1 * error(rows, _rows(truth))
    exact, found = our_logits(truth), our_logits(half)
    assert 0 < error(found, exact) < 1.1 * error(their_logits(half), exact)
    # Where the best token leads by more than six times the error, it leads in bfloat16 too.
    best_two = np.sort(exact, axis=-1)[..., -2:]
    clear = best_two[..., 1] - best_two[..., 0] > 6 * error(found, exact)
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(np.argmax(found, -1)[clear], np.argmax(exact, -1)[clear])


def _chunk(
    pair: VisionPair, starts: tuple[int, ...], stops: tuple[int, ...], *, left: bool
) -> tuple[jax.Array, jax.Array, SoftTokens]:
    """Return tokens `starts` to `stops` of each sequence, padded on one side with values that must have no effect."""
    batch, given, width = pair.batch, image_input(pair), CHUNK
    tokens, valid = np.full((2, width), 5), np.zeros((2, width), bool)
    rows, blocks = np.ones((2, width, pair.config.width), np.float32), np.zeros((2, width), np.int32)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        place = slice(width - (stop - start), width) if left else slice(stop - start)
        tokens[row, place], valid[row, place] = batch.tokens[row, start:stop], True
        rows[row, place], blocks[row, place] = given.embeddings[row, start:stop], given.groups[row, start:stop]
    return jnp.asarray(tokens), jnp.asarray(valid), SoftTokens(jnp.asarray(rows), jnp.asarray(blocks))


def _check(
    pair: VisionPair, hidden: jax.Array, valid: jax.Array, starts: tuple[int, ...], expected: np.ndarray
) -> None:
    """Check the logits of the valid tokens, which begin at each sequence's start."""
    found = np.asarray(logits(pair.config, pair.weights, hidden))
    for row, start in enumerate(starts):
        real = found[row][np.asarray(valid[row])]
        np.testing.assert_allclose(real, expected[row, start : start + len(real)], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("left", [False, True], ids=["padding right", "padding left"])
def test_a_padded_prompt_and_then_token_by_token(pair: VisionPair, left: bool):
    """Prefill sequences of different lengths in one chunk, then one token at a time, and compare without a state."""
    expected, start = their_logits(pair), (0, 0)
    tokens, valid, given = _chunk(pair, start, PROMPTS, left=left)
    hidden, _ = forward(pair.config, pair.weights, tokens, valid=valid, soft_tokens=given)
    _check(pair, hidden, valid, start, expected)

    state: DecodeState | None = empty_state(pair.config, 2, LENGTH, jnp.float32)
    hidden, state = forward(pair.config, pair.weights, tokens, state, valid=valid, soft_tokens=given)
    _check(pair, hidden, valid, start, expected)
    for step in range(LENGTH - max(PROMPTS)):
        places = tuple(length + step for length in PROMPTS)
        token = pair.batch.tokens[np.arange(2), places][:, None]
        assert token.min() >= 0
        hidden, state = forward(pair.config, pair.weights, jnp.asarray(token), state)
        _check(pair, hidden, jnp.ones((2, 1), bool), places, expected)


def test_pictures_in_several_chunks(pairs: dict[str, VisionPair]):
    """An image attends to the tokens of earlier calls, also past the window."""
    pair = pairs["gemma3"]
    expected = their_logits(pair)
    state: DecodeState | None = empty_state(pair.config, 2, LENGTH, jnp.float32)
    stops = [(0, 0), (7, 4), (16, 19), (56, 59)]
    for start, stop in pairwise(stops):
        tokens, valid, given = _chunk(pair, start, stop, left=False)
        hidden, state = forward(pair.config, pair.weights, tokens, state, valid=valid, soft_tokens=given)
        _check(pair, hidden, valid, start, expected)


def _tower(**values: Any) -> Callable[[VisionPair], Any]:
    """Return soft tokens of a tower with other weights, each a function of the right ones."""

    def rows(pair: VisionPair) -> Any:
        right = pair.weights.vision
        wrong = replace(right, **{name: change(getattr(right, name)) for name, change in values.items()})
        return vision.encode(pair.config.vision, wrong, jnp.asarray(pair.batch.pixels))

    return rows


def _pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[VisionPair], Any]:
    return lambda pair: _rows(
        replace(pair, batch=replace(pair.batch, pixels=np.ascontiguousarray(change(pair.batch.pixels))))
    )


def _layers(**values: Any) -> Callable[[VisionPair], Any]:
    return _tower(
        layers=lambda layers: tuple(
            replace(layer, **{name: change(layer) for name, change in values.items()}) for layer in layers
        )
    )


def _averaged_first(pair: VisionPair) -> Any:
    """The average before the final norm."""
    tower, params = pair.config.vision, pair.weights.vision
    x = vision.embed(tower, params, jnp.asarray(pair.batch.pixels))
    for layer in params.layers:
        x = vision.layer(tower, layer, x)
    side, count = int(tower.tokens**0.5), len(x)
    square = tower.grid // side
    x = x.reshape(count, side, square, side, square, -1).mean((2, 4)).reshape(count, tower.tokens, -1)
    return vision.project(replace(tower, image_size=side * tower.patch), params, x)


def _normed_first(pair: VisionPair) -> Any:
    """The projector's norm before the average, which the linear map may follow or precede."""
    tower, params = pair.config.vision, pair.weights.vision
    every = replace(tower, tokens=tower.grid**2)
    rows = vision.encode(every, params, jnp.asarray(pair.batch.pixels))
    side = int(tower.tokens**0.5)
    square = tower.grid // side
    return rows.reshape(len(rows), side, square, side, square, -1).mean((2, 4)).reshape(len(rows), tower.tokens, -1)


TOWER_MISTAKES: dict[str, tuple[str, Callable[[VisionPair], Any]]] = {
    "blue, green, red": ("paligemma", _pixels(lambda x: x[..., ::-1])),
    "columns for rows": ("paligemma", _pixels(lambda x: x.swapaxes(1, 2))),
    "pixels in [0, 1]": ("paligemma", _pixels(lambda x: (x + 1) / 2)),
    "no positions": ("paligemma", _tower(positions=jnp.zeros_like)),
    "positions by columns": ("paligemma", _tower(positions=lambda x: jnp.concatenate([x[i::4] for i in range(4)]))),
    "a layer less": ("paligemma", _tower(layers=lambda layers: layers[:-1])),
    "no bias of the patches": ("paligemma", _tower(patch_bias=jnp.zeros_like)),
    "no bias of the projector": ("paligemma", _tower(project_bias=jnp.zeros_like)),
    "gains around zero": ("paligemma", _layers(mixer_norm=lambda layer: layer.mixer_norm + 1)),
    "queries and keys exchanged": ("paligemma", _layers(q=lambda layer: layer.k, k=lambda layer: layer.q)),
    "no bias of the queries": ("paligemma", _layers(q_bias=lambda layer: 0 * layer.q_bias)),
    "scores not scaled": ("paligemma", _layers(q=lambda layer: 12**0.5 * layer.q)),
    "the average before the final norm": ("gemma3", _averaged_first),
    "the average after the projector's norm": ("gemma3", _normed_first),
    "the projector's gain around one": ("gemma3", _tower(project_norm=lambda gain: gain - 1)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TOWER_MISTAKES)
def test_a_wrong_tower_is_noticed(pairs: dict[str, VisionPair], mistake: str):
    """Each mistake moves the soft tokens by more than a hundred tolerances."""
    name, change = TOWER_MISTAKES[mistake]
    with torch.no_grad():
        expected = to_numpy(_their_rows(pairs[name]))
    assert np.abs(np.asarray(change(pairs[name])) - expected).max() > 100 * ROWS * np.abs(expected).max()


def _blocks(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[VisionPair], Any]:
    def wrong(pair: VisionPair) -> Any:
        given = image_input(pair)
        return our_logits(pair, replace(given, groups=jnp.asarray(change(np.asarray(given.groups)), jnp.int32)))

    return wrong


def _placed(change: Callable[[Any], Any]) -> Callable[[VisionPair], Any]:
    return lambda pair: our_logits(pair, image_input(pair, change(_rows(pair))))


def _gates(pair: VisionPair) -> Any:
    layers = tuple(
        replace(layer, mlp=replace(layer.mlp, gate=layer.mlp.up, up=layer.mlp.gate)) for layer in pair.weights.layers
    )
    return our_logits(replace(pair, weights=replace(pair.weights, layers=layers)), image_input(pair))


def _windowed(window: int) -> Callable[[VisionPair], Any]:
    """A window that parts the block, too."""
    together = self_attention.same_group

    def parted(queries: jax.Array, keys: jax.Array) -> jax.Array:
        place = jnp.arange(queries.shape[1])
        return together(queries, keys) & (jnp.abs(place[:, None] - place) < window)

    def wrong(pair: VisionPair) -> Any:
        # An epsilon that differs in the last bit forces a compilation, with the mistake.
        config = replace(pair.config, norm_eps=float(np.nextafter(pair.config.norm_eps, 1)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self_attention, "same_group", parted)
            return our_logits(replace(pair, config=config))

    return wrong


def _last_of_prefix(blocks: np.ndarray) -> np.ndarray:
    """Without the last token of each block."""
    return np.where(np.roll(blocks, -1, axis=1) == blocks, blocks, -1)


MISTAKES: dict[str, tuple[str, Callable[[VisionPair], Any]]] = {
    "a causal prefix": ("paligemma", _blocks(lambda blocks: np.full_like(blocks, -1))),
    "a causal prefix beyond the window": ("paligemma2, window 8", _blocks(lambda blocks: np.full_like(blocks, -1))),
    "a causal image": ("gemma3", _blocks(lambda blocks: np.full_like(blocks, -1))),
    "only the image both ways": ("paligemma", _blocks(lambda blocks: np.where(np.arange(LENGTH) < 16, 0, -1))),
    "a prefix without its last token": ("paligemma", _blocks(_last_of_prefix)),
    "a suffix that sees ahead": ("paligemma", _blocks(np.zeros_like)),
    "a prefix that the window parts": ("paligemma2, window 8", _windowed(8)),
    "all images in one group": ("gemma3", _blocks(lambda blocks: np.minimum(blocks, 0))),
    "images exchanged": ("gemma3", _placed(lambda rows: rows[::-1])),
    "rows scaled": ("paligemma", _placed(lambda rows: rows * 48**0.5)),
    "rows scaled, in Gemma 3": ("gemma3", _placed(lambda rows: rows * 48**0.5)),
    "gate and up exchanged": ("gemma3", _gates),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_use_of_pictures_is_noticed(pairs: dict[str, VisionPair], mistake: str):
    """Each mistake moves the logits by more than a hundred tolerances."""
    name, change = MISTAKES[mistake]
    assert np.abs(np.asarray(change(pairs[name])) - their_logits(pairs[name])).max() > 100 * LOGITS
