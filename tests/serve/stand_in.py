"""A server of the page without a model: it streams scripted replies in the exact chunks of OpenAI's API."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gemwright.errors import RequestError
from gemwright.serve import page
from gemwright.serve.settings import Settings

FACTS = {
    "context": 8192,
    "tuned": True,
    "images": False,
    "single_turn": False,
    "infill": False,
    "sampling": {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0},
}


@dataclass
class Script:
    """What a server does.

    Attributes:
        replies: Used in turn; each the pieces of a text, or an error.
        models: The models, with what differs from `FACTS`.
        requests: The requests for replies so far.
        key: The API key, if one is needed.
        pause: Seconds before each event of a stream.
        cut: End streams in their middle.
        left: Number of streams that the client left.
    """

    replies: list[list[str] | Response] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=lambda: {"gemma-3-4b-it": {}})
    requests: list[dict[str, Any]] = field(default_factory=list)
    key: str = ""
    pause: float = 0.0
    cut: bool = False
    left: int = 0

    def reset(self) -> None:
        """Start over, for the next test."""
        self.__dict__.update(vars(Script()))


def error(status: int, message: str, **headers: str) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def create(script: Script, settings: Settings | None = None) -> Starlette:
    async def models(request: Request) -> Response:
        if script.key and request.headers.get("Authorization") != f"Bearer {script.key}":
            return error(401, "This server needs an API key.")
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "gemwright"} for name in script.models]
        return JSONResponse({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        name = request.query_params["model"]
        return JSONResponse({"name": name, **FACTS, **script.models[name]})

    async def reply(request: Request) -> Response:
        body = await request.json()
        script.requests.append(body)
        pieces = script.replies.pop(0) if script.replies else ["Fine."]
        if isinstance(pieces, Response):
            return pieces
        chunks = _chat(body, pieces) if "messages" in body else _completion(body, pieces)
        return StreamingResponse(_events(chunks, script), media_type="text/event-stream")

    own = [
        Route("/v1/models", models),
        Route("/page/model", model),
        Route("/v1/chat/completions", reply, methods=["POST"]),
        Route("/v1/completions", reply, methods=["POST"]),
    ]

    async def refuse(request: Request, refused: Exception) -> Response:
        assert isinstance(refused, RequestError)
        return error(refused.status, str(refused))

    app = Starlette(routes=[*own, *page.routes()], exception_handlers={RequestError: refuse})
    app.state.registry, app.state.settings = Registry(), settings or Settings()
    return app


class Registry:
    async def get(self, name: str | None) -> Any:
        return self

    async def run(self, function: Any, *args: Any) -> Any:
        return function(*args)


def _usage(body: dict[str, Any], pieces: Sequence[str]) -> dict[str, Any]:
    prompt = 10 * len(body.get("messages", "x"))
    usage = {"prompt_tokens": prompt, "completion_tokens": len(pieces), "total_tokens": prompt + len(pieces)}
    return {"choices": [], "usage": usage}


def _chat(body: dict[str, Any], pieces: Sequence[str]) -> list[dict[str, Any]]:
    def choice(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}

    def logprobs(piece: str) -> dict[str, Any]:
        chosen = -0.5 * (1 + len(piece) % 3)
        top = [
            {"token": token, "logprob": logprob, "bytes": None} for token, logprob in ((piece, chosen), (" or", -1.5))
        ]
        return {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}

    wanted = body.get("logprobs", False)
    texts = [choice({"content": piece}, **(logprobs(piece) if wanted else {})) for piece in pieces]
    return [choice({"role": "assistant", "content": ""}), *texts, choice({}, "stop"), _usage(body, pieces)]


def _completion(body: dict[str, Any], pieces: Sequence[str]) -> list[dict[str, Any]]:
    texts = [{"choices": [{"index": 0, "text": piece, "finish_reason": None, "logprobs": None}]} for piece in pieces]
    end = {"choices": [{"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}]}
    return [*texts, end, _usage(body, pieces)]


async def _events(chunks: list[dict[str, Any]], script: Script) -> AsyncIterator[str]:
    same = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    sent, shown = 0, chunks[: len(chunks) // 2] if script.cut else chunks
    try:
        for chunk in shown:
            await asyncio.sleep(script.pause)
            yield f"data: {json.dumps(same | chunk)}\n\n"
            sent += 1
        if not script.cut:
            yield "data: [DONE]\n\n"
    finally:
        script.left += sent < len(shown)
