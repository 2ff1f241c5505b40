"""Lossless speculation: verify several draft tokens in one pass.

A pass over a few tokens costs little more than a pass over one, because most of its time is spent reading weights. So
the last token and draft tokens go through the model together (`programs.verify`), which chooses a token after each, as
in plain decoding. A draft token is accepted if it equals the token chosen before it, and the first choice that differs
is the next token, so a pass gives at least one. Tokens beyond it are rolled back: lengths shrink, and caches have slack
so that no entry that is still in a window was overwritten (`state.with_slack`).

The random numbers of a token depend only on the sequence's seed and the token's position (`sampling.uniform`), so the
token is a function of the tokens before it, with or without draft tokens: the text is the same as without speculation,
and its distribution is the model's. Speculative sampling (arXiv:2211.17192) instead accepts a draft token x with
probability min(1, p(x) / q(x)) and otherwise samples from the rest of p; that accepts more of a sampled draft's tokens,
and gives the same distribution but another text. Here the draft model uses the same random numbers, so it agrees often,
and accepting needs no probabilities.

Draft tokens come from the text (prompt lookup decoding, github.com/apoorvumang/prompt-lookup-decoding) or from a
smaller model of the same vocabulary; see `drafts`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright.generate import buckets
from gemwright.generate.drafts import Proposer
from gemwright.generate.programs import NO_TOKEN, NOT_FINITE, SampledTokens
from gemwright.generate.prompts import Ids
from gemwright.generate.step import Step, from_choice, require_finite

MAX_SEQUENCES = 8
"""Maximum batch size: for more tokens, kernels may round products otherwise than in `programs.decode`."""
PATIENCE = (16, 256)
"""Minimum and maximum number of plain passes after a failed attempt."""

Verified: TypeAlias = tuple[SampledTokens, NDArray[np.int32]]
"""The choice after each of B * T tokens, and how many choices of each sequence count, [B]."""
Verify: TypeAlias = Callable[[NDArray[np.int32], NDArray[np.bool_]], Verified]
"""Runs a pass over tokens [B, T], of which some are valid."""


@dataclass
class Pace:
    """The number of tokens to verify per pass: the one that gives most tokens per second, as measured.

    If a draft token is accepted with probability a, a pass over T tokens gives 1 + a + ... + a^(T - 1) tokens
    (arXiv:2211.17192). If no size is faster than plain decoding, plain passes follow, more after each failed attempt.
    """

    rest: int = 2
    """Plain passes to come; at first, as many as their timing needs."""
    patience: int = PATIENCE[0]
    seconds: dict[int, float] = field(default_factory=dict)
    """Duration of a pass by its size."""
    called: set[int] = field(default_factory=set)
    """Sizes of past passes."""
    accepted: float = 1.0
    """Decayed count of accepted draft tokens; an optimistic prior of 1."""
    tried: float = 1.0
    """Decayed count of draft tokens that were accepted or rejected, not those after a rejected one."""

    def size(self) -> int:
        """Return the number of tokens to verify next, the last token included; 1 is plain decoding."""
        return 1 if self.rest else max(buckets.VERIFIED, key=self._rate)

    def record(self, size: int, taken: NDArray[np.int32], seconds: float) -> None:
        """Record a pass over `size` tokens of each sequence that gave `taken` [B] tokens."""
        # The first pass of a size may include compilation. Of the others keep the minimum, as the machine is
        # shared, but raise it slowly.
        if size in self.called:
            self.seconds[size] = min(seconds, 1.02 * self.seconds.get(size, seconds))
        self.called.add(size)
        if size == 1:
            self.rest = max(self.rest - 1, 0)
            return
        accepted = float(np.mean(taken - 1))
        self.accepted = 0.9 * self.accepted + accepted
        self.tried = 0.9 * self.tried + accepted + float(np.mean(taken < size))
        plain = 1 / self.seconds.get(1, np.inf)
        if (accepted + 1) / seconds > plain:
            self.patience = max(self.patience // 2, PATIENCE[0])
        if max(map(self._rate, buckets.VERIFIED)) <= plain:
            self.rest, self.patience = self.patience, min(2 * self.patience, PATIENCE[1])
            self.accepted = self.tried = 1.0

    def _rate(self, size: int) -> float:
        """Return tokens per second and sequence; a size without timing costs 1.5 times the nearest with one."""
        timed = [other for other in buckets.VERIFIED if other in self.seconds]
        if not timed:
            return np.inf
        nearest = min(timed, key=lambda other: abs(other - size))
        seconds = self.seconds[nearest] * (1.0 if nearest == size else 1.5)
        return sum((self.accepted / self.tried) ** place for place in range(size)) / seconds


def decode(
    verify: Verify,
    proposer: Proposer,
    texts: Sequence[list[int]],
    limits: Sequence[int],
    first: Step,
    stop_ids: frozenset[int],
) -> Iterator[Step]:
    """Continue texts one step at a time; in between, sequences run ahead of each other.

    Args:
        verify: runs a pass; its state holds all but the last token of each text.
        proposer: returns draft tokens.
        texts: the prompts, which grow.
        limits: maximum number of tokens to add to each.
        first: the first token of each, chosen already.
        stop_ids: ids that end a sequence.
    """
    sequences = [_Sequence(text, limit, stop_ids) for text, limit in zip(texts, limits, strict=True)]
    pace = Pace()
    _hand_out(sequences, first, np.ones(len(sequences), np.int32), np.zeros(len(sequences), np.int32))
    while True:
        while any(s.waiting for s in sequences) and all(s.waiting or not s.left for s in sequences):
            yield _join([s.waiting.popleft() if s.waiting else s.ended for s in sequences])
        if not any(s.left for s in sequences):
            return
        start = time.perf_counter()
        size = pace.size()
        drafted = proposer.propose(texts, size - 1) if size > 1 else [[] for _ in sequences]
        tokens, valid = _lay_out(sequences, drafted)
        choice, taken = verify(tokens, valid)
        writing = np.array([s.left > 0 for s in sequences])
        pace.record(tokens.shape[1], taken[writing], time.perf_counter() - start)
        _hand_out(sequences, from_choice(choice), taken, np.maximum(valid.sum(axis=1, dtype=np.int32) - 1, 0))


@dataclass
class _Sequence:
    """A text, how many tokens it may grow by, and its tokens that wait for the other sequences."""

    text: list[int]
    left: int
    stop_ids: frozenset[int]
    waiting: deque[Step] = field(default_factory=deque)
    ended: Step = field(init=False)
    """The step of the sequence after its end."""

    def take(self, step: Step) -> None:
        """Append a token."""
        token = int(step.tokens[0])
        self.ended = _ended(step)
        self.waiting.append(step)
        self.text.append(token)
        self.left = 0 if token in self.stop_ids else self.left - 1


def _lay_out(sequences: Sequence[_Sequence], drafted: Sequence[Ids]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return last tokens and draft tokens in the smallest size that holds them, and which are valid, [B, T].

    Draft tokens never exceed a sequence's limit, so nothing is stored beyond the maximum length. A sequence at its end
    has no valid tokens.
    """
    parts = [[s.text[-1], *draft][: s.left] for s, draft in zip(sequences, drafted, strict=True)]
    size = next(size for size in (1, *buckets.VERIFIED) if size >= max(map(len, parts)))
    tokens, valid = np.zeros((len(parts), size), np.int32), np.zeros((len(parts), size), bool)
    for index, part in enumerate(parts):
        tokens[index, : len(part)], valid[index, : len(part)] = part, True
    return tokens, valid


