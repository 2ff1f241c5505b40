"""The engine: prompts in, tokens out. It works on token ids only; text, chats and images become ids above it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright import sharding
from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs, speculation
from gemwright.generate.drafts import SLACK, Proposer, refuse_recurrent
from gemwright.generate.programs import NO_TOKEN, NOT_FINITE, DecodeOptions
from gemwright.generate.prompts import Ids, Prompt, chunks, token_ids
from gemwright.generate.sampling import CANDIDATES, BatchedSampling, Sampling, TokenCounts, candidate_count
from gemwright.generate.slots import Slots, gather, stop_table
from gemwright.generate.step import Step, from_choice, from_choices, require_finite
from gemwright.generate.token_bias import TokenBias
from gemwright.generate.tournament import TournamentKeys
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights, parameter_count
from gemwright.model.state import DecodeState, empty_state, with_room, with_slack
from gemwright.text.image_format import SOFT_TOKEN


@dataclass(frozen=True)
class Engine:
    """A model's weights and the programs that run them.

    Attributes:
        config: The model.
        params: Its weights, on the device.
        vocabulary: Number of real ids; higher ones are padding of the table and never chosen.
        state_dtype: Dtype of the KV caches; see `gemwright.precision.cache_dtype`.
    """

    config: Config
    params: ModelWeights
    vocabulary: int
    state_dtype: DTypeLike = jnp.float32

    def __repr__(self) -> str:
        return f"Engine({self.summary})"

    @property
    def summary(self) -> str:
        """Number of parameters, dtype and device in a few words."""
        weight, devices = self.params.layers[0].mlp.gate, jax.tree.leaves(self.params)[0].devices()
        dtype, kind = str(weight.dtype) if isinstance(weight, jax.Array) else "stored", next(iter(devices)).device_kind
        on = kind if len(devices) == 1 else f"{len(devices)} x {kind}"
        return f"{parameter_count(self.config):,} parameters, {dtype}, {on}"

    def generate(
        self,
        prompts: Sequence[Ids | Prompt],
        samplings: Sequence[Sampling],
        max_tokens: int | Sequence[int],
        top_logprobs: int | None = None,
        proposer: Proposer | None = None,
        stop_ids: Iterable[int] = (),
        state: DecodeState | None = None,
        watermark: TournamentKeys | None = None,
        copies: int = 1,
    ) -> Iterator[Step]:
        """Continue every prompt, one token of each per step, until all have ended or the caller stops iterating.

        A sequence's tokens depend neither on the other sequences nor on draft tokens, except for rounding, which may
        differ with the size of the batch. After its end a sequence costs nothing, and its tokens are -1.

        Args:
            prompts: one per sequence.
            samplings: one per sequence.
            max_tokens: maximum number of new tokens, for all or for each sequence; the model's maximum length is
                another limit.
            top_logprobs: report log-probabilities, and those of this many of the likeliest tokens.
            proposer: where draft tokens for speculation come from.
            stop_ids: ids that end a sequence. They are reported as its last token.
            state: see `begin`.
            watermark: marks all sequences, each of which must sample from a top-k.
            copies: see `begin`.

        Raises:
            GemwrightError: when called, if a prompt is empty, longer than the model's maximum length or holds an
                unknown id, if the model cannot speculate, or if a sequence cannot be marked; while iterating, if logits
                are not finite.
        """
        self._check(prompts, self.config.max_length - 1, "shorten it")
        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
        if not len(prompts) == len(samplings) == len(limits):
            raise GemwrightError(
                f"There are {len(prompts)} prompts, {len(samplings)} samplings and {len(limits)} token limits; "
                "give one for each prompt."
            )
        if watermark is not None:
            _require_markable(samplings, proposer)
        if proposer is not None:
            refuse_recurrent(self.config)
            proposer = proposer if len(prompts) <= speculation.MAX_SEQUENCES else None
        limits = [min(n, self.config.max_length - len(prompt)) for n, prompt in zip(limits, prompts, strict=True)]
        stop_ids = sorted(set(stop_ids))
        return self._generate(prompts, samplings, limits, top_logprobs, proposer, stop_ids, state, watermark, copies)

    def begin(
        self,
        prompts: Sequence[Ids | Prompt],
        samplings: Sequence[Sampling],
        max_tokens: Sequence[int],
        options: DecodeOptions,
        stop_ids: Iterable[int] = (),
        state: DecodeState | None = None,
        bias: TokenBias | None = None,
        watermark: TournamentKeys | None = None,
        copies: int = 1,
    ) -> tuple[Step, Slots]:
        """Prefill prompts and choose the first token of each.

        Args:
            prompts: one per sequence.
            samplings: one per sequence.
            max_tokens: maximum number of new tokens of each sequence, at least 1.
            options: see `options`.
            stop_ids: ids that end a sequence.
            state: what to prefill into, donated, with room for the prompts; a new one unless given. It may hold the
                first tokens of each prompt, less than all of them, as many as its lengths say.
            bias: restrictions of the first token.
            watermark: marks the sequences.
            copies: number of sequences that continue the same prompt and follow each other. Their prompt is prefilled
                once, into a state of one sequence for each prompt, and the state is copied.

        Returns:
            The first tokens, and the slots to continue with `programs.decode`, one per prompt.

        Raises:
            GemwrightError: logits are not finite.
        """
        unique = prompts[::copies]
        room = self.empty_state(len(unique), max(map(len, prompts))) if state is None else state
        prefilled, hidden = self.prefill(unique, room)
        if copies > 1:
            rows = jnp.repeat(jnp.arange(len(unique)), copies)
            prefilled, hidden = gather(prefilled, rows), hidden[rows]
        counts = self._counts(prompts) if options.penalty else None
        batched = BatchedSampling.stack(samplings)
        table = jax.device_put(stop_table([stop_ids := tuple(stop_ids)] * len(prompts)))
        bias = None if bias is None else bias.ban(table, bias.min_tokens > 0)
        tournament = contexts = None
        if watermark is not None:
            everywhere = jnp.ones(len(prompts), bool)
            tournament, contexts = watermark.begin(watermark.empty_state(len(prompts)), everywhere)
        choice = programs.choose(
            self.config, options, self.params, hidden, prefilled.lengths, batched, counts, bias, tournament
        )
        first = from_choice(choice)
        require_finite(first.tokens != NOT_FINITE)
        ended = (first.tokens < 0) | np.isin(first.tokens, stop_ids)
        remaining = np.where(ended, 0, np.asarray(max_tokens, np.int32) - 1).astype(np.int32)
        slots = Slots(prefilled, choice.token, jax.device_put(remaining), table, batched, counts, contexts)
        return first, slots

    def options(self, samplings: Sequence[Sampling], top_logprobs: int | None = None) -> DecodeOptions:
        """Return the options of programs that decode sequences with these settings."""
        has_penalty = any(sampling.has_penalty for sampling in samplings)
        return DecodeOptions(self.vocabulary, candidate_count(samplings), has_penalty, top_logprobs)

    def score(self, prompts: Sequence[Ids | Prompt]) -> list[NDArray[np.float32]]:
        """Return the natural log-probability of every id of each prompt given those before it, from the second on.

        Within a group, whose tokens attend to later ones, the numbers are undefined.

        Raises:
            GemwrightError: as for `generate`, but a prompt may be as long as the model's maximum length.
        """
        self._check(prompts, self.config.max_length, "score it in windows, with stride")
        state = self.empty_state(len(prompts), max(map(len, prompts)))
        scores: list[list[float]] = [[] for _ in prompts]
        for chunk in chunks(_scored(prompts)):
            targets = np.zeros(chunk.valid.shape, np.int32)
            for index, start in enumerate(chunk.starts):
                following = token_ids(prompts[index])[start + 1 : start + 1 + chunk.valid.shape[1]]
                targets[index, : len(following)] = np.maximum(np.asarray(following, np.int32), 0)
            part, state, _ = programs.score(
                self.config, self.vocabulary, self.params, chunk.tokens, targets, chunk.valid, state, chunk.soft_tokens
            )
            part = np.asarray(part.logprob)
            require_finite(np.isfinite(part[chunk.valid]))
            for index, valid in enumerate(chunk.valid):
                scores[index] += part[index, valid].tolist()
        return [np.asarray(part[: len(prompt) - 1], np.float32) for part, prompt in zip(scores, prompts, strict=True)]

    def _generate(
        self,
        prompts: Sequence[Ids | Prompt],
        samplings: Sequence[Sampling],
        limits: list[int],
        top_logprobs: int | None,
        proposer: Proposer | None,
        stop_ids: list[int],
        state: DecodeState | None,
        watermark: TournamentKeys | None,
        copies: int,
    ) -> Iterator[Step]:
        """Run `generate` on checked arguments; `limits` are at least 1."""
        options = self.options(samplings, top_logprobs)
        if state is None:
            count = len(prompts) // copies
            state = self.empty_state(count, max(map(len, prompts)), 0 if proposer is None else SLACK)
        first, slots = self.begin(
            prompts, samplings, limits, options, stop_ids, state, watermark=watermark, copies=copies
        )
        if proposer is None:
            yield from self._decode(options, slots, first, list(map(len, prompts)), limits, stop_ids, watermark)
        else:
            texts = [list(token_ids(prompt)) for prompt in prompts]
            yield from self._speculate(proposer, options, slots, first, texts, limits, stop_ids)

    def _decode(
        self,
        options: DecodeOptions,
        slots: Slots,
        first: Step,
        lengths: list[int],
        limits: list[int],
        stop_ids: list[int],
        watermark: TournamentKeys | None,
    ) -> Iterator[Step]:
        yield first
        ahead, pending, made = buckets.StepsPerCall(programs.MAX_STEPS_PER_CALL), None, 1
        length, limit = np.asarray(lengths), np.asarray(limits)
        active = (limit > 1) & ~np.isin(first.tokens, stop_ids)
        while active.any():
            count = min(ahead.count, int(limit[active].max()) - made)
            made += count
            slots = self._with_room(slots, int((length + np.minimum(made, limit))[active].max()) - 1)
            choices, slots = programs.decode(self.config, options, self.params, slots, count, watermark=watermark)
            active &= limit > made
            # The device decodes these tokens while the caller handles those of the call before.
            if pending is not None and (steps := from_choices(pending)):
                ahead.record(len(steps))
                yield from steps
                active &= (steps[-1].tokens != NO_TOKEN) & ~np.isin(steps[-1].tokens, stop_ids)
            pending = choices
        if pending is not None:
            yield from from_choices(pending)

    def _speculate(
        self,
        proposer: Proposer,
        options: DecodeOptions,
        slots: Slots,
        first: Step,
        texts: list[list[int]],
        limits: list[int],
        stop_ids: list[int],
    ) -> Iterator[Step]:
        """Decode several tokens per pass while draft tokens are accepted."""
        config = with_slack(self.config, SLACK)

        def verify(tokens: NDArray[np.int32], valid: NDArray[np.bool_]) -> speculation.Verified:
            nonlocal slots
            length = max(len(text) + int(part.sum()) - 1 for text, part in zip(texts, valid, strict=True))
            slots = self._with_room(slots, length, config)
            choice, taken, slots = programs.verify(self.config, options, self.params, tokens, valid, slots)
            return choice, np.asarray(taken)

        return speculation.decode(verify, proposer, texts, limits, first, frozenset(stop_ids))

    def _check(self, prompts: Sequence[Ids | Prompt], most: int, remedy: str) -> None:
        for prompt in prompts:
            if not len(prompt):
                raise GemwrightError("A prompt is empty; it needs at least one token.")
            if len(prompt) > most:
                raise GemwrightError(
                    f"The prompt has {len(prompt)} tokens and the model's context is {self.config.max_length}; "
                    f"{remedy}."
                )
            lowest = SOFT_TOKEN if isinstance(prompt, Prompt) else 0
            if not lowest <= min(token_ids(prompt)) <= max(token_ids(prompt)) < self.vocabulary:
                raise GemwrightError(f"Token ids must be between 0 and {self.vocabulary - 1}.")

    def empty_state(self, count: int, length: int, slack: int = 0) -> DecodeState:
        """Return a state with room for `length` tokens of each of `count` sequences."""
        return self.allocate_state(count, buckets.capacity(length, self.config.max_length), slack)

    def allocate_state(self, count: int, capacity: int, slack: int = 0) -> DecodeState:
        """Return an empty state of a capacity in tokens, divided among the devices of the weights."""
        with sharding.use(sharding.mesh_of(self.params.final_norm)):
            return empty_state(with_slack(self.config, slack), count, capacity, self.state_dtype)

    def prefill(self, prompts: Sequence[Ids | Prompt], state: DecodeState) -> tuple[DecodeState, jax.Array]:
        """Return the state after the prompts, and the hidden state of the last token of each."""
        hidden = None
        for chunk in chunks(prompts, np.asarray(state.lengths).tolist()):
            state, last = programs.prefill(
                self.config, self.params, chunk.tokens, chunk.valid, state, chunk.soft_tokens, last=chunk.last
            )
            if last is not None:
                hidden = last if hidden is None else jnp.where(chunk.valid[:, :1], last, hidden)
        assert hidden is not None
        return state, hidden

    def _with_room(self, slots: Slots, length: int, config: Config | None = None) -> Slots:
        """Return the slots with room for `length` tokens, growing their caches by buckets."""
        capacity = buckets.capacity(length, self.config.max_length)
        state = with_room(slots.state, config or self.config, length, capacity)
        return slots if state is slots.state else replace(slots, state=state)

    def _counts(self, prompts: Sequence[Ids | Prompt]) -> TokenCounts:
        in_prompt = np.zeros((len(prompts), self.config.vocab), bool)
        for tokens, prompt in zip(in_prompt, prompts, strict=True):
            tokens[[token for token in token_ids(prompt) if token != SOFT_TOKEN]] = True
        return TokenCounts(jnp.asarray(in_prompt), jnp.zeros(in_prompt.shape, jnp.int32))


def _require_markable(samplings: Sequence[Sampling], proposer: Proposer | None) -> None:
    if proposer is not None:
        raise GemwrightError("A watermark and speculative decoding exclude each other; leave out the draft or lookup.")
    if any(sampling.temperature == 0 for sampling in samplings):
        raise GemwrightError("Greedy text leaves a watermark no choice of tokens; use a temperature above 0.")
    if any(not 1 <= sampling.top_k <= CANDIDATES for sampling in samplings):
        raise GemwrightError(
            f"A watermark marks the choice among the likeliest tokens; set top_k, from 1 to {CANDIDATES}."
        )


def _scored(prompts: Sequence[Ids | Prompt]) -> Sequence[Ids | Prompt]:
    """Return the tokens to score a text by: all but the last, unless that is in a group."""
    if any(isinstance(prompt, Prompt) and prompt.groups[-1] >= 0 for prompt in prompts):
        return prompts
    return [prompt[:-1] for prompt in prompts]
