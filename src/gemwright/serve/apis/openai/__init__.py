"""OpenAI's API, and the endpoints that vLLM and llama-server add to it."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemwright.errors import RequestError
from gemwright.serve.apis.openai import chat, completions, models, tokenize


def routes() -> list[BaseRoute]:
    """Return the routes; as in llama-server, /v1 may be left out, except for /v1/completions."""
    return [
        *_with_and_without_v1("/models", models.list_models, "GET"),
        *_with_and_without_v1("/models/{name:path}", models.show_model, "GET"),
        Route("/v1/completions", completions.complete, methods=["POST"]),
        *_with_and_without_v1("/chat/completions", chat.chat, "POST"),
        *_with_and_without_v1("/chat/completions/input_tokens", chat.count_input_tokens, "POST"),
        *_with_and_without_v1("/embeddings", _refuse_embeddings, "POST"),
        Route("/tokenize", tokenize.tokenize, methods=["POST"]),
        Route("/detokenize", tokenize.detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenize.tokenizer_info),
    ]


def _with_and_without_v1(path: str, answer: Callable[[Request], Awaitable[Response]], method: str) -> list[Route]:
    return [Route(prefix + path, answer, methods=[method]) for prefix in ("/v1", "")]


async def _refuse_embeddings(request: Request) -> Response:
    raise RequestError(
        "Gemma decoders have no embeddings of texts; use a model that was trained for them.",
        status=501,
        code="not_implemented",
    )
