"""The web page: its files, with a strict content security policy, and the facts that it shows about a model."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.errors import RequestError
from gemwright.images.locations import Found, parse
from gemwright.images.masks import MaskDecoder
from gemwright.serve.apis.prepare import infill_markers
from gemwright.serve.http import JSONResponse, convert, get_model, read_json, settings_of
from gemwright.serve.models import ServedModel

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "trusted-types dompurify",  # the sanitizer is the only place where text becomes HTML
        "require-trusted-types-for 'script'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-cache",  # asked for again by ETag, so that page and server always match
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
MAX_OBJECTS: Final = 256
"""Maximum number of objects of a text that are drawn."""
MAX_TEXT: Final = 100_000
"""Maximum length of a text with objects, in characters."""


def routes() -> list[Route]:
    """Return the routes of the page and of what it asks."""
    return [
        Route("/", _file, methods=["GET"]),
        Route("/web/{path:path}", _file, methods=["GET"]),
        Route("/page/model", _model, methods=["GET"]),
        Route("/page/objects", _objects, methods=["POST"]),
    ]


def is_public(path: str) -> bool:
    """Return whether a path is that of a file of the page, which needs neither a key nor a model."""
    return path == "/" or path.startswith("/web/")


@cache
def _read_files() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return the content and the headers of each file, by its path."""
    found: dict[str, tuple[bytes, dict[str, str]]] = {}
    folders = [("", files("gemwright.serve") / "web")]
    for prefix, folder in folders:
        for entry in folder.iterdir():
            path = f"{prefix}{entry.name}"
            kind = _TYPES.get(PurePosixPath(path).suffix)
            if entry.is_dir():
                folders.append((f"{path}/", entry))
            elif kind is not None:
                content = entry.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
                found[path] = content, {**_HEADERS, "Content-Type": kind, "ETag": etag}
    return found


async def _file(request: Request) -> Response:
    path = request.path_params.get("path", "index.html")
    if path not in _read_files():
        raise RequestError(f"There is no file {path[:100]!r} on this page.", status=404)
    content, headers = _read_files()[path]
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


async def _model(request: Request) -> Response:
    return JSONResponse(describe(await get_model(request, request.query_params.get("model"))))


def describe(served: ServedModel) -> dict[str, Any]:
    """Return what the page shows about a model, and what it needs to offer the right controls."""
    model = served.model
    style = None if model.image_prompter is None else model.image_prompter.style
    sampling = asdict(model.defaults)
    del sampling["seed"]  # each request draws its own
    return {
        "name": served.name,
        "context": served.context,
        "tuned": model.tuned,
        "images": style is not None,
        "single_turn": style == "prefix",  # PaliGemma answers one text about one image
        "infill": bool(infill_markers(model.tokenizer)),
        "sampling": sampling,
    }


class _ObjectsRequest(msgspec.Struct):
    text: str
    model: str | None = None


async def _objects(request: Request) -> Response:
    body = convert(await read_json(request), _ObjectsRequest)
    if len(body.text) > MAX_TEXT:
        raise RequestError(f"The text has {len(body.text)} characters; at most {MAX_TEXT} are read.", param="text")
    served = await get_model(request, body.model)
    decoder = settings_of(request).mask_decoder
    return JSONResponse({"objects": await served.run(draw_objects, parse(body.text)[:MAX_OBJECTS], decoder)})


def draw_objects(found: Sequence[Found], decoder: MaskDecoder | None) -> list[dict[str, Any]]:
    """Return objects as the page draws them.

    Args:
        found: The objects.
        decoder: What decodes their masks; without it, they have none.

    Returns:
        For each its label, its box as fractions (top, left, bottom, right), and the mask within the box as a data URL
        of a gray PNG image, or None.
    """
    return [
        {
            "label": one.label,
            "box": (one.box.y_min, one.box.x_min, one.box.y_max, one.box.x_max),
            "mask": None if decoder is None or one.mask_codes is None else _mask(decoder, one.mask_codes),
        }
        for one in found
    ]


def _mask(decoder: MaskDecoder, codes: tuple[int, ...]) -> str:
    from PIL import Image

    values = np.clip((decoder.decode(codes) + 1) * 127.5, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
