"""Health and metadata of the Open Inference Protocol, version 2, which KServe probes; inference is by the other APIs.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright import __version__
from gemwright.errors import RequestError
from gemwright.serve.health import find_problem
from gemwright.serve.http import JSONResponse, get_model

ROOT = "/v2"
"""Beginning of the paths."""


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/v2", _server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        Route("/v2/models/{name:path}/ready", _model_ready),
        Route("/v2/models/{name:path}/infer", _infer, methods=["POST"]),
        Route("/v2/models/{name:path}", _model),
    ]


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": str(error)}


async def _server(request: Request) -> Response:
    return JSONResponse({"name": "gemwright", "version": __version__, "extensions": []})


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    problem = find_problem(request)
    return JSONResponse({"ready": problem is None}, 200 if problem is None else problem.status)


async def _model(request: Request) -> Response:
    """Return a model's metadata. It has no tensors: there is no inference by this protocol."""
    served = await get_model(request, request.path_params["name"])
    return JSONResponse({"name": served.name, "versions": [], "platform": "gemwright", "inputs": [], "outputs": []})


async def _model_ready(request: Request) -> Response:
    served = await get_model(request, request.path_params["name"])
    return JSONResponse({"name": served.name, "ready": True})


async def _infer(request: Request) -> Response:
    raise RequestError(
        "Inference by tensors is not supported; use POST /v1/chat/completions or /v1/completions.",
        status=501,
        code="not_implemented",
    )
