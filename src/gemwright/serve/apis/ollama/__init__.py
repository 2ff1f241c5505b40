"""Ollama's API: POST /api/generate and /api/chat, and what its clients ask about models."""

from starlette.routing import Route

from gemwright.serve.apis.ollama import generation, models
from gemwright.serve.apis.ollama.reply import error_body

ROOT = "/api/"
"""Beginning of the paths."""

__all__ = ["ROOT", "error_body", "routes"]


def routes() -> list[Route]:
    """Return the routes."""
    return [*generation.routes(), *models.routes()]
