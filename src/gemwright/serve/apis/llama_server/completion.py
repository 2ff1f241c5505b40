"""POST /completion and POST /infill.

Source: llama.cpp, tools/server/README.md
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.serve.apis.collect import Result, merge, start
from gemwright.serve.apis.llama_server.fields import CompletionFields, read_completion, read_infill
from gemwright.serve.apis.llama_server.lines import LineLimit
from gemwright.serve.apis.llama_server.prompts import make_completion, make_infill
from gemwright.serve.apis.llama_server.replies import Reply, error_body, split_tokens
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest, Update
from gemwright.serve.http import JSONResponse, get_model, read_json, stream_events, until_disconnect


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/completion", _completion, methods=["POST"]),
        Route("/completions", _completion, methods=["POST"]),
        Route("/infill", _infill, methods=["POST"]),
    ]


async def _completion(request: Request) -> Response:
    """Continue a prompt, or each of several."""
    fields = read_completion(await read_json(request))
    served = await get_model(request, fields.model)
    requests = await served.run(make_completion, served, fields)
    return await _respond(request, Reply(served, fields), requests)


async def _infill(request: Request) -> Response:
    """Generate the code between two pieces of code."""
    fields = read_infill(await read_json(request))
    served = await get_model(request, fields.model)
    requests, truncated = await served.run(make_infill, served, fields)
    return await _respond(request, Reply(served, fields, truncated), requests)


async def _respond(request: Request, reply: Reply, requests: Sequence[GenerationRequest]) -> Response:
    """Return a stream, the object of a text, or a list of those of several texts."""
    async with AsyncExitStack() as stack:
        generations = await stack.enter_async_context(start(reply.served, requests))
        if reply.fields.stream:
            return stream_events(request, _stream(reply, generations), stack.pop_all(), body=error_body, done=b"")
        results = await until_disconnect(request, _collect(reply.fields, generations))
    bodies = [reply.complete(index, result) for index, result in enumerate(results)]
    return JSONResponse(bodies if len(bodies) > 1 else bodies[0])


async def _collect(fields: CompletionFields, generations: Sequence[Generation]) -> list[Result]:
    results = [Result(generation) for generation in generations]
    async for index, update in _run(generations, fields):
        results[index].add(update)
    return results


async def _stream(reply: Reply, generations: Sequence[Generation]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the parts of texts, and at the end of each all that is known about it, without the text."""
    results = [Result(generation) for generation in generations]
    async for index, update in _run(generations, reply.fields):
        results[index].add(update)
        for part in split_tokens(update, each=bool(reply.fields.n_probs)):
            yield reply.part(index, results[index], part)
        if update.finish_reason:
            yield reply.end(index, results[index])


async def _run(generations: Sequence[Generation], fields: CompletionFields) -> AsyncGenerator[tuple[int, Update], None]:
    """Yield the updates of generations, each of which ends at the limits of `LineLimit`, if not before."""
    limits = [LineLimit(fields.n_indent, fields.t_max_predict_ms / 1000) for _ in generations]
    running = set(range(len(generations)))
    async for index, update in merge(generations):
        if index in running:
            update = limits[index].cut(update)
            running -= {index} if update.finish_reason else set()
            yield index, update
        if not running:
            return
