"""Draft tokens for speculation, from the text so far or from a smaller model of the same vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemwright import sharding
from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs
from gemwright.generate.programs import NOT_FINITE, DecodeOptions
from gemwright.generate.prompts import Ids, chunks
from gemwright.generate.sampling import BatchedSampling, Sampling, candidate_count
from gemwright.generate.slots import Slots, stop_table
from gemwright.generate.step import require_finite
from gemwright.model.config import Config, Recurrent
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, empty_state, with_room, with_slack

SLACK = buckets.VERIFIED[-1] - 1
"""Maximum number of tokens that are rolled back at once."""
GRAMS = (3, 2)
"""Lengths of the n-grams that are looked up, in the order of preference."""


@runtime_checkable
class Proposer(Protocol):
    """A source of draft tokens, for one batch from its prompts to its end."""

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Return `count` draft tokens for each text, or none."""
        ...


def refuse_recurrent(config: Config) -> None:
    """Raise an error for a model that cannot roll back tokens.

    Raises:
        GemwrightError: the model has recurrent layers.
    """
    if any(isinstance(layer.mixer, Recurrent) for layer in config.layers):
        raise GemwrightError(
            "Speculation rolls back tokens, which recurrent layers cannot; leave out lookup and draft for this model."
        )


@dataclass
class Lookup:
    """Prompt lookup: draft tokens are those that followed the latest earlier occurrence of the last tokens."""

    _grams: "list[_Grams]" = field(default_factory=list)

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Return `count` draft tokens for each text, or none."""
        self._grams = self._grams or [_Grams() for _ in texts]
        return [grams.follow(text, count) for grams, text in zip(self._grams, texts, strict=True)]


@dataclass
class _Grams:
    """The last end of each n-gram of a text, except for the n-grams at the end of the text itself."""

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
        period = len(text) - start  # continue a repetition beyond the end of the text
        return [text[start + i % period] for i in range(count)]


class Draft:
    """A smaller model that decodes draft tokens with the same random numbers as the model."""

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
        self._config, self._params, self._with_slack = config, params, with_slack(config, SLACK)
        self._options = DecodeOptions(vocabulary, candidate_count(samplings), penalty=False, top_logprobs=None)
        self._batched = BatchedSampling.stack(samplings)
        self._state: DecodeState | None = None
        self._stop_ids = jax.device_put(stop_table([()] * len(samplings)))
        self._taken = [list[int]() for _ in samplings]
        """Tokens of each sequence in the state."""
        self._sure = [0] * len(samplings)
        """How many of them are known to be in the text."""

    def propose(self, texts: Sequence[Ids], count: int) -> Sequence[Ids]:
        """Return `count` draft tokens for each text, or none beyond this model's maximum length."""
        longest = max(map(len, texts)) + count
        if longest > self._config.max_length:
            return [[] for _ in texts]
        state = self._catch_up(texts, longest)
        token = jax.device_put(np.array([max(text[-1], 0) for text in texts], np.int32))
        remaining = jax.device_put(np.full(len(texts), count, np.int32))
        slots = Slots(state, token, remaining, self._stop_ids, self._batched, None)
        choices, slots = programs.decode(self._config, self._options, self._params, slots, count)
        self._stop_ids, self._batched = slots.stop_ids, slots.sampling
        # Add the last draft token too: if all are accepted, the next round begins after it.
        self._state, _ = programs.prefill(
            self._config, self._params, slots.token[:, None], np.ones((len(texts), 1), bool), slots.state
        )
        drafted = np.asarray(choices.token)[:count].T.tolist()
        require_finite(np.asarray(drafted) != NOT_FINITE)
        self._sure = [len(text) for text in texts]
        self._taken = [[*text, *draft] for text, draft in zip(texts, drafted, strict=True)]
        return drafted

    def _catch_up(self, texts: Sequence[Ids], length: int) -> DecodeState:
        """Return the state after all but the last token of each text, with room for `length` tokens."""
        capacity = buckets.capacity(length, self._config.max_length)
        with sharding.use(sharding.mesh_of(self._params.final_norm)):
            state = self._state or empty_state(self._with_slack, len(texts), capacity, self._dtype)
        held = list(map(_agreed, self._taken, texts, self._sure))
        state = DecodeState(jnp.asarray(held, jnp.int32), state.layers)
        state = with_room(state, self._with_slack, length, capacity)
        missed = [np.maximum(text[start:-1], 0).tolist() for text, start in zip(texts, held, strict=True)]
        for chunk in chunks(missed):
            state, _ = programs.prefill(self._config, self._params, chunk.tokens, chunk.valid, state)
        return state


def _agreed(taken: Ids, text: Ids, sure: int) -> int:
    """Return how many of the tokens `taken` begin the text, at most all but its last; the first `sure` do."""
    most = min(len(taken), len(text) - 1)
    return next((i for i in range(min(sure, most), most) if taken[i] != text[i]), most)
