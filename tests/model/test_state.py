"""Hidden states of a text cut, padded and batched in any way equal those of one pass over the whole text."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.kernels import choice
from gemwright.kernels.attention import cell_positions, visible
from gemwright.kernels.native import native_enabled
from gemwright.model.config import Config
from gemwright.model.state import DecodeState, abstract_state, empty_state, grow, state_bytes
from gemwright.model.transformer import forward
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, WINDOW, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation", "kernel")
LENGTH = 4 * WINDOW + 3
TOKENS = random_ids(VOCAB, (3, LENGTH))
CAPACITY = 48
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Hidden states are of the order of 1: sums in another order differ by some ten roundings of float32."""
CHUNKS = (1, 3, 2 * WINDOW - 1)
"""A single token, a part of a window, and more than the cache of a local layer holds."""
few = settings(max_examples=8, deadline=None, derandomize=True)
configs = pytest.mark.parametrize("name", ["multi-query", "capped", "qk-norm"])
mixed = pytest.mark.parametrize("name", ["capped"])
"""A local and a global layer, for tests that do not depend on the kind of attention."""


@pytest.fixture(scope="module", params=["reference", "native"])
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both versions of attention with a state."""
    if request.param == "native" and not native_enabled():
        pytest.skip("the C++ kernels are not installed")
    with choice.use(request.param):
        yield


_forward = jax.jit(forward, static_argnums=0)


@functools.cache
def _model(name: str) -> tuple[Config, Any]:
    return CONFIGS[name], make_weights(CONFIGS[name])


@functools.cache
def _whole(name: str) -> np.ndarray:
    """Hidden states [3, LENGTH, D] of `_tokens(3)` in one pass without a state."""
    return _stateless(name, TOKENS)


def _stateless(name: str, tokens: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    config, params = _model(name)
    mask = np.ones(tokens.shape, bool) if valid is None else valid
    return np.asarray(_forward(config, params, tokens, valid=mask)[0])


def _run(name: str, state: DecodeState, tokens: np.ndarray, valid: np.ndarray | None = None) -> tuple[Any, DecodeState]:
    config, params = _model(name)
    mask = np.ones(tokens.shape, bool) if valid is None else valid
    hidden, after = _forward(config, params, tokens, state, valid=mask)
    assert after is not None
    return np.asarray(hidden), after


@configs
@few
@given(st.lists(st.sampled_from(CHUNKS), min_size=LENGTH, max_size=LENGTH))
def test_uneven_chunks_equal_one_pass(name: str, sizes: list[int]):
    state, start, parts = empty_state(_model(name)[0], 3, CAPACITY, jnp.float32), 0, []
    for size in sizes:
        if start + size > LENGTH:
            size = 1
        if start == LENGTH:
            break
        hidden, state = _run(name, state, TOKENS[:, start : start + size])
        parts.append(hidden)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), _whole(name), **CLOSE)
    assert state.lengths.tolist() == [LENGTH] * 3


@st.composite
def _padded_chunks(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, bool]]]]:
    """Chunk sizes, and for each of three sequences its number of real tokens and whether they are padded left."""
    size = st.sampled_from(CHUNKS)
    row = st.tuples(st.integers(0, CHUNKS[-1]), st.booleans())
    return draw(st.lists(st.tuples(size, st.lists(row, min_size=3, max_size=3)), min_size=2, max_size=9))


@configs
@few
@given(_padded_chunks())
def test_padding_on_either_side_changes_nothing(name: str, chunks: list[tuple[int, list[tuple[int, bool]]]]):
    """Sequences of different lengths, each padded left or right in every chunk independently."""
    state = empty_state(_model(name)[0], 3, CAPACITY, jnp.float32)
    done = [0, 0, 0]
    for size, rows in chunks:
        tokens, valid = np.full((3, size), VOCAB - 1), np.zeros((3, size), bool)
        taken: list[tuple[int, slice]] = []
        for row, (count, right) in enumerate(rows):
            count = min(count, size, LENGTH - done[row])
            place = slice(size - count, size) if right else slice(0, count)
            tokens[row, place], valid[row, place] = TOKENS[row, done[row] : done[row] + count], True
            taken.append((count, place))
        hidden, state = _run(name, state, tokens, valid)
        for row, (count, place) in enumerate(taken):
            expected = _whole(name)[row, done[row] : done[row] + count]
            np.testing.assert_allclose(hidden[row, place], expected, **CLOSE)
            done[row] += count
        assert state.lengths.tolist() == done
    assert np.all(np.isfinite(jax.tree.leaves(jax.tree.map(lambda leaf: float(jnp.sum(leaf)), state))))


@configs
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_state_changes_nothing(name: str, side: str):
    lengths = (LENGTH, 5, WINDOW + 4)
    tokens, valid = np.zeros((3, LENGTH), int), np.zeros((3, LENGTH), bool)
    places = [slice(LENGTH - n, LENGTH) if side == "left" else slice(0, n) for n in lengths]
    for row, (n, place) in enumerate(zip(lengths, places, strict=True)):
        tokens[row, place], valid[row, place] = TOKENS[row, :n], True
    hidden = _stateless(name, tokens, valid)
    for row, (n, place) in enumerate(zip(lengths, places, strict=True)):
        np.testing.assert_allclose(hidden[row, place], _whole(name)[row, :n], **CLOSE)


@mixed
def test_growing_keeps_what_is_stored(name: str):
    """From less than a window to more, and on when the cache of the local layers has rotated."""
    capacities = (WINDOW - 2, WINDOW + 5, CAPACITY)
    config, _ = _model(name)
    state, parts, start = empty_state(config, 3, capacities[0], jnp.float32), [], 0
    for capacity in capacities:
        state = grow(state, config, capacity) if start else state
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(
            lambda leaf: leaf.shape, abstract_state(config, 3, capacity, jnp.float32)
        )
        while start < min(capacity, LENGTH):
            hidden, state = _run(name, state, TOKENS[:, start : start + 1])
            parts.append(hidden)
            start += 1
    np.testing.assert_allclose(np.concatenate(parts, axis=1), _whole(name), **CLOSE)


@configs
def test_a_row_does_not_depend_on_its_batch_mates(name: str):
    """Bitwise, for the same shapes: not on their tokens, and not on how many of them are padding."""
    results = []
    for seed in (1, 2):
        tokens = random_ids(VOCAB, (3, CHUNKS[-1]), seed=seed)
        tokens[0] = random_ids(VOCAB, (1, CHUNKS[-1]), seed=9)[0]
        valid = np.ones((3, CHUNKS[-1]), bool)
        valid[1:, 5 * seed :] = False
        state = empty_state(_model(name)[0], 3, CAPACITY, jnp.float32)
        hidden, state = _run(name, state, tokens, valid)
        following, _ = _run(name, state, tokens[:, :1])
        results.append((hidden[0], following[0]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@mixed
def test_the_number_of_rows_changes_only_roundings(name: str):
    for row in range(3):
        alone = _stateless(name, TOKENS[row : row + 1])
        np.testing.assert_allclose(alone[0], _whole(name)[row], **CLOSE)


@mixed
def test_packed_documents_equal_separate_ones(name: str):
    config, params = _model(name)
    # Ends of the documents of three sequences.
    ends = [(3, 4, 4 + 2 * WINDOW), (WINDOW, 2 * WINDOW, 3 * WINDOW), (1, 2, LENGTH - 1)]
    segments = np.zeros((3, LENGTH), int)
    for row, cuts in enumerate(ends):
        segments[row] = np.repeat([5, 0, 2, 1], np.diff([0, *cuts, LENGTH]))  # neighbors differ, no order
    packed, _ = _forward(config, params, TOKENS, segments=segments)
    for document in (5, 0, 2, 1):
        own = segments == document
        tokens, valid = np.zeros((3, LENGTH), int), np.zeros((3, LENGTH), bool)
        for row in range(3):
            count = own[row].sum()
            tokens[row, :count], valid[row, :count] = TOKENS[row, own[row]], True
        np.testing.assert_allclose(np.asarray(packed)[own], _stateless(name, tokens, valid)[valid], **CLOSE)


def test_every_slot_knows_the_last_position_that_fell_into_it():
    cells = 5
    cache = np.full(cells, -1)
    for length in range(1, 14):
        cache[(length - 1) % cells] = length - 1
        found = np.asarray(cell_positions(cells, jnp.array([length, 0])))
        np.testing.assert_array_equal(np.where(found[0] < 0, -1, found[0]), cache)
        assert np.all(found[1] < 0)


@pytest.mark.parametrize("window", [1, 4, None])
def test_a_window_counts_the_token_itself(window: int | None):
    positions = jnp.arange(10)[None]
    seen = np.asarray(visible(positions, positions, window))[0]
    for query in range(10):
        first = 0 if window is None else max(0, query - window + 1)
        assert np.flatnonzero(seen[query]).tolist() == list(range(first, query + 1))


def test_padding_keys_are_never_visible():
    seen = np.asarray(visible(jnp.array([[0, 1, -1]]), jnp.array([[-1, 0, -4]]), 100))
    np.testing.assert_array_equal(seen, [[[False, True, False], [False, True, False], [False, False, False]]])


def test_state_bytes_are_those_of_the_arrays():
    config = CONFIGS["qk-norm"]
    state = empty_state(config, 2, CAPACITY, jnp.bfloat16)
    assert state_bytes(config, 2, CAPACITY, jnp.bfloat16) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
