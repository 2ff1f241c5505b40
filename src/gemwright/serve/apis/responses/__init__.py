"""OpenAI's responses: POST /v1/responses, without anything that would be stored."""

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.errors import RequestError
from gemwright.serve.apis.answer import begin_chat, plan_chat
from gemwright.serve.apis.responses.fields import read_response, to_chat
from gemwright.serve.apis.responses.response import ResponseWriter
from gemwright.serve.http import JSONResponse, get_model, read_json, stream_events, until_disconnect

__all__ = ["routes"]


def routes() -> list[Route]:
    """Return the routes."""
    return [
        *(Route(f"{prefix}/responses", _respond, methods=["POST"]) for prefix in ("/v1", "")),
        *(Route(f"{prefix}/responses/input_tokens", _count, methods=["POST"]) for prefix in ("/v1", "")),
        Route("/v1/responses/{rest:path}", _refuse_stored, methods=["GET", "POST", "DELETE"]),
    ]


async def _respond(request: Request) -> Response:
    """Answer a request for a response."""
    fields = read_response(await read_json(request))
    served = await get_model(request, fields.model)
    async with AsyncExitStack() as stack:
        answer = await begin_chat(request, served, to_chat(fields), stack)
        writer = ResponseWriter(fields, served)
        if fields.stream:
            return stream_events(request, answer.write(writer), stack.pop_all(), body=writer.fail, done=b"")
        await until_disconnect(request, answer.finish(writer))
    return JSONResponse(writer.response)


async def _count(request: Request) -> Response:
    """Answer with the number of tokens of an input."""
    fields = read_response(await read_json(request))
    served = await get_model(request, fields.model)
    planned = await plan_chat(request, served, to_chat(fields))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(planned.requests[0].prompt)})


async def _refuse_stored(request: Request) -> Response:
    raise RequestError("Responses are not stored; send the whole conversation as input.", status=404, code="not_found")
