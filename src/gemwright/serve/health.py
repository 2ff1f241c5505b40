"""Whether the server lives and is ready, and its measurements."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemwright.errors import RequestError
from gemwright.serve import metrics
from gemwright.serve.http import JSONResponse

PUBLIC = frozenset({"/health", "/v1/health", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that need neither a key nor a model."""
METRICS = "/metrics"
"""Path that needs no model."""
RETRY_SECONDS = 5
"""Time after which a client may try again while a model is being loaded."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        Route("/health", _ready),
        Route("/v1/health", _ready),
        Route("/readyz", _ready),
        Route("/livez", _live),
        Route(METRICS, _metrics),
    ]


def find_problem(request: Request) -> RequestError | None:
    """Return why the server does not take requests for models now, if it does not."""
    state = request.app.state
    if state.draining:
        return RequestError("The server is shutting down.", status=503, code="shutting_down", retry_after=RETRY_SECONDS)
    if state.registry is None:
        return RequestError("Loading model", status=503, code="loading", retry_after=RETRY_SECONDS)
    return None


async def _ready(request: Request) -> Response:
    problem = find_problem(request)
    if problem is None:
        return JSONResponse({"status": "ok"})
    # llama-server's body; its clients compare the code with the status.
    body = {"error": {"code": problem.status, "message": str(problem), "type": "unavailable_error"}}
    return JSONResponse(body, problem.status, {"Retry-After": str(problem.retry_after)})


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(request: Request) -> Response:
    registry = request.app.state.registry
    names = [] if registry is None else [served.name for served in registry.models]
    return Response(metrics.render(names), media_type="text/plain; version=0.0.4; charset=utf-8")
