"""The recurrent block against its equations in float64, and however a text is cut, padded, packed and batched."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import tree
from gemwright.kernels import choice
from gemwright.kernels.native import native_enabled
from gemwright.kernels.rg_lru import bounded_sqrt, rg_lru
from gemwright.linear import Norms
from gemwright.model import recurrent
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope
from gemwright.model.params import ModelWeights, RecurrentWeights, param_specs
from gemwright.model.state import DecodeState, Positions, RecurrentState, empty_state, room, state_bytes
from gemwright.model.transformer import forward
from tests.helpers import random_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")
VOCAB, WINDOW = 97, 7
LENGTH = 4 * WINDOW + 3
TOKENS = random_ids(VOCAB, (3, LENGTH))
CAPACITY = 48
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Hidden states are of the order of 1: sums in another order differ by some ten roundings of float32."""
MIXER = Recurrent(width=24, blocks=3)
BARE = Norms(None, None, 1e-6)
LOCAL = Attention(4, 1, head_dim=8, query_scalar=8.0, rope=Rope(fraction=0.5), window=WINDOW, out_bias=True)
GRIFFIN = Config(
    32, VOCAB, tuple(Layer(mixer, Mlp(48, bias=True)) for mixer in (MIXER, LOCAL, MIXER)), max_length=2**31 - 1
)


@functools.cache
def _weights() -> ModelWeights:
    """Random weights whose gains and biases are not zero, so that every part has a say."""
    numbers = np.random.default_rng(0)

    def draw(path: str, param: Any) -> jax.Array:
        values = numbers.standard_normal(param.shape) * (param.fan_in**-0.5 if param.init == "normal" else 0.3)
        if param.init == "decay":  # kept at a step, to the power of 8 gate: a channel forgets over some windows
            values = np.log(np.expm1(-np.log(numbers.uniform(0.9, 0.999, param.shape))))
        return jnp.asarray(values, jnp.float32)

    return tree.map_with_path(draw, param_specs(GRIFFIN))


def _hidden(tokens: np.ndarray, state: DecodeState | None = None, **inputs: np.ndarray) -> tuple[np.ndarray, Any]:
    given = {name: jnp.asarray(value) for name, value in inputs.items()}
    hidden, after = forward(GRIFFIN, _weights(), jnp.asarray(tokens), state, **given)
    return np.asarray(hidden), after


@functools.cache
def _whole() -> np.ndarray:
    """Hidden states [3, LENGTH, D] of `_tokens()` in one pass without a state."""
    return _hidden(TOKENS)[0]


def _empty(rows: int = 3) -> DecodeState:
    return empty_state(GRIFFIN, rows, CAPACITY, jnp.float32)


# The block by itself, and its equations.


@functools.cache
def _block() -> dict[str, np.ndarray]:
    """The weights of one block by name, in float64."""
    params = _weights().layers[0].mixer
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten(params).items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _gate(p: dict[str, np.ndarray], name: str, u: np.ndarray) -> np.ndarray:
    weight, bias = p[name], p[f"{name}_bias"]
    parts = np.split(u, len(weight))
    return _sigmoid(np.concatenate([part @ w + b for part, w, b in zip(parts, weight, bias, strict=True)]))


def _equations(p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """One document [T, D], token by token (arXiv:2402.19427, sections 2.3 and 2.4)."""
    v = x @ p["x"].T + p["x_bias"]
    h, outputs = np.zeros(MIXER.width), []
    for t in range(len(x)):
        u = p["conv_bias"] + sum(p["conv"][3 - j] * v[t - j] for j in range(min(4, t + 1)))
        a = np.exp(-8.0 * _gate(p, "decay_gate", u) * np.log1p(np.exp(p["decay"])))
        new = _gate(p, "input_gate", u) * u
        h = new if t == 0 else a * h + np.sqrt(1.0 - a**2) * new
        outputs.append(p["out"] @ (h * _gelu(x[t] @ p["y"].T + p["y_bias"])) + p["out_bias"])
    return np.stack(outputs)


def _inputs(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, length, GRIFFIN.width)).astype(np.float32)


# Packed documents of several lengths, one sequence padded on the left and one on the right.
POSITIONS = np.array(
    [
        [*range(1), *range(2), *range(12)],
        [-1, -1, *range(5), *range(8)],
        [*range(9), *range(3), -1, -1, -1],
    ]
)


def _apply(params: RecurrentWeights, x: Any, positions: Any = POSITIONS) -> jax.Array:
    context = Positions(jnp.asarray(positions), None, jnp.zeros(len(positions), jnp.int32))
    return recurrent.apply(MIXER, params, BARE, x, context, None)[0] - x


def _documents(positions: np.ndarray) -> list[tuple[int, slice]]:
    """Return the sequence and the slice of every document."""
    found = []
    for row, places in enumerate(positions):
        starts = [*np.flatnonzero(places == 0), len(places)]
        found += [
            (row, slice(start, start + (places[start:end] >= 0).sum())) for start, end in itertools.pairwise(starts)
        ]
    return found


