"""The models of the server as Ollama describes them, and the endpoints of Ollama that would change them.

Source: ollama, docs/api.md
"""

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

import jax
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from gemwright.errors import RequestError
from gemwright.families import FILL_IN_THE_MIDDLE, find_family
from gemwright.model.config import Attention
from gemwright.model.params import parameter_count
from gemwright.serve.apis.prepare import infill_markers
from gemwright.serve.http import JSONResponse, get_model, read_json
from gemwright.serve.models import ModelSource, ServedModel
from gemwright.text.chat_template import DEFAULT

VERSION = "0.12.6"
"""The version of Ollama whose API this is. Clients read from it what a server can do."""
_LAST_SECOND = 253402300799
_NEVER = "9999-12-31T23:59:59Z"
_UNSUPPORTED = {
    "POST": ("/api/create", "/api/copy", "/api/pull", "/api/push", "/api/embed", "/api/embeddings"),
    "DELETE": ("/api/delete",),
}
_INFILL_TEMPLATE = (
    f"{{{{ if .Suffix }}}}{FILL_IN_THE_MIDDLE.prefix}{{{{ .Prompt }}}}{FILL_IN_THE_MIDDLE.suffix}{{{{ .Suffix }}}}"
    f"{FILL_IN_THE_MIDDLE.middle}{{{{ else }}}}{{{{ .Prompt }}}}{{{{ end }}}}"
)
"""The template of a model that fills in the middle, in Ollama's language. Editors look for `.Suffix` in it."""


def routes() -> list[Route]:
    """Return the routes."""
    unsupported = [Route(path, _unsupported, methods=[kind]) for kind, paths in _UNSUPPORTED.items() for path in paths]
    return [
        _ProgramRoute("/", _running),
        Route("/api/version", _version),
        Route("/api/tags", _tags),
        Route("/api/ps", _processes),
        Route("/api/show", _show, methods=["POST"]),
        *unsupported,
    ]


def find_source(request: Request, name: str) -> ModelSource:
    """Return a model by its name, to which clients add ":latest".

    Raises:
        RequestError: There is no such model (404).
    """
    return request.app.state.registry.find(name.removesuffix(":latest"))


class _ProgramRoute(Route):
    """A route for programs, not for browsers, which have the page of the server there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return no match for a request that accepts HTML."""
        if scope["type"] == "http" and "text/html" in Request(scope).headers.get("accept", ""):
            return Match.NONE, {}
        return super().matches(scope)


async def _running(request: Request) -> Response:
    return Response("Ollama is running", media_type="text/plain")


async def _version(request: Request) -> Response:
    return JSONResponse({"version": VERSION})


async def _tags(request: Request) -> Response:
    return JSONResponse({"models": [describe(source) for source in request.app.state.registry.sources]})


async def _processes(request: Request) -> Response:
    sources: list[ModelSource] = request.app.state.registry.sources
    loaded = [(source, source.served) for source in sources if source.served is not None]
    return JSONResponse({"models": [_process(*pair) for pair in loaded]})


def _process(source: ModelSource, served: ServedModel) -> dict[str, Any]:
    described = describe(source)
    del described["modified_at"]
    in_vram = described["size"] if jax.default_backend() != "cpu" else 0
    expiry = _NEVER
    if source.keep_seconds is not None:
        expiry = _time_text(time.time() + source.used + source.keep_seconds - time.monotonic())
    return {**described, "expires_at": expiry, "size_vram": in_vram, "context_length": served.context}


async def _show(request: Request) -> Response:
    """Return all that is known about a model."""
    fields = await read_json(request)
    name = fields.get("model") or fields.get("name")
    if not isinstance(name, str):
        raise RequestError("model is required", param="model")
    source = find_source(request, name)
    served = await get_model(request, source.name)
    described, model = describe(source), served.model
    template = _INFILL_TEMPLATE if infill_markers(model.tokenizer) else _chat_template(served)
    body = {
        "modelfile": f"FROM {served.name}",
        "parameters": f"num_ctx                        {served.context}",
        "template": template,
        "details": described["details"],
        "model_info": _model_info(served),
        "capabilities": capabilities(served),
        "modified_at": described["modified_at"],
    }
    return JSONResponse(body)


async def _unsupported(request: Request) -> Response:
    raise RequestError(
        f"{request.url.path} is not supported: the models are those that the server was started with, and they have no "
        "embeddings.",
        status=501,
        code="not_implemented",
    )


def describe(source: ModelSource) -> dict[str, Any]:
    """Return a model as a list of models has it; of one that is not loaded, little is known.

    The digest is that of the name, as the weights are not read again.
    """
    served = source.served
    leaves = [] if served is None else jax.tree.leaves(served.model.engine.params)
    return {
        "name": source.name,
        "model": source.name,
        "modified_at": _time_text(0 if served is None else served.created),
        "size": sum(leaf.nbytes for leaf in leaves),
        "digest": hashlib.sha256(source.name.encode()).hexdigest(),
        "details": {"parent_model": "", "format": "gemwright", **({} if served is None else _details(served))},
    }


def _details(served: ServedModel) -> dict[str, Any]:
    engine = served.model.engine
    return {
        "family": _family(served),
        "families": [_family(served)],
        "parameter_size": _count(parameter_count(engine.config)),
        "quantization_level": str(max(jax.tree.leaves(engine.params), key=lambda leaf: leaf.nbytes).dtype),
    }


def _time_text(seconds: float) -> str:
    """Return a time in seconds since 1970 as Ollama writes it, at most that of `_NEVER`."""
    seconds = min(seconds, _LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def capabilities(served: ServedModel) -> list[str]:
    """Return what a model can do, in Ollama's words."""
    model = served.model
    vision = ["vision"] if model.image_prompter is not None else []
    insert = ["insert"] if infill_markers(model.tokenizer) else []
    return ["completion", *vision, *(["tools"] if model.tuned else []), *insert]


def _family(served: ServedModel) -> str:
    family = find_family(served.model.engine.config)
    return family.gguf or family.name


def _chat_template(served: ServedModel) -> str:
    sources = served.model.chat_template.sources
    return sources.get(DEFAULT) or next(iter(sources.values()))


def _count(parameters: int) -> str:
    """Return a number of parameters in a few characters, such as 268.1M."""
    billions = parameters / 1e9
    return f"{billions:.1f}B" if billions >= 1 else f"{parameters / 1e6:.2f}M"


def _model_info(served: ServedModel) -> dict[str, Any]:
    """Return the sizes of a model under the keys of GGUF."""
    config, name = served.model.engine.config, _family(served)
    attention = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)), None)
    heads = {"head_count": attention.heads, "head_count_kv": attention.kv_heads} if attention else {}
    return {
        "general.architecture": name,
        "general.basename": served.name,
        "general.parameter_count": parameter_count(config),
        f"{name}.context_length": served.context,
        f"{name}.embedding_length": config.width,
        f"{name}.block_count": len(config.layers),
        **{f"{name}.attention.{key}": value for key, value in heads.items()},
        "tokenizer.ggml.bos_token_id": served.model.tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": served.model.tokenizer.eos_id,
    }
