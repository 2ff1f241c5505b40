"""Run requests through a scheduler, as endpoints do."""

import asyncio
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from gemwright.api import Model
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest, TokenLogprob
from gemwright.serve.batching.scheduler import Limits, Scheduler


@dataclass
class Result:
    """What a request gave."""

    generation: Generation
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop: int | str | None = None


@contextmanager
def running(model: Model, limits: Limits):
    """Start a scheduler, and stop it."""
    scheduler = Scheduler(model, limits)
    for _ in scheduler.warm_up():
        pass
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


async def finish(generation: Generation, after: int | None = None) -> Result:
    """Return a request's result; with `after`, cancel it after so many tokens."""
    result = Result(generation)
    async with generation:
        async for update in generation:
            result.text += update.text
            result.tokens += update.tokens
            result.logprobs += update.logprobs
            result.finish_reason, result.stop = update.finish_reason, update.stop
            if after is not None and len(result.tokens) >= after:
                break
    return result


def run(scheduler: Scheduler, requests: Sequence[GenerationRequest], seconds: float = 120.0) -> list[Result]:
    """Run requests together."""

    async def gather() -> list[Result]:
        generations = [scheduler.submit(request) for request in requests]
        return list(await asyncio.wait_for(asyncio.gather(*map(finish, generations)), seconds))

    return asyncio.run(gather())
