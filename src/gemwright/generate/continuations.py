"""Log-likelihoods of continuations of texts, as evaluations ask for: each text is read once, shared prefixes too.

Few-shot prompts of one task begin with the same examples, and the answers of one question follow the same text. Texts
with a long common prefix run behind a copy of its state; the answers run behind copies of the state of their text.
Only the tokens of answers are multiplied by the head.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.generate import buckets, programs, slots
from gemwright.generate.engine import Engine
from gemwright.generate.prompts import Ids
from gemwright.generate.step import require_finite
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, with_room
from gemwright.typing import Array, Bool, Float, Int

MAX_TEXTS = 16
"""Maximum number of texts that run as a batch."""
MAX_CONTINUATIONS = 32
"""Maximum number of continuations that run as a batch."""
MIN_SHARED_TOKENS = 64
"""Minimum number of tokens of a prefix that is read once for several texts."""
WIDTHS = (4, 8, 16, 24, 32, 48, 64, 128, 256, 512)
"""Numbers of tokens per continuation in a call."""
BLOCK = 32
"""Number of tokens whose logits are computed together."""
CAPACITIES = (128, 256, 512)
"""Capacities of small KV caches in tokens: states of texts are copied for each of their continuations."""

_Row = TypeVar("_Row")


class Likelihood(NamedTuple):
    """The natural logarithm of a continuation's probability, and whether each of its tokens is the likeliest."""

    logprob: float
    is_greedy: bool


Report = Callable[[Sequence[tuple[int, Likelihood]]], None]
"""A callback with the indices and likelihoods of continuations that have just been scored."""


class _Text(NamedTuple):
    """A text, and the indices of its continuations among all."""

    ids: tuple[int, ...]
    continuations: list[int]


def score_continuations(
    engine: Engine, pairs: Sequence[tuple[Ids, Ids]], report: Report = lambda scored: None
) -> list[Likelihood]:
    """Return the likelihood of each continuation after its text; both are token ids, of which there is at least one.

    Raises:
        GemwrightError: As for `Engine.score`, of a text with its continuation.
    """
    results: list[Likelihood | None] = [None] * len(pairs)
    indices = sorted(range(len(pairs)), key=lambda index: tuple(pairs[index][0]))
    texts = [_Text(ids, list(group)) for ids, group in groupby(indices, key=lambda index: tuple(pairs[index][0]))]
    for run, shared in _runs(texts):
        prefix = None
        for start in range(0, len(run), MAX_TEXTS):
            batch = run[start : start + MAX_TEXTS]
            room = max(len(text.ids) + _longest(text, pairs) for text in (run if shared else batch))
            if shared and prefix is None:
                prefix, _ = engine.prefill([run[0].ids[:shared]], _empty_state(engine, 1, room))
            scored = list(_score_batch(engine, batch, room, prefix, pairs))
            for index, likelihood in scored:
                results[index] = likelihood
            report(scored)
    return [likelihood for likelihood in results if likelihood is not None]  # all of them


