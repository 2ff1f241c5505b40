"""Sequences that are decoded together, in the slots of one decode state that grows and shrinks with their number.

The device holds the state; everything else of a sequence is on the host, and copied whenever the batch changes. All
requests run in one of three programs per batch size, so that no mix of them compiles another.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.generate import buckets, programs, slots, token_bias
from gemwright.generate.engine import Engine
from gemwright.generate.output import Detokenizer
from gemwright.generate.programs import DecodeOptions, SampledTokens
from gemwright.generate.prompts import token_ids
from gemwright.generate.sampling import USUAL, BatchedSampling, Sampling, TokenCounts
from gemwright.generate.slots import Slots
from gemwright.generate.token_bias import TokenBias
from gemwright.model.state import DecodeState
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, TokenLogprob, Update
from gemwright.serve.structured.grammar import Matcher
from gemwright.text.image_format import SOFT_TOKEN

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of slots."""
STOP_IDS = 16
"""Number of stop ids of a sequence that end it on the device; others end it on the host, a little later."""
SHRINK_AFTER = 16
"""Number of calls with at most half of the slots in use after which the batch shrinks."""


@dataclass(eq=False)
class Running:
    """A sequence that is being decoded.

    Attributes:
        generation: Its request, and where its updates go.
        detokenizer: Its text.
        limit: Maximum number of tokens, by the request and by the context.
        matcher: The state of its grammar.
        generated: Its tokens after the prompt, a stop id that ended it among them.
        overrun: Whether it has ended on the host while the device may go on with it.
    """

    generation: Generation
    detokenizer: Detokenizer[TokenLogprob | None]
    limit: int
    matcher: Matcher | None = None
    generated: list[int] = field(default_factory=list[int])
    overrun: bool = False

    @property
    def sampling(self) -> Sampling:
        """Its sampling settings."""
        return self.generation.request.sampling

    @property
    def ended(self) -> bool:
        """Whether its text has ended."""
        return self.detokenizer.ended

    @property
    def last_token(self) -> int:
        """The token that is not yet in the state."""
        return self.generated[-1] if self.generated else token_ids(self.generation.request.prompt)[-1]

    @property
    def remaining(self) -> int:
        """How many more tokens to decode."""
        return 0 if self.ended else max(0, self.limit - len(self.generated))

    @property
    def min_tokens(self) -> int:
        """How many of the next tokens may not be stop ids."""
        return max(0, self.generation.request.min_tokens - len(self.generated))

    @property
    def is_plain(self) -> bool:
        """Whether its tokens are chosen from the largest logits, without log-probabilities, penalties or bias."""
        request, settings = self.generation.request, self.sampling
        few = settings.temperature == 0 or 0 < settings.top_k <= USUAL
        unrestricted = self.matcher is None and not request.logit_bias and not request.min_tokens
        return few and unrestricted and not settings.has_penalty and request.top_logprobs is None

    @property
    def needs_host(self) -> bool:
        """Whether the host must know a token before the next can be chosen."""
        return self.matcher is not None or self.min_tokens > 0

    def update(self) -> Update | None:
        """Return what was added since the last update; None if nothing was."""
        text, tokens = self.detokenizer.release()
        if not (text or tokens or self.ended):
            return None
        return Update(
            text,
            tuple(token for token, _ in tokens),
            tuple(logprob for _, logprob in tokens if logprob is not None),
            self.detokenizer.finish_reason,
            self.detokenizer.stop,
        )


class Call(NamedTuple):
    """A decode call that may still run: its tokens, and the sequence of each slot."""

    choices: SampledTokens
    sequences: tuple[Running | None, ...]


