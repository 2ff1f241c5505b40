"""Anthropic's API: POST /v1/messages and POST /v1/messages/count_tokens."""

from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.errors import RequestError
from gemwright.serve.apis.answer import begin_chat, plan_chat
from gemwright.serve.apis.anthropic.fields import read_messages, to_chat
from gemwright.serve.apis.anthropic.message import MessageWriter, error_body
from gemwright.serve.http import JSONResponse, get_model, read_json, stream_events, until_disconnect

ROOT = "/v1/messages"
"""Beginning of the paths."""

__all__ = ["ROOT", "error_body", "routes"]


def routes() -> list[Route]:
    """Return the routes."""
    return [Route(ROOT, _messages, methods=["POST"]), Route(f"{ROOT}/count_tokens", _count, methods=["POST"])]


async def _messages(request: Request) -> Response:
    """Answer a request for the next message of a conversation."""
    fields = read_messages(await read_json(request))
    served = await get_model(request, fields.model)
    async with AsyncExitStack() as stack:
        answer = await begin_chat(request, served, to_chat(fields), stack)
        writer = MessageWriter(served.name)
        if fields.stream:
            return stream_events(request, answer.write(writer), stack.pop_all(), body=_error_event, done=b"")
        await until_disconnect(request, answer.finish(writer))
    return JSONResponse(writer.message)


async def _count(request: Request) -> Response:
    """Answer with the number of tokens of a conversation."""
    fields = read_messages(await read_json(request), count=True)
    served = await get_model(request, fields.model)
    planned = await plan_chat(request, served, to_chat(fields))
    return JSONResponse({"input_tokens": len(planned.requests[0].prompt)})


def _error_event(error: RequestError) -> tuple[str, dict[str, Any]]:
    return "error", error_body(error)
