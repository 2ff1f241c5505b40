"""A running request as the event loop sees it: an asynchronous iterator of updates that can be cancelled."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Self

from gemwright.serve.batching.request import GenerationRequest, TokenLogprob, Update


class Generation(AsyncIterator[Update]):
    """The updates of one request; leaving its context cancels what is unfinished.

    async with served.generate(request) as generation:
        async for update in generation:
            ...

    Attributes:
        request: The request.
        prompt_tokens: Length of the prompt in tokens.
        cached_tokens: How many of them were in the prefix cache; set with the first update.
        prompt_logprobs: One per token of the prompt, if requested; set with the first update.
        arrival: When the request was made, by `time.monotonic`.
        started: When its prefill began.
        first: When its first token was chosen.
        finished: When it ended.
        screen: Yields its updates when a shield has judged them; None without a shield.
    """

    def __init__(self, request: GenerationRequest, cancel: Callable[["Generation"], None]):
        self.request = request
        self.prompt_tokens = len(request.prompt)
        self.cached_tokens = 0
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.arrival = time.monotonic()
        self.started: float | None = None
        self.first: float | None = None
        self.finished: float | None = None
        self.screen: Callable[[Generation], AsyncGenerator[Update, None]] | None = None
        self._cancel = cancel
        self._updates: asyncio.Queue[Update | Exception] = asyncio.Queue()
        self._ended = False

    async def __anext__(self) -> Update:
        if self._ended:
            raise StopAsyncIteration
        update = await self._updates.get()
        self._ended = isinstance(update, Exception) or update.finish_reason is not None
        if isinstance(update, Exception):
            raise update
        return update

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the request, whether it waits or runs; nothing happens if it has ended."""
        if not self._ended:
            self._ended = True
            self._cancel(self)

    def deliver(self, update: Update | Exception) -> None:
        """Add an update, on the event loop. An exception ends the iteration by being raised."""
        self._updates.put_nowait(update)
