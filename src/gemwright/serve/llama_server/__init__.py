"""The API of llama.cpp's server: its own completions, infill, and the properties that its clients read."""

from starlette.routing import Route

from gemwright.serve.llama_server import completion, fim, properties


def routes() -> list[Route]:
    """Return the routes."""
    return [*completion.routes(), *fim.routes(), *properties.routes()]
