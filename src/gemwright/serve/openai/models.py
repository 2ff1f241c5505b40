"""`/v1/models`: the models of the server."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemwright.serve.http import JSONResponse, get_model
from gemwright.serve.models import ServedModel


async def list_models(request: Request) -> Response:
    """Answer with all models."""
    served = request.app.state.registry.models
    return JSONResponse({"object": "list", "data": [_describe(model) for model in served]})


async def show_model(request: Request) -> Response:
    """Answer with the model of a name."""
    return JSONResponse(_describe(await get_model(request, request.path_params["name"])))


def _describe(served: ServedModel) -> dict[str, Any]:
    modalities = ["text", *["image"] * (served.model.image_prompter is not None)]
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "gemwright",
        "max_model_len": served.context,
        "aliases": list(served.aliases),
        "architecture": {"input_modalities": modalities, "output_modalities": ["text"]},
        "meta": {"n_vocab": served.model.engine.vocabulary, "n_ctx_train": served.model.engine.config.max_length},
    }
