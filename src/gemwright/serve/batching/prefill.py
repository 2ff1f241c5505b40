"""Prefill of one prompt at a time, chunk by chunk, from the longest cached prefix on."""

from dataclasses import dataclass, field

import jax
import numpy as np

from gemwright.generate import programs
from gemwright.generate.engine import Engine
from gemwright.generate.programs import TokenScores
from gemwright.generate.prompts import Prompt, next_chunk, token_ids
from gemwright.model.state import DecodeState
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.prefix_cache import Key, PrefixCache, load_prefix, prompt_key
from gemwright.serve.batching.request import MAX_TOP_LOGPROBS, TokenLogprob

SHARED_CHUNK = 128
"""Number of tokens of a prompt that are prefilled between two decode calls."""


@dataclass(eq=False)
class Prefill:
    """A prompt that is being prefilled.

    Attributes:
        generation: Its request.
        key: The key of its tokens.
        end: Number of tokens to prefill: all but the last, which is decoded, unless that is in a group.
        state: The state after `done` tokens.
        done: Number of tokens in the state.
        saved: Length at which the state is added to the prefix cache, as another prompt begins with the same tokens.
        logprobs: Of the tokens after the first, if requested.
    """

    generation: Generation
    key: Key
    end: int
    state: DecodeState
    done: int = 0
    saved: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


class Prefiller:
    """Prefills prompts of a model.

    Args:
        engine: The model.
        cache: Cached prefixes, to which all prompts are added.
        context: Capacity of the states in tokens.
    """

    def __init__(self, engine: Engine, cache: PrefixCache, context: int):
        self._engine, self._cache, self._context = engine, cache, context
        self._free: DecodeState | None = None

    def begin(self, generation: Generation) -> Prefill:
        """Return the prefill of a request, with what is cached of its prompt."""
        request, engine = generation.request, self._engine
        key, salt = prompt_key(request.prompt), request.cache_salt
        is_grouped = isinstance(request.prompt, Prompt) and request.prompt.groups[-1] >= 0
        prefill = Prefill(generation, key, len(key) - (not is_grouped), self._take_state())
        if request.prompt_logprobs:
            return prefill
        found = self._cache.find(key, salt)
        if found is not None:
            prefix, prefill.done = found
            prefill.state = load_prefix(prefix, prefill.done, engine.config, self._context, engine.state_dtype)
            generation.cached_tokens = prefill.done
        shared = self._cache.shared_length(key[: prefill.end], salt)
        if shared >= prefill.done + SHARED_CHUNK and not isinstance(request.prompt, Prompt):
            prefill.saved = shared
        return prefill

    def step(self, prefill: Prefill, most: int) -> jax.Array | None:
        """Prefill the next chunk, of at most `most` tokens unless a group is longer.

        Returns:
            The hidden state of the last token of the prompt [1, D] if that has been prefilled.
        """
        request = prefill.generation.request
        hidden = self._run_chunk(prefill, most) if prefill.done < prefill.end else None
        if prefill.done == prefill.end:
            self._cache.put(prefill.key[: prefill.end], prefill.state, request.cache_salt)
            if request.prompt_logprobs:
                first = TokenLogprob(token_ids(request.prompt)[0], None, ())
                prefill.generation.prompt_logprobs = (first, *prefill.logprobs)
        return hidden if prefill.end == len(request.prompt) else None

    def release(self, state: DecodeState) -> None:
        """Take back the state of a prefill, for the next one."""
        self._free = state

    def _take_state(self) -> DecodeState:
        """Return a state of length 0, with the buffers of an earlier one if they are free."""
        state, self._free = self._free, None
        if state is None:
            return self._engine.allocate_state(1, self._context)
        return DecodeState(jax.device_put(np.zeros(1, np.int32)), state.layers)

    def _run_chunk(self, prefill: Prefill, most: int) -> jax.Array | None:
        request, engine = prefill.generation.request, self._engine
        stop = prefill.end if prefill.saved is None else prefill.saved
        part = request.prompt[:stop] if stop < len(request.prompt) else request.prompt
        most = min(most, SHARED_CHUNK) if request.prompt_logprobs else most
        chunk = next_chunk([part], [prefill.done], most)
        count = int(chunk.valid.sum())
        if request.prompt_logprobs:
            following = np.asarray(prefill.key[prefill.done + 1 : prefill.done + 1 + count], np.int64)
            targets = np.zeros(chunk.valid.shape, np.int32)
            targets[0, : len(following)] = np.maximum(following, 0)
            scores, prefill.state, hidden = programs.score(
                *(engine.config, engine.vocabulary, engine.params, chunk.tokens, targets, chunk.valid, prefill.state),
                chunk.soft_tokens,
                min(MAX_TOP_LOGPROBS, engine.vocabulary),
            )
            prefill.logprobs += _prompt_logprobs(following.tolist(), scores, request.top_logprobs or 0)
        else:
            last = chunk.last and prefill.end == len(request.prompt)
            prefill.state, hidden = programs.prefill(
                *(engine.config, engine.params, chunk.tokens, chunk.valid, prefill.state, chunk.soft_tokens), last=last
            )
        jax.block_until_ready(prefill.state.lengths)
        prefill.done += count
        if prefill.done == prefill.saved:
            self._cache.put(prefill.key[: prefill.done], prefill.state, request.cache_salt)
            prefill.saved = None
        return hidden


def _prompt_logprobs(following: list[int], scores: TokenScores, count: int) -> list[TokenLogprob]:
    """Return the scores of the tokens that follow those of a chunk."""
    host = jax.tree.map(np.asarray, scores)
    return [
        TokenLogprob(
            token,
            float(host.logprob[0, index]),
            tuple(zip(host.top_tokens[0, index].tolist(), host.top_logprobs[0, index].tolist(), strict=True))[:count],
        )
        for index, token in enumerate(following)
    ]