def test_documents_equal_the_equations():
    x = _inputs(*POSITIONS.shape)
    found = np.asarray(jax.jit(_apply)(_weights().layers[0].mixer, x))
    documents = _documents(POSITIONS)
    assert len(documents) == 7
    for row, place in documents:
        np.testing.assert_allclose(found[row, place], _equations(_block(), x[row, place].astype(np.float64)), **CLOSE)


def test_gradients_equal_finite_differences_of_the_equations():
    """Along a random direction of each weight and the inputs, over resets and padding; in float64."""
    params, x = _weights().layers[0].mixer, _inputs(*POSITIONS.shape)
    weight = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32)
    weight[POSITIONS < 0] = 0.0
    by_params, by_x = jax.jit(jax.grad(lambda p, x: jnp.sum(_apply(p, x) * weight), argnums=(0, 1)))(params, x)
    gradients = {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten(by_params).items()}
    assert np.all(np.asarray(by_x)[POSITIONS < 0] == 0)

    def value(p: dict[str, np.ndarray], x: np.ndarray) -> float:
        return sum(np.sum(_equations(p, x[row, place]) * weight[row, place]) for row, place in _documents(POSITIONS))

    numbers = np.random.default_rng(6)
    for name in (*gradients, None):
        if name is None:
            direction = numbers.standard_normal(x.shape)
            slope, moves = np.sum(np.asarray(by_x) * direction), lambda s, d=direction: (_block(), x + s * d)
        else:
            direction = numbers.standard_normal(gradients[name].shape)
            slope = np.sum(gradients[name] * direction)
            moves = lambda s, n=name, d=direction: (_block() | {n: _block()[n] + s * d}, x.astype(np.float64))  # noqa: E731
        expected = (value(*moves(1e-6)) - value(*moves(-1e-6))) / 2e-6
        assert abs(slope - expected) < 1e-5 * max(abs(expected), 1.0), name


def test_the_slope_of_the_square_root_is_bounded():
    x = np.array([0.0, 1e-9, 2e-7, 2.6e-7, 1e-5, 0.3, 1.0], np.float32)
    np.testing.assert_array_equal(bounded_sqrt(jnp.asarray(x)), np.sqrt(x))
    slopes = np.asarray(jax.vmap(jax.grad(bounded_sqrt))(jnp.asarray(x)))
    np.testing.assert_allclose(slopes[:3], 1000.0, rtol=1e-6)
    exact, step = x[3:].astype(np.float64), 1e-4 * x[3:]
    np.testing.assert_allclose(slopes[3:], (np.sqrt(exact + step) - np.sqrt(exact - step)) / (2 * step), rtol=1e-6)


