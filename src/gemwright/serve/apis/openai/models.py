"""`/v1/models`: the models of the server."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemwright.serve.http import JSONResponse
from gemwright.serve.models import ModelSource


async def list_models(request: Request) -> Response:
    """Answer with all models."""
    sources = request.app.state.registry.sources
    return JSONResponse({"object": "list", "data": [_describe(source) for source in sources]})


async def show_model(request: Request) -> Response:
    """Answer with the model of a name."""
    return JSONResponse(_describe(request.app.state.registry.find(request.path_params["name"])))


def _describe(source: ModelSource) -> dict[str, Any]:
    """Return what clients read of a model; of one that is not loaded, its names."""
    served = source.served
    found = {
        "id": source.name,
        "object": "model",
        "created": 0 if served is None else served.created,
        "owned_by": "gemwright",
        "aliases": list(source.aliases),
    }
    if served is None:
        return found
    modalities = ["text", *["image"] * (served.model.image_prompter is not None)]
    return found | {
        "max_model_len": served.context,
        "architecture": {"input_modalities": modalities, "output_modalities": ["text"]},
        "meta": {"n_vocab": served.model.engine.vocabulary, "n_ctx_train": served.model.engine.config.max_length},
    }