def _hand_out(
    sequences: Sequence[_Sequence], chosen: Step, taken: NDArray[np.int32], proposed: NDArray[np.int32]
) -> None:
    """Give each sequence its first `taken` choices, up to a stop id."""
    size = len(chosen.tokens) // len(sequences)
    for index, sequence in enumerate(sequences):
        for place in range(int(taken[index])):
            at = index * size + place
            require_finite(chosen.tokens[at : at + 1] != NOT_FINITE)
            step = Step(
                chosen.tokens[at : at + 1],
                _part(chosen.logprobs, at),
                _part(chosen.top_tokens, at),
                _part(chosen.top_logprobs, at),
                proposed[index, None] * (place == 0),
                (taken[index, None] - 1) * (place == 0),
            )
            sequence.take(step)
            if not sequence.left:
                break


def _part(column: NDArray[Any] | None, at: int) -> NDArray[Any] | None:
    return None if column is None else column[at : at + 1]


def _ended(like: Step) -> Step:
    """Return a step without a token."""
    none = np.zeros_like(like.proposed)
    return Step(np.full_like(like.tokens, NO_TOKEN), like.logprobs, like.top_tokens, like.top_logprobs, none, none)


def _join(steps: Sequence[Step]) -> Step:
    """Join steps of one sequence each to one of a batch."""

    def join(columns: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        present = [column for column in columns if column is not None]
        return np.concatenate(present) if present else None

    return Step(
        np.concatenate([step.tokens for step in steps]),
        join([step.logprobs for step in steps]),
        join([step.top_tokens for step in steps]),
        join([step.top_logprobs for step in steps]),
        np.concatenate([step.proposed for step in steps]),
        np.concatenate([step.accepted for step in steps]),
    )
