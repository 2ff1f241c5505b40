"""Prompts in, tokens out. The engine sees token ids only; text, chats and images are made into ids above it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.generate import programs, schedule
from gemwright.generate.programs import Choice, Decoding
from gemwright.generate.sampling import Sampling, knobs
from gemwright.model.config import Config
from gemwright.model.spec import ModelWeights
from gemwright.model.state import DecodeState, empty_state, grow

Ids = Sequence[int]


@dataclass(frozen=True)
class Step:
    """One token for each row of a batch.

    Attributes:
        tokens: [B] ids.
        logprobs: [B] natural logarithm of the model's probability of each.
        top_tokens: [B, A] the likeliest ids, best first.
        top_logprobs: [B, A] theirs.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """A model's weights and the programs that run them.

    Attributes:
        config: The model.
        params: Its weights, on the device.
        vocabulary: Number of real ids; rows of the table beyond it are never chosen.
    """

    config: Config
    params: ModelWeights
    vocabulary: int

    def generate(
        self, prompts: Sequence[Ids], samplings: Sequence[Sampling], max_tokens: int, alternatives: int = 0
    ) -> Iterator[Step]:
        """Continue every prompt, one step at a time, until `max_tokens` or until the caller stops asking.

        A row's tokens do not depend on the other rows. What a row gives after its own end means nothing.

        Raises:
            GemwrightError: a prompt is empty or longer than the context, or holds an id that the model lacks.
        """
        self._check(prompts)
        longest = max(len(prompt) for prompt in prompts)
        max_tokens = min(max_tokens, self.config.context - longest)
        state = self._feed([prompt[:-1] for prompt in prompts])
        seen = self._seen(prompts) if any(s.repetition_penalty != 1.0 for s in samplings) else None
        greedy = all(sampling.temperature == 0 for sampling in samplings)
        decoding = Decoding(self.vocabulary, greedy, seen is not None, alternatives)
        settings = knobs(list(samplings))
        token = jnp.asarray([prompt[-1] for prompt in prompts], jnp.int32)

        pending: Choice | None = None
        for length in range(longest, longest + max_tokens):
            state = self._room(state, length)
            choice, state, seen = programs.decode(self.config, decoding, self.params, token, state, settings, seen)
            # The device works on the next token while the caller is busy with this one.
            if pending is not None:
                yield _step(pending)
            pending, token = choice, choice.token
        if pending is not None:
            yield _step(pending)

    def score(self, prompts: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """Natural log-probability of every id of each row given those before it, from the second on.

        Raises:
            GemwrightError: as for `generate`.
        """
        self._check(prompts)
        inputs, targets = [p[:-1] for p in prompts], [p[1:] for p in prompts]
        state = self._empty(inputs)
        parts: list[NDArray[np.float32]] = []
        for rows, successors in zip(_chunks(inputs), _chunks(targets), strict=True):
            part, state = programs.score(
                self.config, self.vocabulary, self.params, rows.tokens, successors.tokens, rows.valid, state
            )
            parts.append(np.asarray(part))
        scores = np.concatenate([np.zeros((len(prompts), 0), np.float32), *parts], axis=1)
        return [row[: len(target)] for row, target in zip(scores, targets, strict=True)]

    def _check(self, prompts: Sequence[Ids]) -> None:
        for prompt in prompts:
            if not prompt:
                raise GemwrightError("A prompt is empty; it needs at least one token.")
            if len(prompt) >= self.config.context:
                raise GemwrightError(
                    f"The prompt has {len(prompt)} tokens and the model's context is {self.config.context}; shorten it."
                )
            if not 0 <= min(prompt) <= max(prompt) < self.vocabulary:
                raise GemwrightError(f"Token ids must lie between 0 and {self.vocabulary - 1}.")

    def _empty(self, rows: Sequence[Ids]) -> DecodeState:
        room = schedule.capacity(max(len(row) for row in rows) + 1, self.config.context)
        return empty_state(self.config, len(rows), room, self.params.embed.dtype)

    def _feed(self, rows: Sequence[Ids]) -> DecodeState:
        state = self._empty(rows)
        for chunk in _chunks(rows):
            state = programs.feed(self.config, self.params, chunk.tokens, chunk.valid, state)
        return state

    def _room(self, state: DecodeState, length: int) -> DecodeState:
        """The state with room for `length` tokens."""
        room = max(layer.slots for layer in state.layers)
        if all(spec.mixer.window is not None and spec.mixer.window <= room for spec in self.config.layers):
            return state
        return state if length <= room else grow(state, self.config, schedule.capacity(length, self.config.context))

    def _seen(self, prompts: Sequence[Ids]) -> jax.Array:
        seen = np.zeros((len(prompts), self.config.vocab), bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[list(prompt)] = True
        return jnp.asarray(seen)


@dataclass(frozen=True)
class _Chunk:
    tokens: jax.Array
    valid: jax.Array


def _chunks(rows: Sequence[Ids]) -> Iterator[_Chunk]:
    """Cut rows of any lengths into the scheduled sizes; short rows are padded at the end."""
    start = 0
    for size in schedule.chunks(max(len(row) for row in rows)):
        tokens, valid = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
        for r, row in enumerate(rows):
            part = row[start : start + size]
            tokens[r, : len(part)], valid[r, : len(part)] = part, True
        yield _Chunk(jnp.asarray(tokens), jnp.asarray(valid))
        start += size


def _step(choice: Choice) -> Step:
    return Step(*(np.asarray(part) for part in (choice.token, choice.logprob, choice.top_tokens, choice.top_logprobs)))
