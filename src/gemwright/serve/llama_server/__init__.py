"""The API of llama.cpp's server: its own completions, infill, and the properties that its clients read."""

from typing import Any

from starlette.routing import Route

from gemwright.errors import RequestError
from gemwright.serve.http import openai_error
from gemwright.serve.llama_server import completion, fim, properties

ROOTS = ("/apply-template", "/completion", "/infill", "/props", "/slots")
"""Beginnings of the paths with this server's errors; /fim/completions has OpenAI's."""


def routes() -> list[Route]:
    """Return the routes."""
    return [*completion.routes(), *fim.routes(), *properties.routes()]


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error: OpenAI's with the status as the code."""
    body = openai_error(error)["error"] | {"code": error.status}
    if error.code == "context_length_exceeded":
        body["type"] = "exceed_context_size_error"
    return {"error": body}
