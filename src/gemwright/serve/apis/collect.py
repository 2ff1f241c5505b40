"""Run the generations of one HTTP request together: as a stream of updates, or until all have ended."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from gemwright.api import Model
from gemwright.generate.prompts import token_ids
from gemwright.serve import metrics
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import FinishReason, GenerationRequest, TokenLogprob, Update
from gemwright.serve.models import ServedModel
from gemwright.text.image_format import SOFT_TOKEN


@dataclass
class Result:
    """A complete text, with the fields of its updates."""

    generation: Generation
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish_reason: FinishReason = "length"
    stop: int | str | None = None

    def add(self, update: Update) -> None:
        """Add an update."""
        self.text += update.text
        self.tokens += update.tokens
        self.logprobs += update.logprobs
        self.finish_reason, self.stop = update.finish_reason or self.finish_reason, update.stop


@asynccontextmanager
async def start(served: ServedModel, requests: Sequence[GenerationRequest]) -> AsyncGenerator[list[Generation], None]:
    """Queue requests that the shield lets pass; on leaving, cancel those that have not ended.

    Raises:
        RequestError: One of them is refused, and none runs; or as `ServedModel.generate`.
    """
    generations, shield = list[Generation](), served.shield
    if shield is not None:
        requests = [request if request.texts else with_texts(served.model, request) for request in requests]
        await shield.check(served.name, [text for request in requests for text in request.texts])
    try:
        for request in requests:
            generations.append(served.generate(request))
            generations[-1].screen = None if shield is None else partial(shield.screen, served.name)
            metrics.begin(served.name, generations[-1])
        yield generations
    finally:
        for generation in generations:
            generation.cancel()
            metrics.end(generation)


async def merge(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Update]]:
    """Yield the updates of generations as they come, each with the index of its generation.

    Raises:
        GemwrightError: One of them failed.
    """
    if len(generations) == 1:
        async with aclosing(_updates(generations[0])) as updates:
            async for update in updates:
                yield 0, update
        return
    queue: asyncio.Queue[tuple[int, Update | Exception]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_forward(index, each, queue)) for index, each in enumerate(generations)]
    try:
        running = len(tasks)
        while running:
            index, update = await queue.get()
            if isinstance(update, Exception):
                raise update
            running -= update.finish_reason is not None
            yield index, update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _updates(generation: Generation) -> AsyncGenerator[Update, None]:
    """Yield the updates of a generation, those that were judged if it has a shield, and record them."""
    if generation.screen is None:
        async for update in generation:
            metrics.update(generation, update)
            yield update
        return
    async with aclosing(generation.screen(generation)) as judged:
        async for update in judged:
            metrics.update(generation, update)
            yield update


def with_texts(model: Model, request: GenerationRequest) -> GenerationRequest:
    """Return a request with the text of its prompt as the text to judge."""
    ids = [token for token in token_ids(request.prompt) if token != SOFT_TOKEN]
    return replace(request, texts=(model.decode(ids),))


async def _forward(index: int, generation: Generation, queue: asyncio.Queue[tuple[int, Update | Exception]]) -> None:
    try:
        async with aclosing(_updates(generation)) as updates:
            async for update in updates:
                queue.put_nowait((index, update))
    except Exception as error:
        queue.put_nowait((index, error))


async def collect(generations: Sequence[Generation]) -> list[Result]:
    """Return the complete texts of generations.

    Raises:
        GemwrightError: One of them failed.
    """
    results = [Result(generation) for generation in generations]
    for result in results:
        async with aclosing(_updates(result.generation)) as updates:
            async for update in updates:
                result.add(update)
    return results
