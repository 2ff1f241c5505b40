"""Speculation without loss: guess the next tokens cheaply, verify several in one pass.

A pass over a few tokens costs little more than a pass over one, as most of the cost is reading the weights. So the
pending token and guesses of what follows it go through the model together (`programs.verify`), and at every position
the model chooses as it does when it decodes. A guess stands if it is the token chosen before it; the first choice that
was not guessed is the next pending token, so a pass brings at least one token. What was taken in beyond it is taken
back: lengths shrink, and rings have room so that nothing that is still visible was overwritten (`state.with_slack`).

Nothing is lost. The numbers that decide a draw belong to the row's seed and the token's position alone
(`sampling.uniform`), so the token at a position is a function of the tokens before it, whoever guessed them, and a row
reads token for token as it does without speculation; its distribution is the model's because each token was drawn from
the model by its own uniform numbers. Speculative sampling (arXiv:2211.17192) instead accepts a guess x with probability
min(1, p(x) / q(x)) and draws anew from what is left of p; that accepts more of a sampled draft's guesses, and gives the
same distribution but another text. Here the draft draws with the same numbers, which makes it agree often, and no
acceptance needs probabilities.

Guesses come from the text (prompt look-up decoding, github.com/apoorvumang/prompt-lookup-decoding) or from a smaller
model of the same vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs
from gemwright.generate.programs import DecodeOptions, SampledTokens
from gemwright.generate.prompts import Ids, chunks
from gemwright.generate.sampling import BatchedSampling, Sampling, candidate_count
from gemwright.generate.step import Step, from_choice
from gemwright.model.config import Config, Recurrent
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, empty_state, with_room, with_slack

SLACK = buckets.VERIFIED[-1] - 1
"""Tokens that a verification may take back."""
MOST_ROWS = 8
"""A larger batch is decoded plainly: kernels may multiply so many tokens in other numbers than `decode` does."""
GRAMS = (3, 2)
"""So many last tokens are looked up in the text, the longer first."""
PATIENCE = (16, 256)
"""Least and most tokens that are decoded plainly between attempts that do not pay."""

Verify = Callable[[NDArray[np.int32], NDArray[np.bool_]], tuple[SampledTokens, NDArray[np.int32]]]
"""Tokens and which of them are real, [B, T], to the choice at each, [B * T], and how many choices stand in a row."""


@runtime_checkable
class Proposer(Protocol):
    """What guesses, for one batch from its prompts to its end."""

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Guess what follows each text, `count` tokens or none."""
        ...


def refuse_recurrent(config: Config) -> None:
    """Speculate only with models that can take tokens back.

    Raises:
        GemwrightError: the model has recurrent layers.
    """
    if any(isinstance(layer.mixer, Recurrent) for layer in config.layers):
        raise GemwrightError(
            "Speculation takes tokens back, which recurrent layers cannot; leave out lookup and draft for this model."
        )


@dataclass
class Lookup:
    """Guesses that what followed the last tokens where they last stood in the text follows them again."""

    _rows: "list[_Grams]" = field(default_factory=list)

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Guess what follows each text, `count` tokens or none."""
        self._rows = self._rows or [_Grams() for _ in texts]
        return [row.follow(text, count) for row, text in zip(self._rows, texts, strict=True)]


@dataclass
class _Grams:
    """Where each short run of tokens of a text last ended, but for the runs at the text's own end."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    length: int = 1

    def follow(self, text: Ids, count: int) -> Ids:
        for end in range(self.length, len(text)):
            self.ends.update((tuple(text[end - n : end]), end) for n in GRAMS if n <= end)
        self.length = len(text)
        found = (self.ends.get(tuple(text[-n:])) for n in GRAMS)
        start = next((end for end in found if end is not None), None)
        if start is None:
            return []
        period = len(text) - start  # a text that repeats itself goes on repeating
        return [text[start + i % period] for i in range(count)]


