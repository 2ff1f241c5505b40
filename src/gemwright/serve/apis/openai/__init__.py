"""OpenAI's API, and the endpoints that vLLM and llama-server add to it."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemwright.errors import RequestError
from gemwright.serve.apis.openai import chat, completions, models, tokenize


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        Route("/v1/models", models.list_models),
        Route("/v1/models/{name:path}", models.show_model),
        Route("/v1/completions", completions.complete, methods=["POST"]),
        Route("/v1/chat/completions", chat.chat, methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", chat.count_input_tokens, methods=["POST"]),
        Route("/v1/embeddings", _refuse_embeddings, methods=["POST"]),
        Route("/tokenize", tokenize.tokenize, methods=["POST"]),
        Route("/detokenize", tokenize.detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenize.tokenizer_info),
    ]


async def _refuse_embeddings(request: Request) -> Response:
    raise RequestError(
        "Gemma decoders have no embeddings of texts; use a model that was trained for them.",
        status=501,
        code="not_implemented",
    )
