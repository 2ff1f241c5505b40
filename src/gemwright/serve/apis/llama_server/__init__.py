"""The API of llama.cpp's server: its own completions, infill, and the properties that its clients read."""

from starlette.routing import Route

from gemwright.serve.apis.llama_server import completion, fim, properties
from gemwright.serve.apis.llama_server.replies import error_body

__all__ = ["ROOTS", "error_body", "routes"]

ROOTS = ("/apply-template", "/completion", "/infill", "/props", "/slots")
"""Beginnings of the paths with this server's errors; /fim/completions has OpenAI's."""


def routes() -> list[Route]:
    """Return the routes."""
    return [*completion.routes(), *fim.routes(), *properties.routes()]