class Draft:
    """Guesses what a smaller model would write, with the same random numbers."""

    def __init__(
        self,
        config: Config,
        params: ModelWeights,
        vocabulary: int,
        samplings: Sequence[Sampling],
        state_dtype: DTypeLike,
    ):
        refuse_recurrent(config)
        self._dtype = state_dtype
        self._config, self._params, self._rings = config, params, with_slack(config, SLACK)
        self._options = DecodeOptions(vocabulary, candidate_count(samplings), penalty=False, top_logprobs=None)
        self._batched = BatchedSampling.stack(samplings)
        self._state: DecodeState | None = None
        self._taken = [list[int]() for _ in samplings]
        """What the state holds of each row."""
        self._sure = [0] * len(samplings)
        """How much of it is surely text."""

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Guess what follows each text, `count` tokens, or none where this model's context ends."""
        longest = max(map(len, texts)) + count
        if longest > self._config.max_length:
            return [[] for _ in texts]
        state = self._catch_up(texts, longest)
        token = jnp.asarray([max(text[-1], 0) for text in texts], jnp.int32)
        choices, token, state, _ = programs.decode(
            self._config, self._options, self._params, token, state, self._batched, None, count
        )
        # The last guess is taken in too: the next round begins behind it if all are accepted.
        self._state, _ = programs.prefill(
            self._config, self._params, token[:, None], np.ones((len(texts), 1), bool), state
        )
        rows = np.asarray(choices.token)[:count].T.tolist()
        self._sure = [len(text) for text in texts]
        self._taken = [[*text, *row] for text, row in zip(texts, rows, strict=True)]
        return rows

    def _catch_up(self, texts: Sequence[Ids], length: int) -> DecodeState:
        """The state after all but the last token of each text, with room for `length` tokens."""
        capacity = buckets.capacity(length, self._config.max_length)
        state = self._state or empty_state(self._rings, len(texts), capacity, self._dtype)
        held = list(map(_agreed, self._taken, texts, self._sure))
        state = DecodeState(jnp.asarray(held, jnp.int32), state.layers)
        state = with_room(state, self._rings, length, capacity)
        missed = [np.maximum(text[start:-1], 0).tolist() for text, start in zip(texts, held, strict=True)]
        for chunk in chunks(missed):
            state, _ = programs.prefill(self._config, self._params, chunk.tokens, chunk.valid, state)
        return state


def _agreed(taken: Ids, text: Ids, sure: int) -> int:
    """How many tokens of a text, all but its last at most, a state holds that took in `taken`."""
    most = min(len(taken), len(text) - 1)
    return next((i for i in range(min(sure, most), most) if taken[i] != text[i]), most)


