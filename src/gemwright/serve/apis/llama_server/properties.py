"""The properties of llama-server: GET /props, GET /slots and POST /apply-template.

Source: llama.cpp, tools/server/README.md
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright import __version__
from gemwright.errors import RequestError
from gemwright.generate.prompts import token_ids
from gemwright.serve.apis.answer import plan_chat
from gemwright.serve.apis.llama_server.fields import RANDOM_SEED
from gemwright.serve.apis.llama_server.replies import describe_sampling
from gemwright.serve.http import JSONResponse, get_model, read_json
from gemwright.text.chat_template import DEFAULT


def routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/props", _properties),
        Route("/props", _unsupported, methods=["POST"]),
        Route("/slots", _slots),
        Route("/slots/{slot}", _unsupported, methods=["POST"]),
        Route("/apply-template", _apply_template, methods=["POST"]),
    ]


async def _properties(request: Request) -> Response:
    """Return the default settings of a model, and what it is."""
    served = await get_model(request, request.query_params.get("model"))
    model, tokenizer = served.model, served.model.tokenizer
    sources = model.chat_template.sources
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": served.context,
                "params": describe_sampling(served, -1, model.defaults) | {"seed": RANDOM_SEED},
            },
            "total_slots": served.scheduler.slots,
            "model_alias": served.name,
            "model_path": model.name,
            "modalities": {"vision": model.image_prompter is not None, "audio": False},
            "chat_template": sources.get(DEFAULT) or next(iter(sources.values())),
            "bos_token": tokenizer.decode([tokenizer.bos_id], keep_control=True),
            "eos_token": tokenizer.decode([tokenizer.eos_id], keep_control=True),
            "build_info": f"gemwright-{__version__}",
        }
    )


async def _slots(request: Request) -> Response:
    """Return the slots of a model, as many of them busy as texts are being generated."""
    served = await get_model(request, request.query_params.get("model"))
    scheduler = served.scheduler
    slots = range(scheduler.slots)
    return JSONResponse(
        [{"id": slot, "n_ctx": served.context, "is_processing": slot < scheduler.running} for slot in slots]
    )


async def _apply_template(request: Request) -> Response:
    """Answer with the prompt of a conversation as text."""
    fields = await read_json(request)
    served = await get_model(request, str(fields.get("model", "")))
    planned = await plan_chat(request, served, fields)
    ids = [token for token in token_ids(planned.requests[0].prompt) if token >= 0]  # those of images have no text
    return JSONResponse({"prompt": served.model.tokenizer.decode(ids, keep_control=True)})


async def _unsupported(request: Request) -> Response:
    raise RequestError(f"{request.method} {request.url.path} is not supported.", status=501, code="not_implemented")
