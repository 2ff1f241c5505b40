"""Prompts in, tokens out. The engine sees token ids only; text, chats and images are made into ids above it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs, speculation
from gemwright.generate.programs import DecodeOptions, SampledTokens
from gemwright.generate.prompts import SOFT_TOKEN, Ids, Prompt, chunks
from gemwright.generate.sampling import BatchedSampling, Sampling, candidate_count
from gemwright.generate.speculation import Proposer
from gemwright.generate.step import Step, from_choice, from_choices
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, empty_state, with_room, with_slack


@dataclass(frozen=True)
class Engine:
    """A model's weights and the programs that run them.

    Attributes:
        config: The model.
        params: Its weights, on the device.
        vocabulary: Number of real ids; rows of the table beyond it are never chosen.
        state_dtype: Of the keys and values of earlier tokens; see `gemwright.precision.cache_dtype`.
    """

    config: Config
    params: ModelWeights
    vocabulary: int
    state_dtype: DTypeLike = jnp.float32

    def generate(
        self,
        prompts: Sequence[Ids | Prompt],
        samplings: Sequence[Sampling],
        max_tokens: int,
        top_logprobs: int | None = None,
        proposer: Proposer | None = None,
    ) -> Iterator[Step]:
        """Continue every prompt, one step at a time, until `max_tokens` or until the caller stops asking.

        A row's tokens depend neither on the other rows nor on what a proposer guesses, but for rounding, which may
        differ with the size of the batch. What a row gives after its own end means nothing.
        With `top_logprobs`, log-probabilities are reported too, and those of as many of the likeliest tokens.

        Raises:
            GemwrightError: a prompt is empty or longer than the context, or holds an id that the model lacks; or the
                model cannot speculate.
        """
        self._check(prompts)
        if proposer is not None:
            speculation.refuse_recurrent(self.config)
            proposer = proposer if len(prompts) <= speculation.MOST_ROWS else None
        longest = max(len(prompt) for prompt in prompts)
        max_tokens = min(max_tokens, self.config.max_length - longest)
        state, hidden = self._prefill(prompts, slack=0 if proposer is None else speculation.SLACK)
        seen = self._seen(prompts) if any(s.repetition_penalty != 1.0 for s in samplings) else None
        options = DecodeOptions(self.vocabulary, candidate_count(samplings), seen is not None, top_logprobs)
        batched = BatchedSampling.stack(samplings)

        first = programs.choose(self.config, options, self.params, hidden, state.lengths, batched, seen)
        if proposer is not None:
            texts = [list(_ids(prompt)) for prompt in prompts]
            yield from self._speculate(proposer, options, texts, state, batched, seen, max_tokens, first)
            return
        yield from_choice(first)
        token, ahead, steps = first.token, buckets.StepsPerCall(programs.MAX_STEPS_PER_CALL), iter(())
        longest, end = longest + 1, longest + max_tokens
        while longest < end:
            count = min(ahead.count, end - longest)
            longest += count
            state = self._room(state, longest - 1)
            choices, token, state, seen = programs.decode(
                self.config, options, self.params, token, state, batched, seen, count
            )
            # The device works on these tokens while the caller is busy with those before.
            yield from steps
            steps = self._made(choices, count, ahead)
        yield from steps

    def _made(self, choices: SampledTokens, count: int, ahead: buckets.StepsPerCall) -> Iterator[Step]:
        steps = from_choices(choices, count)
        ahead.record(count)
        yield from steps

    def _speculate(
        self,
        proposer: Proposer,
        options: DecodeOptions,
        texts: list[list[int]],
        state: DecodeState,
        batched: BatchedSampling,
        seen: jax.Array | None,
        max_tokens: int,
        first: SampledTokens,
    ) -> Iterator[Step]:
        """The rest of `generate`, several tokens at a time where guesses stand."""
        rings = with_slack(self.config, speculation.SLACK)

        def verify(tokens: NDArray[np.int32], valid: NDArray[np.bool_]) -> tuple[SampledTokens, NDArray[np.int32]]:
            nonlocal state, seen
            length = max(len(text) + int(row.sum()) - 1 for text, row in zip(texts, valid, strict=True))
            state = with_room(state, rings, length, buckets.capacity(length, self.config.max_length))
            choice, taken, state, seen = programs.verify(
                self.config, options, self.params, tokens, valid, state, batched, seen
            )
            return choice, np.asarray(taken)

        return speculation.decode(verify, proposer, texts, max_tokens, from_choice(first))

    def score(self, prompts: Sequence[Ids | Prompt]) -> list[NDArray[np.float32]]:
        """Natural log-probability of every id of each row given those before it, from the second on.

        Within a block, whose tokens see what comes after them, the numbers mean nothing.

        Raises:
            GemwrightError: as for `generate`.
        """
        self._check(prompts)
        state = self._empty(prompts)
        scores: list[list[float]] = [[] for _ in prompts]
        for chunk in chunks(_fed(prompts)):
            targets = np.zeros(chunk.valid.shape, np.int32)
            for row, start in enumerate(chunk.starts):
                following = np.asarray(_ids(prompts[row])[start + 1 : start + 1 + chunk.valid.shape[1]], np.int32)
                targets[row, : len(following)] = np.maximum(following, 0)
            part, state = programs.score(
                self.config, self.vocabulary, self.params, chunk.tokens, targets, chunk.valid, state, chunk.soft_tokens
            )
            for row, valid in enumerate(chunk.valid):
                scores[row] += np.asarray(part)[row, valid].tolist()
        return [np.asarray(row[: len(prompt) - 1], np.float32) for row, prompt in zip(scores, prompts, strict=True)]

    def _check(self, prompts: Sequence[Ids | Prompt]) -> None:
        for prompt in prompts:
            if not len(prompt):
                raise GemwrightError("A prompt is empty; it needs at least one token.")
            if len(prompt) >= self.config.max_length:
                raise GemwrightError(
                    f"The prompt has {len(prompt)} tokens and the model's context is {self.config.max_length}; shorten it."
                )
            lowest = SOFT_TOKEN if isinstance(prompt, Prompt) else 0
            if not lowest <= min(_ids(prompt)) <= max(_ids(prompt)) < self.vocabulary:
                raise GemwrightError(f"Token ids must lie between 0 and {self.vocabulary - 1}.")

    def _empty(self, prompts: Sequence[Ids | Prompt], slack: int = 0) -> DecodeState:
        capacity = buckets.capacity(max(map(len, prompts)), self.config.max_length)
        return empty_state(with_slack(self.config, slack), len(prompts), capacity, self.state_dtype)

    def _prefill(self, prompts: Sequence[Ids | Prompt], slack: int) -> tuple[DecodeState, jax.Array]:
        """The state of all tokens, and what the last of each row gave."""
        state, hidden = self._empty(prompts, slack), None
        for chunk in chunks(prompts):
            state, last = programs.prefill(
                self.config, self.params, chunk.tokens, chunk.valid, state, chunk.soft_tokens, last=chunk.last
            )
            if last is not None:
                hidden = last if hidden is None else jnp.where(chunk.valid[:, :1], last, hidden)
        assert hidden is not None
        return state, hidden

    def _room(self, state: DecodeState, length: int) -> DecodeState:
        """The state with room for `length` tokens."""
        return with_room(state, self.config, length, buckets.capacity(length, self.config.max_length))

    def _seen(self, prompts: Sequence[Ids | Prompt]) -> jax.Array:
        seen = np.zeros((len(prompts), self.config.vocab), bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[[token for token in _ids(prompt) if token != SOFT_TOKEN]] = True
        return jnp.asarray(seen)


def _fed(prompts: Sequence[Ids | Prompt]) -> Sequence[Ids | Prompt]:
    """What must be seen to score a text: all but the last token, unless that is part of a block."""
    if any(isinstance(prompt, Prompt) and prompt.groups[-1] >= 0 for prompt in prompts):
        return prompts
    return [prompt[:-1] for prompt in prompts]


def _ids(prompt: Ids | Prompt) -> Ids:
    return prompt.ids if isinstance(prompt, Prompt) else prompt
