"""POST /fim/completions: fill in the middle as Mistral has it and Continue sends it, with replies of chat's shape.

Source: continue, core/llm/llms/OpenAI.ts, `_streamFim`
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.serve.apis.collect import collect, merge, start
from gemwright.serve.apis.openai.replies import WITHOUT_EFFECT, Head, new_id, usage
from gemwright.serve.apis.prepare import Parameters, encode_infill, make_requests
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.http import JSONResponse, convert, get_model, read_json, refuse, stream_events, until_disconnect
from gemwright.serve.models import ServedModel
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
    given = await read_json(request)
    refuse(given, {"n": "send one request for each text."}, (1,))
    fields = convert(given, FimFields, WITHOUT_EFFECT)
    served = await get_model(request, fields.model)
    requests = await served.run(_make_requests, served, fields)
    head = Head("chat.completion.chunk" if fields.stream else "chat.completion", served.name, new_id("cmpl-"))
    async with AsyncExitStack() as stack:
        (generation,) = await stack.enter_async_context(start(served, requests))
        if fields.stream:
            return stream_events(request, _stream(generation, head), stack.pop_all())
        (result,) = await until_disconnect(request, collect([generation]))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text},
        "finish_reason": result.finish_reason,
    }
    return JSONResponse(head(choices=[choice], usage=usage([generation], 1, len(result.tokens))))


def _make_requests(served: ServedModel, fields: FimFields) -> list[GenerationRequest]:
    prompt = encode_infill(served.model, fields.prompt, fields.suffix)
    if fields.temperature is None:
        fields.temperature = 0.0
    stop_ids = infill.stop_ids(served.model.tokenizer)
    return make_requests(served, prompt, fields, stop_ids=stop_ids, max_tokens=DEFAULT_TOKENS)


async def _stream(generation: Generation, head: Head) -> AsyncGenerator[dict[str, Any], None]:
    count = 0
    async for _, update in merge([generation]):
        count += len(update.tokens)
        if update.text:
            yield head(choices=[{"index": 0, "delta": {"content": update.text}, "finish_reason": None}])
        if update.finish_reason:
            choice = {"index": 0, "delta": {}, "finish_reason": update.finish_reason}
            yield head(choices=[choice], usage=usage([generation], 1, count))