@dataclass
class Pace:
    """How many tokens to verify in a pass, by what a pass brings against the seconds that it takes, as measured.

    If a guess stands with probability a, a pass over T tokens brings 1 + a + ... + a^(T - 1) (arXiv:2211.17192). Where
    no size beats plain decoding, that goes on for a while, longer each time, before another attempt.
    """

    rest: int = 2
    """Plain passes to come; at first as many as it takes to time them."""
    patience: int = PATIENCE[0]
    seconds: dict[int, float] = field(default_factory=dict)
    """Of a pass, by size."""
    called: set[int] = field(default_factory=set)
    stood: float = 1.0
    """Guesses that stood of those that were looked at, those long ago counting less; an attempt begins with hope."""
    tried: float = 1.0

    def size(self) -> int:
        """How many tokens to verify next, the pending one included; 1 is plain decoding."""
        return 1 if self.rest else max(buckets.VERIFIED, key=self._rate)

    def record(self, size: int, taken: NDArray[np.int32], seconds: float) -> None:
        """Learn from a pass over `size` tokens of each row that brought `taken` [rows] tokens."""
        # The first pass of a size may have been compiled. Later the least counts, as others share the machine, and is
        # slowly forgotten.
        if size in self.called:
            self.seconds[size] = min(seconds, 1.02 * self.seconds.get(size, seconds))
        self.called.add(size)
        if size == 1:
            self.rest = max(self.rest - 1, 0)
            return
        stood = float(np.mean(taken - 1))
        self.stood = 0.9 * self.stood + stood
        self.tried = 0.9 * self.tried + stood + float(np.mean(taken < size))
        plain = 1 / self.seconds.get(1, np.inf)
        if (stood + 1) / seconds > plain:
            self.patience = max(self.patience // 2, PATIENCE[0])
        if max(map(self._rate, buckets.VERIFIED)) <= plain:
            self.rest, self.patience = self.patience, min(2 * self.patience, PATIENCE[1])
            self.stood = self.tried = 1.0

    def _rate(self, size: int) -> float:
        """Tokens per second of a row; a size not yet timed is taken to cost half as much again as the nearest."""
        timed = [other for other in buckets.VERIFIED if other in self.seconds]
        if not timed:
            return np.inf
        nearest = min(timed, key=lambda other: abs(other - size))
        seconds = self.seconds[nearest] * (1.0 if nearest == size else 1.5)
        return sum((self.stood / self.tried) ** place for place in range(size)) / seconds


def decode(verify: Verify, proposer: Proposer, texts: Sequence[list[int]], count: int, first: Step) -> Iterator[Step]:
    """Continue texts by `count` tokens, one step at a time; rows run ahead of each other in between.

    Args:
        verify: runs a pass; the state that it keeps holds all but the last token of each text.
        proposer: what guesses.
        texts: the prompts, which grow.
        count: tokens to write in each row.
        first: the token of each row that has been chosen already.
    """
    rows = [_Row(text, count) for text in texts]
    pace = Pace()
    _hand_out(rows, first, np.ones(len(rows), np.int32), np.zeros(len(rows), np.int32))
    while True:
        while all(row.waiting for row in rows):
            yield _together([row.waiting.popleft() for row in rows])
        if not any(row.left for row in rows):
            return
        start = time.perf_counter()
        size = pace.size()
        guesses = proposer.propose(texts, size - 1) if size > 1 else [[] for _ in rows]
        tokens, valid = _lay_out(rows, guesses)
        choice, taken = verify(tokens, valid)
        writing = np.array([row.left > 0 for row in rows])
        pace.record(tokens.shape[1], taken[writing], time.perf_counter() - start)
        _hand_out(rows, from_choice(choice), taken, np.maximum(valid.sum(axis=1, dtype=np.int32) - 1, 0))


@dataclass
class _Row:
    """A text that is being written, how many tokens it still wants, and those that wait for the other rows."""

    text: list[int]
    left: int
    waiting: deque[Step] = field(default_factory=deque)


def _lay_out(rows: Sequence[_Row], guesses: Sequence[Ids]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Pending tokens and guesses behind them, in the least size that holds them, and which are real, [B, T].

    No guess goes beyond a row's end, so nothing is written beyond the context; a row at its end stands still.
    """
    parts = [[row.text[-1], *guess][: row.left] for row, guess in zip(rows, guesses, strict=True)]
    size = next(size for size in (1, *buckets.VERIFIED) if size >= max(map(len, parts)))
    tokens, valid = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for index, part in enumerate(parts):
        tokens[index, : len(part)], valid[index, : len(part)] = part, True
    return tokens, valid


def _hand_out(rows: Sequence[_Row], chosen: Step, taken: NDArray[np.int32], proposed: NDArray[np.int32]) -> None:
    """Give each row the choices that stand, the first `taken` of its own."""
    size = len(chosen.tokens) // len(rows)
    for index, row in enumerate(rows):
        for place in range(int(taken[index])):
            at = index * size + place
            step = Step(
                chosen.tokens[at : at + 1],
                _part(chosen.logprobs, at),
                _part(chosen.top_tokens, at),
                _part(chosen.top_logprobs, at),
                proposed[index, None] * (place == 0),
                (taken[index, None] - 1) * (place == 0),
            )
            row.waiting.append(step)
            row.text.append(int(chosen.tokens[at]))
            row.left -= 1


def _part(column: NDArray[Any] | None, at: int) -> NDArray[Any] | None:
    return None if column is None else column[at : at + 1]


def _together(rows: Sequence[Step]) -> Step:
    """Steps of one row each as one step of a batch."""

    def join(columns: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        present = [column for column in columns if column is not None]
        return np.concatenate(present) if present else None

    return Step(
        np.concatenate([row.tokens for row in rows]),
        join([row.logprobs for row in rows]),
        join([row.top_tokens for row in rows]),
        join([row.top_logprobs for row in rows]),
        np.concatenate([row.proposed for row in rows]),
        np.concatenate([row.accepted for row in rows]),
    )