@dataclass
class Batch:
    """The running sequences.

    Attributes:
        engine: The model.
        context: Capacity of the state in tokens.
        most: Maximum number of sequences.
    """

    engine: Engine
    context: int
    most: int
    _sequences: list[Running | None] = field(default_factory=lambda: [None])
    _state: DecodeState | None = None
    _slots: Slots | None = None  # None if the batch has changed
    _options: DecodeOptions | None = None
    _idle_calls: int = 0

    @property
    def running(self) -> list[Running]:
        """The sequences that have not ended."""
        return [sequence for sequence in self._sequences if sequence is not None]

    @property
    def is_full(self) -> bool:
        """Whether no other sequence can be added."""
        return len(self.running) >= self.most

    @property
    def has_changed(self) -> bool:
        """Whether the next call needs the tokens of all earlier ones on the host."""
        return self._slots is None or any(sequence.needs_host for sequence in self.running)

    @property
    def sizes(self) -> list[int]:
        """The numbers of slots that it may have."""
        return [*(size for size in SIZES if size < self.most), self.most]

    @property
    def capacities(self) -> list[int]:
        """The capacities of snapshots in tokens."""
        return [*(capacity for capacity in buckets.CAPACITIES if capacity < self.context), self.context]

    def add(self, sequence: Running, state: DecodeState) -> None:
        """Add a sequence whose state, of a single slot, holds its prompt without the last token."""
        if None not in self._sequences:
            self._resize(next(size for size in self.sizes if size > len(self._sequences)))
        slot = self._sequences.index(None)
        self._sequences[slot] = sequence
        self._state = slots.insert(self._take_state(), state, np.array([slot], np.int32))  # type: ignore[arg-type]

    def remove(self, sequence: Running) -> None:
        """Remove a sequence. One that has ended on the device no longer changes there."""
        self._sequences[self._sequences.index(sequence)] = None
        if sequence.overrun:
            self._state = self._take_state()

    def snapshot(self, sequence: Running, length: int) -> DecodeState:
        """Return a copy of the state of one sequence of `length` tokens."""
        capacity = next(capacity for capacity in self.capacities if capacity >= length)
        state = self._slots.state if self._slots is not None else self._state
        assert state is not None
        return slots.snapshot(state, np.int32(self._sequences.index(sequence)), capacity)  # type: ignore[arg-type]

    def decode(self, count: int) -> Call:
        """Start a call that decodes up to `count` tokens of each sequence."""
        engine = self.engine
        self._shrink()
        if self._slots is None:
            self._options = self._choose_options()
            self._slots = self._make_slots(self._options)
        assert self._options is not None
        bias = self._make_bias() if self._options.penalty else None
        if any(sequence.needs_host for sequence in self.running):
            count = 1
        choices, self._slots = programs.decode(
            engine.config,
            self._options,
            engine.params,
            self._slots,
            np.int32(count),  # type: ignore[arg-type]
            bias,
        )
        return Call(choices, tuple(self._sequences))

    def first(self, sequence: Running, state: DecodeState, hidden: jax.Array) -> Call:
        """Start to choose the first token of a sequence from the hidden state of the last of its prompt."""
        alone = Batch(self.engine, self.context, 1, [sequence], state)
        made, options = alone._make_slots(self._all_options()), self._all_options()
        assert made.counts is not None
        choice = programs.choose(
            self.engine.config,
            options,
            self.engine.params,
            hidden,
            state.lengths,
            made.sampling,
            TokenCounts(made.counts.in_prompt, jnp.zeros_like(made.counts.generated)),
            alone._make_bias().ban(made.stop_ids, jnp.asarray([sequence.min_tokens > 0])),
        )
        return Call(jax.tree.map(functools.partial(jnp.expand_dims, axis=0), choice), (sequence,))

    def warm_up(self) -> Iterator[None]:
        """Compile all programs, and yield after each."""
        single = self.engine.allocate_state(1, self.context)
        for size in self.sizes:
            if size > len(self._sequences):
                self._resize(size)
            state = self._take_state()
            self._state = slots.insert(state, single, np.array([size], np.int32))  # type: ignore[arg-type]
            for options in self._programs():
                self._options, self._slots = options, self._make_slots(options)
                bias = self._make_bias() if options.penalty else None
                _, self._slots = programs.decode(
                    self.engine.config,
                    options,
                    self.engine.params,
                    self._slots,
                    np.int32(1),  # type: ignore[arg-type]
                    bias,
                )
                self._state = self._take_state()
                yield
            for capacity in self.capacities:
                slots.snapshot(self._take_state(), np.int32(0), capacity)  # type: ignore[arg-type]
        for size in reversed(self.sizes[:-1]):
            self._resize(size)
            yield

    def _programs(self) -> tuple[DecodeOptions, ...]:
        return *(DecodeOptions(self.engine.vocabulary, few, False, None) for few in (1, USUAL)), self._all_options()

    def _all_options(self) -> DecodeOptions:
        """Return the options of the program that does all that a request may ask for."""
        return DecodeOptions(self.engine.vocabulary, None, True, min(MAX_TOP_LOGPROBS, self.engine.vocabulary))

    def _choose_options(self) -> DecodeOptions:
        greedy, sampled, full = self._programs()
        if not all(sequence.is_plain for sequence in self.running):
            return full
        return sampled if any(sequence.sampling.temperature > 0 for sequence in self.running) else greedy

    def _make_slots(self, options: DecodeOptions) -> Slots:
        """Return the slots with everything of their sequences that the host knows."""
        sequences = self._sequences
        stop_ids = [() if each is None else each.generation.request.stop_ids[:STOP_IDS] for each in sequences]
        table = np.full((len(sequences), STOP_IDS), -1, np.int32)
        for row, ids in zip(table, stop_ids, strict=True):
            row[: len(ids)] = ids
        return Slots(
            self._take_state(),
            token=_column([0 if each is None else each.last_token for each in sequences]),
            remaining=_column([0 if each is None else each.remaining for each in sequences]),
            stop_ids=jax.device_put(table),
            sampling=BatchedSampling.stack([Sampling() if each is None else each.sampling for each in sequences]),
            counts=self._make_counts() if options.penalty else None,
        )

    def _make_counts(self) -> TokenCounts:
        shape = (len(self._sequences), self.engine.config.vocab)
        in_prompt, generated = np.zeros(shape, bool), np.zeros(shape, np.int32)
        for index, sequence in enumerate(self._sequences):
            if sequence is not None and sequence.sampling.has_penalty:
                ids = np.asarray(token_ids(sequence.generation.request.prompt))
                in_prompt[index, ids[ids != SOFT_TOKEN]] = True
                # The last token is counted by the next call.
                np.add.at(generated[index], np.asarray(sequence.generated[:-1], np.int64), 1)
                if not sequence.generated:
                    generated[index, ids[-1]] -= 1
        return TokenCounts(jax.device_put(in_prompt), jax.device_put(generated))

    def _make_bias(self) -> TokenBias:
        width = token_bias.mask_width(self.engine.config.vocab)
        allowed = np.full((len(self._sequences), width), token_bias.ANY, np.int32)
        for row, sequence in zip(allowed, self._sequences, strict=True):
            if sequence is not None and sequence.matcher is not None:
                sequence.matcher.fill_mask(row)
        return TokenBias.stack(
            [{} if each is None else each.generation.request.logit_bias for each in self._sequences],
            [0 if each is None else each.min_tokens for each in self._sequences],
            allowed,
            MAX_LOGIT_BIAS,
        )

    def _take_state(self) -> DecodeState:
        """Return the state, and forget what else the device has of the batch."""
        state = self._state if self._slots is None else self._slots.state
        if state is None:
            state = self.engine.allocate_state(len(self._sequences), self.context)
        self._state, self._slots = state, None
        return state

    def _resize(self, size: int) -> None:
        """Change the number of slots, whose sequences move to the front."""
        used: list[int] = [index for index, each in enumerate(self._sequences) if each is not None]
        order = np.zeros(size, np.int32)
        order[: len(used)] = used
        self._state = slots.gather(self._take_state(), order)  # type: ignore[arg-type]
        self._sequences = [*(self._sequences[index] for index in used), *[None] * (size - len(used))]

    def _shrink(self) -> None:
        """Halve the number of slots if that has been enough for a while."""
        smaller = [size for size in self.sizes if size < len(self._sequences)]
        self._idle_calls = self._idle_calls + 1 if smaller and len(self.running) <= smaller[-1] else 0
        if self._idle_calls >= SHRINK_AFTER and self._slots is None:
            self._idle_calls = 0
            self._resize(smaller[-1])


def _column(values: list[int]) -> jax.Array:
    return jax.device_put(np.asarray(values, np.int32))


def host_tokens(call: Call) -> tuple[NDArray[np.int32], SampledTokens]:
    """Wait for a call and return its tokens [steps, slots], and all that it reports, on the host."""
    host = jax.tree.map(np.asarray, call.choices)
    return host.token, host
