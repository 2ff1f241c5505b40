"""Continuous batching: one thread prefills waiting prompts and decodes all running sequences together.

The thread alternates between a chunk of a prompt and a decode call, so that a long prompt delays the running sequences
by one chunk at a time. While the device decodes, the host turns the tokens of the call before into text.

The last token of a prompt is not prefilled but decoded, so that the first token of a text comes from the same program
as all others, and a cached prompt needs no prefill at all.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import jax
import numpy as np

from gemwright import memory
from gemwright.api import Model
from gemwright.errors import GemwrightError, NotFiniteError, RequestError
from gemwright.generate import buckets
from gemwright.generate.output import Detokenizer
from gemwright.generate.programs import MAX_STEPS_PER_CALL, NO_TOKEN, NOT_FINITE, SampledTokens
from gemwright.generate.prompts import Ids, Prompt, token_ids
from gemwright.generate.sampling import Sampling
from gemwright.model.state import DecodeState, state_bytes
from gemwright.serve.batching.batch import STOP_IDS, Batch, Call, Running, host_tokens
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.prefill import SHARED_CHUNK, Prefill, Prefiller
from gemwright.serve.batching.prefix_cache import PrefixCache, prompt_key
from gemwright.serve.batching.queue import RETRY_SECONDS, WaitingQueue
from gemwright.serve.batching.request import GenerationRequest, TokenLogprob, Update
from gemwright.serve.structured.grammar import GrammarTokenizer, compile_grammar
from gemwright.text.image_format import SOFT_TOKEN
from gemwright.text.stop import StopStrings

DEFAULT_CONTEXT = 4096
"""Maximum number of tokens of a sequence unless given."""
DEFAULT_SLOTS = 16
"""Maximum number of sequences that are decoded together unless given."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a scheduler.

    Attributes:
        context: Maximum number of tokens of a prompt with its continuation.
        slots: Maximum number of sequences that are decoded together.
        waiting: Maximum number of waiting requests.
        waiting_tokens: Maximum number of tokens of all waiting prompts.
        waiting_seconds: Maximum time in the queue.
        cache_bytes: Maximum size of the prefix cache in bytes; 0 for none.
    """

    context: int = DEFAULT_CONTEXT
    slots: int = DEFAULT_SLOTS
    waiting: int = 256
    waiting_tokens: int = 1 << 20
    waiting_seconds: float = 300.0
    cache_bytes: int = 1 << 30


class Scheduler:
    """Runs the requests of one model on a thread of its own, which alone uses the model's weights.

    Args:
        model: The model.
        limits: Sizes of the batch, the queue and the prefix cache.
    """

    def __init__(self, model: Model, limits: Limits = Limits()):
        self._model, self._engine, self._limits = model, model.engine, limits
        self.context = min(limits.context, model.engine.config.max_length)
        self._require_memory()
        self.cache = PrefixCache(model.engine.config, limits.cache_bytes)
        self._batch = Batch(self._engine, self.context, limits.slots)
        self._waiting = WaitingQueue(limits.waiting, limits.waiting_tokens)
        self._cancelled: set[Generation] = set()
        self._prefiller = Prefiller(self._engine, self.cache, self.context)
        self._prefill: Prefill | None = None
        self._pending: Call | None = None
        self._steps = buckets.StepsPerCall(MAX_STEPS_PER_CALL)
        self._outbox: list[tuple[Generation, Update | Exception]] = []
        self._lock = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def slots(self) -> int:
        """Maximum number of sequences that are decoded together."""
        return self._limits.slots

    @property
    def running(self) -> int:
        """Number of sequences with a slot."""
        return len(self._batch.running) + (self._prefill is not None)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="gemwright-scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all requests with an error, and the thread."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request; call it on the event loop.

        Raises:
            RequestError: The prompt is empty or does not fit in the context, a token is unknown, or the queue is full.
        """
        self._check(request)
        generation = Generation(request, self._cancel)
        with self._lock:
            if self._stopping:
                raise RequestError(
                    "The model is being unloaded; try again.", status=503, code="unloading", retry_after=RETRY_SECONDS
                )
            self._waiting.append(generation)
            self._loop = asyncio.get_running_loop()
            self._lock.notify()
        return generation

    def warm_up(self) -> Iterator[None]:
        """Compile all programs, before the thread is started, and yield after each."""
        arguments = (self._model.tokenizer, self._engine.vocabulary)
        threading.Thread(target=GrammarTokenizer.of, args=arguments, daemon=True).start()
        yield from self._batch.warm_up()
        for number, (prompt, scored) in enumerate(self._typical_prompts()):
            # Another salt each, so that no prompt begins with a cached one.
            request = GenerationRequest(prompt, Sampling(), 1, prompt_logprobs=scored, cache_salt=f"warm-up {number}")
            self._waiting.append(Generation(request, self._cancel))
            while self._has_work():
                self._step()
            self._outbox.clear()
            yield
        self.cache.clear()

    def _typical_prompts(self) -> Iterator[tuple[Ids | Prompt, bool]]:
        """Yield prompts for which all programs of prefill are compiled, and whether to score them."""
        longest = self.context - 1
        for size in buckets.CHUNKS:
            prompt = [0] * min(size + 1, longest)
            yield prompt, False
            if size <= SHARED_CHUNK:
                yield prompt, True
        images = self._model.image_prompter
        if images is None:
            return
        blank = np.zeros((8, 8, 3), np.uint8)
        sizes: Sequence[int] = buckets.CHUNKS
        if images.style == "prefix":  # one chunk for an image and its text
            rounded = -(-images.vision.tokens // sizes[-1]) * sizes[-1]
            sizes = (*sizes, *{rounded, rounded + sizes[-1]} - {sizes[-1]})
        for size in sizes:
            if size < longest:
                yield images.filled(size + (images.style == "inline")), False
        yield images.before("", [[blank]]), False

    def _require_memory(self) -> None:
        """Check that the decode states and the prefix cache fit.

        Raises:
            GemwrightError: They do not; the message has the numbers.
        """
        engine, limits, free = self._engine, self._limits, memory.available()
        state = state_bytes(engine.config, limits.slots + 1, self.context, engine.state_dtype)
        if free is not None and state + limits.cache_bytes > free:
            raise GemwrightError(
                f"{limits.slots} sequences of {self.context} tokens need {state / 1e9:.1f} GB, the prefix cache "
                f"{limits.cache_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; lower --slots or --context."
            )

    def _check(self, request: GenerationRequest) -> None:
        ids, length = token_ids(request.prompt), len(request.prompt)
        if not length:
            raise RequestError("The prompt is empty; it needs at least one token.", param="prompt")
        lowest = SOFT_TOKEN if isinstance(request.prompt, Prompt) else 0
        if not lowest <= min(ids) <= max(ids) < self._engine.vocabulary:
            raise RequestError(f"Token ids must be between 0 and {self._engine.vocabulary - 1}.", param="prompt")
        if length + (request.max_tokens > 0) > self.context:
            raise RequestError(
                f"The prompt has {length} tokens and the context {self.context}; shorten the prompt, or start the "
                "server with a larger --context.",
                code="context_length_exceeded",
                param="prompt",
            )

    def _cancel(self, generation: Generation) -> None:
        with self._lock:
            self._cancelled.add(generation)
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._stopping or self._has_work()):
                    self._lock.wait()
                if self._stopping:
                    break
            try:
                self._step()
            except Exception as error:  # a defect or lack of memory must not end the server
                _log.exception("The requests in progress failed.")
                self._fail_all(error)
            self._flush()
        self._fail_all(RequestError("The server is shutting down.", status=503, code="shutting_down"))
        self._flush()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._cancelled or self._prefill or self._pending or self._batch.running)

    def _step(self) -> None:
        """Do one round: drop what was cancelled, prefill a chunk, decode, and hand over the call before."""
        self._drop_cancelled()
        if self._prefill is None and not self._batch.is_full:
            self._prefill = self._next_prefill()
        ready = self._prefill_chunk() if self._prefill is not None else None
        if self._pending is not None and (ready is not None or self._batch.has_changed):
            self._collect()
        if ready is not None:
            self._batch.add(*ready)
        previous, self._pending = self._pending, None
        if self._batch.running:
            soon = self._prefill is not None or (len(self._waiting) > 0 and not self._batch.is_full)
            count = 1 if soon else self._steps.count  # no prompt waits for more than a step
            self._pending = self._batch.decode(count)
        if previous is not None:
            self._take(previous)

    def _collect(self) -> None:
        """Wait for the pending call."""
        call, self._pending = self._pending, None
        if call is not None:
            self._take(call)

    def _take(self, call: Call) -> None:
        """Give the tokens of a call to their sequences."""
        tokens, host = host_tokens(call)
        made = int(np.sum(np.any(tokens != NO_TOKEN, axis=1)))
        if made:
            self._steps.record(made)
        for slot, sequence in enumerate(call.sequences):
            if sequence is None or sequence.ended:
                continue
            for step in range(max(made, 1)):
                self._take_token(sequence, int(tokens[step, slot]), host, step, slot)
                if sequence.ended:
                    break
            self._finish_if_ended(sequence)

    def _take_token(self, sequence: Running, token: int, host: SampledTokens, step: int, slot: int) -> None:
        generation, text = sequence.generation, sequence.detokenizer
        if token == NOT_FINITE:
            error = NotFiniteError("The model's logits are not finite; check the checkpoint, or load it as float32.")
            self._fail(sequence, error)
            return
        if token == NO_TOKEN:
            text.finish("stop" if sequence.matcher is not None else "length")
            return
        if generation.first is None:
            generation.first = monotonic()
        top_logprobs, logprob = generation.request.top_logprobs, None
        if top_logprobs is not None and host.logprob is not None:
            assert host.top_tokens is not None
            assert host.top_logprobs is not None
            top = zip(host.top_tokens[step, slot].tolist(), host.top_logprobs[step, slot].tolist(), strict=True)
            logprob = TokenLogprob(token, float(host.logprob[step, slot]), tuple(top)[:top_logprobs])
        sequence.generated.append(token)
        text.push(token, logprob)
        if sequence.matcher is not None and not text.ended:
            sequence.matcher.accept(token)
            if sequence.matcher.is_stopped:
                text.finish("stop")
        if len(sequence.generated) >= sequence.limit:
            text.finish("length")
        on_device = len(sequence.generated) >= sequence.limit or token in generation.request.stop_ids[:STOP_IDS]
        sequence.overrun = text.ended and not on_device

    def _finish_if_ended(self, sequence: Running) -> None:
        self._post_update(sequence)
        if sequence.ended:
            self._save_answer(sequence)
            self._batch.remove(sequence)

    def _save_answer(self, sequence: Running) -> None:
        """Add the state after an answer to the prefix cache, for the next turn of its conversation."""
        request, generated = sequence.generation.request, sequence.generated
        if not self._limits.cache_bytes or sequence.overrun or len(generated) < 2:
            return
        key = np.concatenate([prompt_key(request.prompt), np.asarray(generated[:-1], np.int64)])
        self.cache.put(key, self._batch.snapshot(sequence, len(key)), request.cache_salt)

    def _next_prefill(self) -> Prefill | None:
        """Take the first request of the queue, and the part of its prompt that is cached."""
        with self._lock:
            generation = self._waiting.pop()
        if generation is None:
            return None
        now = monotonic()
        if now - generation.arrival > self._limits.waiting_seconds:
            error = RequestError("The request waited too long; try again later.", status=503, code="queue_timeout")
            self._post(generation, error)
            return None
        generation.started = now
        return self._prefiller.begin(generation)

    def _prefill_chunk(self) -> tuple[Running, DecodeState] | None:
        """Prefill the next chunk; return the sequence with its state if that was the last."""
        prefill = self._prefill
        assert prefill is not None
        hidden = self._prefiller.step(prefill, SHARED_CHUNK if self._batch.running else buckets.CHUNKS[-1])
        if prefill.done < prefill.end:
            return None
        self._prefill = None
        return self._begin(prefill, hidden)

    def _begin(self, prefill: Prefill, hidden: jax.Array | None) -> tuple[Running, DecodeState] | None:
        """Return a sequence whose prompt has been prefilled, unless it has ended."""
        generation, request = prefill.generation, prefill.generation.request
        limit = min(request.max_tokens, self.context - len(request.prompt))
        stream = self._model.tokenizer.stream(keep_control=not request.skip_control_tokens)
        text = Detokenizer[TokenLogprob | None](stream, StopStrings(request.stop_strings), frozenset(request.stop_ids))
        sequence = Running(generation, text, limit)
        self._prefiller.release(prefill.state)
        if limit <= 0:
            sequence.detokenizer.finish("length")
            self._post_update(sequence)
            return None
        if request.grammar is not None:
            try:
                tokenizer, vocabulary = self._model.tokenizer, self._engine.vocabulary
                sequence.matcher = compile_grammar(request.grammar, tokenizer, request.stop_ids, vocabulary)
            except GemwrightError as error:
                self._post(generation, error)
                return None
        if hidden is not None and prefill.end == len(request.prompt):
            call = self._batch.first(sequence, prefill.state, hidden)
            tokens, host = host_tokens(call)
            self._take_token(sequence, int(tokens[0, 0]), host, 0, 0)
            self._post_update(sequence)
            if sequence.ended:
                return None
        return sequence, prefill.state

    def _drop_cancelled(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            if not cancelled:
                return
            self._waiting.remove(cancelled)
        if self._prefill is not None and self._prefill.generation in cancelled:
            self._prefiller.release(self._prefill.state)
            self._prefill = None
        if any(sequence.generation in cancelled for sequence in self._batch.running):
            self._collect()
        for sequence in self._batch.running:
            if sequence.generation in cancelled:
                sequence.detokenizer.finish("length")
                sequence.overrun = True
                self._batch.remove(sequence)

    def _fail(self, sequence: Running, error: Exception) -> None:
        self._post(sequence.generation, error)
        sequence.detokenizer.finish("length")
        sequence.overrun = True

    def _fail_all(self, error: Exception) -> None:
        """End all requests that have begun, or all if the scheduler stops, and begin with a new state."""
        begun = [sequence.generation for sequence in self._batch.running]
        begun += [self._prefill.generation] if self._prefill is not None else []
        if self._stopping:
            begun += self._waiting.clear()
        for generation in begun:
            self._post(generation, error)
        self._prefill, self._pending = None, None
        self._prefiller = Prefiller(self._engine, self.cache, self.context)
        self._batch = Batch(self._engine, self.context, self._limits.slots)

    def _post_update(self, sequence: Running) -> None:
        if (update := sequence.update()) is not None:
            self._post(sequence.generation, update)

    def _post(self, generation: Generation, update: Update | Exception) -> None:
        if generation.finished is not None:  # it has failed
            return
        if isinstance(update, Exception) or update.finish_reason is not None:
            generation.finished = monotonic()
        self._outbox.append((generation, update))

    def _flush(self) -> None:
        """Hand all new updates over to the event loop."""
        updates, self._outbox = self._outbox, []
        if updates and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, updates)


def _deliver(updates: list[tuple[Generation, Update | Exception]]) -> None:
    for generation, update in updates:
        generation.deliver(update)
