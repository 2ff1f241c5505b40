"""POST /fim/completions: fill in the middle as Mistral has it and Continue sends it, with replies of chat's shape.

Source: continue, core/llm/llms/OpenAI.ts, `_streamFim`
"""

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.serve.collect import collect, start
from gemwright.serve.generation import Generation
from gemwright.serve.http import JSONResponse, convert, get_model, read_json, stream_events, until_disconnect
from gemwright.serve.models import ServedModel
from gemwright.serve.prepare import Parameters, encode_infill, make_requests
from gemwright.serve.request import GenerationRequest
from gemwright.text import infill

DEFAULT_TOKENS = 256
"""Maximum number of tokens unless given."""


class FimFields(Parameters, kw_only=True):
    """The fields of a request, besides those that all APIs have: the code before and after the gap."""

    prompt: str
    suffix: str = ""
    model: str | None = None
    stream: bool = False


def routes() -> list[Route]:
    """Return the routes."""
    return [Route(path, _complete, methods=["POST"]) for path in ("/fim/completions", "/v1/fim/completions")]


async def _complete(request: Request) -> Response:
    """Generate the code between two pieces of code."""
    fields = convert(await read_json(request), FimFields)
    served = await get_model(request, fields.model)
    fields.n = 1
    requests = await served.run(_make_requests, served, fields)
    frame = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    if fields.stream:
        return stream_events(request, _stream(served, requests, frame))
    return JSONResponse(await until_disconnect(request, _collect(served, requests, frame)))


def _make_requests(served: ServedModel, fields: FimFields) -> list[GenerationRequest]:
    prompt = encode_infill(served.model, fields.prompt, fields.suffix)
    if fields.temperature is None:
        fields.temperature = 0.0
    stop_ids = infill.stop_ids(served.model.tokenizer)
    return make_requests(served, prompt, fields, stop_ids=stop_ids, max_tokens=DEFAULT_TOKENS)


async def _collect(served: ServedModel, requests: list[GenerationRequest], frame: dict[str, Any]) -> dict[str, Any]:
    async with start(served, requests) as generations:
        (result,) = await collect(generations)
    message = {"role": "assistant", "content": result.text}
    choice = {"index": 0, "message": message, "finish_reason": result.finish_reason}
    usage = _usage(result.generation, len(result.tokens))
    return {**frame, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _stream(
    served: ServedModel, requests: list[GenerationRequest], frame: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    count = 0
    async with start(served, requests) as (generation,):
        async for update in generation:
            count += len(update.tokens)
            if update.text:
                yield _chunk(frame, {"content": update.text}, None)
            if update.finish_reason:
                yield {**_chunk(frame, {}, update.finish_reason), "usage": _usage(generation, count)}


def _chunk(frame: dict[str, Any], delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**frame, "object": "chat.completion.chunk", "choices": [choice]}


def _usage(generation: Generation, tokens: int) -> dict[str, int]:
    prompt = generation.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