def test_channels_that_never_forget_have_gradients():
    """With a decay of e^-60 a is exactly 1, and the slope of the square root is infinite."""
    params, x = _weights().layers[0].mixer, jnp.asarray(_inputs(*POSITIONS.shape))
    params = tree.map_with_path(lambda path, leaf: leaf * 0 - 60.0 if path == "decay" else leaf, params)
    value, gradients = jax.jit(jax.value_and_grad(lambda p: jnp.sum(_apply(p, x))))(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.fixture(params=["reference", "auto"])
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both versions of the recurrence with a state; `auto` is the kernel."""
    if request.param == "auto" and not native_enabled():
        pytest.skip("the C++ kernels are not installed")
    with choice.use(request.param):
        yield


both = pytest.mark.usefixtures("kernel")


@both
def test_one_token_is_a_step_without_a_loop():
    params, state = _weights().layers[0].mixer, _empty(2).layers[0]
    assert isinstance(state, RecurrentState)
    context = Positions(jnp.array([[4], [0]]), None, jnp.array([4, 0]))
    jaxpr = jax.make_jaxpr(lambda x: recurrent.apply(MIXER, params, BARE, x, context, state))(_inputs(2, 1))
    assert "cumsum" not in str(jaxpr)
    assert "scan[" not in str(jaxpr)
    assert "while[" not in str(jaxpr)


# A whole model with a state.


@both
@pytest.mark.parametrize(
    "sizes",
    [(9, *[1] * 22), (1, 3, 1, 9, 3, 1, 9, 1, 3)],
    ids=["a prompt longer than the window, then single tokens", "uneven"],
)
def test_chunks_equal_one_pass(sizes: Sequence[int]):
    state, parts, start = _empty(), [], 0
    for size in sizes:
        hidden, state = _hidden(TOKENS[:, start : start + size], state)
        parts.append(hidden)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), _whole(), **CLOSE)
    assert state.lengths.tolist() == [LENGTH] * 3


# The tokens of three sequences in each call; each is padded on one side, or all padding.
TAKEN = ((9, 2, 0), (0, 9, 1), (1, 0, 2), (9, 3, 9), (3, 9, 9), (9, 8, 9), (0, 0, 1))


@both
@pytest.mark.parametrize("sides", ["left", "right", "in turns"])
def test_padding_and_batch_mates_change_nothing(sides: str):
    state, done = _empty(), [0, 0, 0]
    for call, counts in enumerate(TAKEN):
        tokens, valid = np.full((3, 9), VOCAB - 1), np.zeros((3, 9), bool)
        places = []
        for row, count in enumerate(counts):
            left = sides == "left" or (sides == "in turns" and (call + row) % 2 == 0)
            places.append(slice(9 - count, 9) if left else slice(0, count))
            tokens[row, places[row]] = TOKENS[row, done[row] : done[row] + count]
            valid[row, places[row]] = True
        before = state.layers
        hidden, state = _hidden(tokens, state, valid=valid)
        for row, count in enumerate(counts):
            expected = _whole()[row, done[row] : done[row] + count]
            np.testing.assert_allclose(hidden[row, places[row]], expected, **CLOSE)
            done[row] += count
            if count == 0:  # nothing was said, so nothing is to be remembered
                for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.layers), strict=True):
                    np.testing.assert_array_equal(old[row], new[row])
    assert state.lengths.tolist() == done == [LENGTH] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_state_changes_nothing(side: str):
    tokens, valid = np.zeros((3, LENGTH), int), np.zeros((3, LENGTH), bool)
    lengths = (LENGTH, 2, WINDOW + 4)
    places = [slice(LENGTH - n, LENGTH) if side == "left" else slice(0, n) for n in lengths]
    for row, (n, place) in enumerate(zip(lengths, places, strict=True)):
        tokens[row, place], valid[row, place] = TOKENS[row, :n], True
    hidden = _hidden(tokens, valid=valid)[0]
    for row, (n, place) in enumerate(zip(lengths, places, strict=True)):
        np.testing.assert_allclose(hidden[row, place], _whole()[row, :n], **CLOSE)


@both
def test_a_row_does_not_depend_on_its_batch_mates():
    """Bitwise, for the same shapes: not on their tokens, and not on how many of them are padding."""
    results = []
    for seed in (1, 2):
        tokens = random_ids(VOCAB, (3, 9), seed=seed)
        tokens[0] = random_ids(VOCAB, (1, 9), seed=9)[0]
        valid = np.ones((3, 9), bool)
        valid[1:, 3 * seed :] = False
        hidden, state = _hidden(tokens, _empty(), valid=valid)
        following, _ = _hidden(tokens[:, :1], state)
        results.append((hidden[0], following[0]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@both
def test_a_new_text_in_a_used_row_remembers_nothing_of_the_old():
    """A sequence is free again once its length is 0: the layers' state of the old text must have no effect."""
    _, used = _hidden(random_ids(VOCAB, (3, LENGTH), seed=8)[:, :9], _empty())
    state = DecodeState(jnp.zeros(3, jnp.int32), used.layers)
    parts = []
    for start in (0, 1, 2, 3, 12, 21, 30):
        size = {0: 1, 1: 1, 2: 1, 30: 1}.get(start, 9)
        hidden, state = _hidden(TOKENS[:, start : start + size], state)
        parts.append(hidden)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), _whole(), **CLOSE)


def test_packed_documents_equal_separate_ones():
    ends = ((3, 4, 18), (7, 14, 21), (1, 2, 30))
    segments = np.stack([np.repeat([5, 0, 2, 1], np.diff([0, *cuts, LENGTH])) for cuts in ends])
    packed = _hidden(TOKENS, segments=segments)[0]
    for document in (5, 0, 2, 1):
        own = segments == document
        tokens, valid = np.zeros((3, LENGTH), int), np.zeros((3, LENGTH), bool)
        for row in range(3):
            count = own[row].sum()
            tokens[row, :count], valid[row, :count] = TOKENS[row, own[row]], True
        alone = _hidden(tokens, valid=valid)[0]
        np.testing.assert_allclose(packed[own], alone[valid], **CLOSE)


@pytest.mark.skipif(not native_enabled(), reason="the C++ kernels are not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_equals_the_reference(dtype: str):
    """Both in float32; if a channel keeps nearly all, 1 - a^2 has few digits in the reference."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), _weights().layers[0].mixer)
    random = np.random.default_rng(5)
    u = jnp.asarray(random.standard_normal((3, POSITIONS.shape[1], MIXER.width)), dtype)
    initial = jnp.asarray(random.standard_normal((3, MIXER.width)), jnp.float32)
    positions = jnp.asarray(np.where(POSITIONS < 0, -1, POSITIONS + np.array([[0], [7], [0]])))
    gates = (params.input_gate, params.input_gate_bias), (params.decay_gate, params.decay_gate_bias)
    results = []
    for impl in ("native", "reference"):
        with choice.use(impl):
            results.append(rg_lru(u, positions, initial, *gates, params.decay))
    found, expected = results
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


def test_the_state_does_not_grow():
    sizes = [state_bytes(GRIFFIN, 1, capacity, jnp.bfloat16) for capacity in (WINDOW, 1000, 10**6)]
    recurrent_layer = 4 * 24 + 2 * 3 * 24
    attention_layer = 2 * 2 * WINDOW * 8
    assert sizes == [4 + 2 * recurrent_layer + attention_layer] * 3
    assert room(_empty(), GRIFFIN) is None