class SharedPrefix:
    """The state of the last prefix that was read, for the texts that follow.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._ids: Ids = ()
        self._state: DecodeState | None = None

    def states(self, texts: Sequence[Ids], room: int) -> DecodeState | None:
        """Return states that hold the common prefix of texts, or None if it is short.

        Args:
            texts: Token ids of each text.
            room: Number of tokens of each text and of what follows it.
        """
        first, last = min(texts, key=tuple), max(texts, key=tuple)  # their common prefix is that of all
        shared = min(_common(first, last), len(first) - 1, len(last) - 1)
        if shared < MIN_SHARED_TOKENS:
            return None
        is_known = self._state is not None and MIN_SHARED_TOKENS <= len(self._ids) <= shared
        if not is_known or list(first[: len(self._ids)]) != list(self._ids) or len(self._ids) < shared // 2:
            self._ids = first[:shared]
            self._state, _ = self._engine.prefill([self._ids], self._engine.empty_state(1, room))
        assert self._state is not None
        state = with_room(
            self._state, self._engine.config, room, buckets.capacity(room, self._engine.config.max_length)
        )
        return slots.gather(state, jnp.zeros(len(texts), jnp.int32))


def _empty_state(engine: Engine, count: int, room: int) -> DecodeState:
    """Return a state of the smallest capacity with room for a number of tokens."""
    capacity = next((size for size in CAPACITIES if size >= room), buckets.capacity(room, engine.config.max_length))
    return engine.allocate_state(count, min(capacity, engine.config.max_length))


def _longest(text: _Text, pairs: Sequence[tuple[Ids, Ids]]) -> int:
    return max(len(pairs[index][1]) for index in text.continuations)


def _runs(texts: Sequence[_Text]) -> Iterator[tuple[list[_Text], int]]:
    """Yield runs of sorted texts, each with the length of its prefix; at last, by length, those that share none."""
    alone: list[_Text] = []
    start = 0
    while start < len(texts):
        stop, shared = _run(texts, start)
        if shared:
            yield list(texts[start:stop]), shared
        else:
            alone += texts[start:stop]
        start = stop
    yield sorted(alone, key=lambda text: len(text.ids)), 0


def _run(texts: Sequence[_Text], start: int) -> tuple[int, int]:
    """Return the end of the run of texts from `start` that share a prefix, and its length, 0 for a single text.

    The prefix is at least half of the texts, so that what one of them adds does not shorten it for the others.
    """
    stop, shared = start + 1, len(texts[start].ids) - 1
    while stop < len(texts):
        common = min(shared, _common(texts[start].ids, texts[stop].ids), len(texts[stop].ids) - 1)
        if common < max(MIN_SHARED_TOKENS, len(texts[stop].ids) // 2):
            break
        stop, shared = stop + 1, common
    return stop, shared if stop > start + 1 else 0


def _common(one: Ids, other: Ids) -> int:
    """Return the number of tokens with which both begin."""
    length = min(len(one), len(other))
    same = np.asarray(one[:length]) == np.asarray(other[:length])
    return length if same.all() else int(np.argmin(same))


def _score_batch(
    engine: Engine,
    batch: Sequence[_Text],
    room: int,
    prefix: DecodeState | None,
    pairs: Sequence[tuple[Ids, Ids]],
) -> Iterator[tuple[int, Likelihood]]:
    """Yield the index and the likelihood of each continuation of a batch of texts that begin as a state says."""
    texts = _fill([text.ids for text in batch])
    if prefix is None:
        state = _empty_state(engine, len(texts), room)
    else:
        state = slots.gather(prefix, jnp.zeros(len(texts), jnp.int32))
    state, hidden = engine.prefill(texts, state)
    rows = [(row, index) for row, text in enumerate(batch) for index in text.continuations]
    first = _first_tokens(engine, hidden, [(row, pairs[index][1][0]) for row, index in rows])
    rest = [(row, index) for row, index in rows if len(pairs[index][1]) > 1]
    later = dict(_later_tokens(engine, state, sorted(rest, key=lambda one: len(pairs[one[1]][1])), pairs))
    for (_, index), (logprob, is_greedy) in zip(rows, first, strict=True):
        more, all_greedy = later.get(index, (0.0, True))
        yield index, Likelihood(logprob + more, bool(is_greedy and all_greedy))


def _later_tokens(
    engine: Engine, state: DecodeState, rows: Sequence[tuple[int, int]], pairs: Sequence[tuple[Ids, Ids]]
) -> Iterator[tuple[int, Likelihood]]:
    """Yield the likelihood of the tokens after the first of each continuation, given the row of its text."""
    for start in range(0, len(rows), MAX_CONTINUATIONS):
        part = rows[start : start + MAX_CONTINUATIONS]
        parents = slots.gather(state, jnp.asarray(_fill([row for row, _ in part]), jnp.int32))
        found = _score_rest(engine, parents, [pairs[index][1] for _, index in part])
        for (_, index), likelihood in zip(part, found, strict=True):
            yield index, likelihood


def _score_rest(engine: Engine, state: DecodeState, continuations: Sequence[Ids]) -> list[Likelihood]:
    """Return the likelihood of the tokens after the first of each continuation of the texts that a state holds.

    Args:
        engine: The engine.
        state: States of the texts, donated, of which there can be more than continuations.
        continuations: Token ids of each continuation.
    """
    sequences = state.lengths.shape[0]
    sums, greedy = [0.0] * len(continuations), [True] * len(continuations)
    for start in range(0, max(map(len, continuations)) - 1, WIDTHS[-1]):
        parts = [list(ids[start : start + WIDTHS[-1] + 1]) for ids in continuations]
        width = next(size for size in WIDTHS if size >= max(map(len, parts)) - 1)
        tokens, valid = np.zeros((sequences, width), np.int32), np.zeros((sequences, width), bool)
        for row, ids in enumerate(parts):
            tokens[row, : len(ids) - 1] = ids[:-1]
            valid[row, : len(ids) - 1] = True
        hidden, state = _forward(engine.config, engine.params, tokens, valid, state)
        at = np.argwhere(valid)
        targets = np.array([parts[row][column + 1] for row, column in at], np.int32)
        found, likeliest = _score_tokens(engine, hidden, at, targets)
        require_finite(np.isfinite(found))
        for (row, _), logprob, is_likeliest in zip(at, found, likeliest == targets, strict=True):
            sums[row] += float(logprob)
            greedy[row] &= bool(is_likeliest)
    return [Likelihood(*pair) for pair in zip(sums, greedy, strict=True)]


def _score_tokens(
    engine: Engine, hidden: Array, at: NDArray[np.int64], targets: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the log-probability of each target, and the likeliest token in its place.

    Args:
        engine: The engine.
        hidden: Hidden states of tokens [B, T, D].
        at: Sequence and place of the token before each target [N, 2].
        targets: The targets [N].
    """
    found: list[tuple[Array, Array]] = []
    for start in range(0, len(at), BLOCK):
        places, ids = np.zeros((BLOCK, 2), np.int32), np.zeros((BLOCK, 1), np.int32)
        count = len(at[start : start + BLOCK])
        places[:count], ids[:count, 0] = at[start : start + BLOCK], targets[start : start + BLOCK]
        chosen = hidden[places[:, 0], places[:, 1]]
        found.append(_token_logprobs(engine.config, engine.vocabulary, engine.params, chosen, jnp.asarray(ids)))
    logprobs, likeliest = ([np.asarray(part).reshape(-1) for part in parts] for parts in zip(*found, strict=True))
    return np.concatenate(logprobs)[: len(at)], np.concatenate(likeliest)[: len(at)]


