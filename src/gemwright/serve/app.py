"""The web application: routes of all APIs behind a check of keys, origins and readiness."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemwright.errors import GemwrightError, RequestError
from gemwright.serve import health, page
from gemwright.serve.apis import anthropic, kserve, llama_server, ollama, openai, responses, vertex
from gemwright.serve.http import ErrorBody, error_response, openai_error, settings_of
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_KEY_HEADERS = ("x-api-key", "api-key")
CLIENT_CLOSED = 499
"""Status of a request whose client left, as in nginx; nobody receives it."""
_ERROR_BODIES: Mapping[str, ErrorBody] = {
    anthropic.ROOT: anthropic.error_body,
    kserve.ROOT: kserve.error_body,
    ollama.ROOT: ollama.error_body,
    **dict.fromkeys(llama_server.ROOTS, llama_server.error_body),
}
"""Formats of errors by the beginning of the path; OpenAI's for all others."""


def create_app(registry: ModelRegistry | None, settings: Settings) -> Starlette:
    """Return the application.

    Args:
        registry: The models, or None while they are being loaded; set `app.state.registry` when they are ready.
        settings: Keys, origins and limits.
    """
    app = Starlette(
        routes=_routes(settings),
        middleware=_middleware(settings),
        exception_handlers={
            GemwrightError: _handle,
            HTTPException: _handle_http,
            ClientDisconnect: _handle_disconnect,
            Exception: _handle,
        },
    )
    app.state.registry, app.state.settings, app.state.draining, app.state.active = registry, settings, False, 0
    return app


def _routes(settings: Settings) -> list[BaseRoute]:
    return [
        *vertex.routes(),
        *health.routes(),
        *openai.routes(),
        *responses.routes(),
        *anthropic.routes(),
        *ollama.routes(),
        *llama_server.routes(),
        *kserve.routes(),
        *(page.routes() if settings.page else ()),
    ]


def _middleware(settings: Settings) -> list[Middleware]:
    cross_origin = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("X-Request-Id",),
    )
    return [Middleware(_RequestIds), *[cross_origin] * bool(settings.cors_origins), Middleware(_Guard)]


def error_body(path: str) -> ErrorBody:
    """Return the format of errors of a path."""
    return next((body for prefix, body in _ERROR_BODIES.items() if path.startswith(prefix)), openai_error)


async def _handle(request: Request, error: Exception) -> Response:
    return error_response(error, error_body(request.url.path))


async def _handle_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reasons: Mapping[int, tuple[str, str]] = {
        404: (f"There is no {request.method} {request.url.path:.200}.", "not_found"),
        405: (f"{request.url.path:.200} does not take {request.method}.", "method_not_allowed"),
    }
    message, code = reasons.get(status, (str(getattr(error, "detail", error)), "invalid_request"))
    response = error_response(RequestError(message, status=status, code=code), error_body(request.url.path))
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


class _RequestIds:
    """Answers each request with its own `X-Request-Id`, or a new one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Request(scope).headers.get("x-request-id", "")
        identifier = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = identifier
            await send(message)

        await self.app(scope, receive, send_with_id)


class _Guard:
    """Refuses requests without a key, from web pages of other origins, and while no model is ready."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        refusal = _find_refusal(request)
        if refusal is not None:
            await error_response(refusal, error_body(request.url.path))(scope, receive, send)
            return
        state = request.app.state
        state.active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            state.active -= 1


def _find_refusal(request: Request) -> RequestError | None:
    path, settings = request.url.path, settings_of(request)
    if path in health.PUBLIC or path == vertex.health_path() or page.is_public(path):
        return None
    if not _is_allowed_origin(request, settings.cors_origins):
        return RequestError(
            "Web pages of this origin may not use the server; start it with --cors-origin to allow one.",
            status=403,
            code="origin_not_allowed",
        )
    if settings.api_keys and not _has_key(request, settings.api_keys):
        return RequestError(
            "The API key is missing or wrong; send it as Authorization: Bearer KEY.", status=401, code="invalid_api_key"
        )
    return None if path == health.METRICS else health.find_problem(request)


def _has_key(request: Request, keys: Sequence[str]) -> bool:
    """Return whether a request bears one of the keys, in a time that does not depend on how much of one is right."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = [request.headers.get(name, "") for name in _KEY_HEADERS] + [token.strip()] * (scheme.lower() == "bearer")
    # Headers are Latin-1 to Starlette, and UTF-8 to clients.
    digests = [hashlib.sha256(key.encode("latin-1")).digest() for key in given]
    expected = [hashlib.sha256(key.encode()).digest() for key in keys]
    return sum(hmac.compare_digest(one, other) for one in digests for other in expected) > 0


def _is_allowed_origin(request: Request, allowed: Sequence[str]) -> bool:
    """Return whether a request comes from no web page, from one of this server, or from an allowed one."""
    origin = request.headers.get("origin", "")
    is_page = origin.startswith(("http://", "https://"))
    return not is_page or "*" in allowed or origin in allowed or urlsplit(origin).netloc == request.headers.get("host")
