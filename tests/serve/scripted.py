"""A scheduler that writes given texts in place of a model's, one token at a time, for tests of the HTTP layer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from gemwright.api import Model
from gemwright.errors import RequestError
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import FinishReason, GenerationRequest, TokenLogprob, Update
from gemwright.text.stop import StopStrings


@dataclass(eq=False)
class ScriptedScheduler:
    """Implements `gemwright.serve.batching.scheduler.Scheduler`.

    Attributes:
        model: The model, whose tokenizer and vocabulary are used.
        script: Returns the ids that a request generates; stop ids among them end the text.
        pause: Time before each token in seconds.
        full: Whether the queue refuses requests.
        requests: All requests.
        cancelled: Generations that were cancelled.
    """

    model: Model
    script: Callable[[GenerationRequest], list[int]]
    context: int = 512
    pause: float = 0.0
    full: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    cancelled: list[Generation] = field(default_factory=list)
    is_alive: bool = True
    slots: int = 4
    running: int = 0
    waiting: int = 0

    def submit(self, request: GenerationRequest) -> Generation:
        if self.full:
            raise RequestError("The queue is full.", status=429, code="queue_full", retry_after=2)
        self.requests.append(request)
        generation = Generation(request, self._cancel)
        self._task = asyncio.ensure_future(self._run(generation))
        return generation

    def stop(self) -> None:
        """End nothing: there is no thread."""

    def _cancel(self, generation: Generation) -> None:
        self.cancelled.append(generation)

    async def _run(self, generation: Generation) -> None:
        request, tokenizer = generation.request, self.model.tokenizer
        generation.started = generation.first = monotonic()
        if request.prompt_logprobs:
            ids = list(request.prompt)
            first = TokenLogprob(ids[0], None, ())
            generation.prompt_logprobs = (first, *(self._logprob(token, request) for token in ids[1:]))
        stream, stops = tokenizer.stream(), StopStrings(request.stop_strings)
        reason: FinishReason = "length"
        stop: int | str | None = None
        for token in self.script(request)[: request.max_tokens]:
            await asyncio.sleep(self.pause)
            if generation in self.cancelled:
                return
            if token in request.stop_ids:
                reason, stop = "stop", token
                break
            text, found = stops.push(stream.push(token))
            if found:
                reason = "stop"
                generation.deliver(Update(text))
                break
            given = () if request.top_logprobs is None else (self._logprob(token, request),)
            generation.deliver(Update(text, (token,), given))
        generation.finished = monotonic()
        rest = stops.push(stream.finish())[0] + stops.finish()[0]
        generation.deliver(Update(rest, finish_reason=reason, stop=stop))

    def _logprob(self, token: int, request: GenerationRequest) -> TokenLogprob:
        """Return a log-probability that depends on the token, which is the likeliest if its id is even."""
        others = [(other, -3.0 - other / 1000) for other in range(300, 320) if other != token]
        own = -0.5 if token % 2 == 0 else -9.0
        ranked = sorted([(token, own), *others], key=lambda pair: -pair[1])
        return TokenLogprob(token, own, tuple(ranked[: request.top_logprobs or 0]))