@programs.on_mesh
@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _forward(
    config: Config,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: DecodeState,
) -> tuple[Float[Array, "B T D"], DecodeState]:
    """Add tokens to the state, which is donated; return their hidden states. Padding is behind the tokens."""
    return programs.forward(config, params, tokens, valid, state)


def _fill(rows: Sequence[_Row]) -> list[_Row]:
    """Repeat the first row until their number is a power of two, so that few programs are compiled."""
    return [*rows, *[rows[0]] * ((1 << (len(rows) - 1).bit_length()) - len(rows))]


def _first_tokens(engine: Engine, hidden: Array, wanted: Sequence[tuple[int, int]]) -> list[Likelihood]:
    """Return the likelihood of each token that follows the text of a row."""
    counts = np.bincount([row for row, _ in wanted], minlength=len(hidden))
    targets = np.zeros((len(hidden), -(-int(counts.max()) // 4) * 4), np.int32)
    places: list[tuple[int, int]] = []
    filled = np.zeros(len(hidden), np.int32)
    for row, token in wanted:
        targets[row, filled[row]] = token
        places.append((row, int(filled[row])))
        filled[row] += 1
    logprobs, likeliest = _token_logprobs(engine.config, engine.vocabulary, engine.params, hidden, jnp.asarray(targets))
    found: NDArray[np.float32] = np.asarray(logprobs)
    require_finite(np.isfinite(found))
    return [Likelihood(float(found[place]), int(likeliest[place[0]]) == targets[place]) for place in places]


@programs.on_mesh
@functools.partial(jax.jit, static_argnames=("config", "vocabulary"))
def _token_logprobs(
    config: Config, vocabulary: int, params: ModelWeights, hidden: Float[Array, "B D"], targets: Int[Array, "B N"]
) -> tuple[Float[Array, "B N"], Int[Array, " B"]]:
    """Return the log-probability of each target after a hidden state, and the likeliest token."""
    logits = programs.real_logits(transformer.logits(config, params, hidden), vocabulary)
    chosen = jnp.take_along_axis(logits, targets, axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True), jnp.argmax(logits, axis=-1)
