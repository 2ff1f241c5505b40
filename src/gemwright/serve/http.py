"""Read requests and write replies: JSON bodies with a limit, errors, server-sent events, disconnects."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeAlias, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gemwright.errors import GemwrightError, RequestError
from gemwright.serve.models import ServedModel
from gemwright.serve.settings import Settings

T = TypeVar("T")
ErrorBody: TypeAlias = Callable[[RequestError], Any]
"""A function that returns the body of an error in the format of an API."""

_LOG = logging.getLogger("gemwright.serve")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "unavailable_error",
}
_PLACE = re.compile(r" - at `\$\.?(?:\[\.\.\.\])?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`(?! - at)")
_DONE = b"data: [DONE]\n\n"
_ignored: set[str] = set()


class JSONResponse(Response):
    """A reply in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return a value as JSON."""
        return msgspec.json.encode(content)


def openai_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error as clients of OpenAI's API read it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def to_request_error(error: Exception) -> RequestError:
    """Return an error as one of a request: errors that the user can fix keep their sentence, others hide theirs."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, GemwrightError):
        return RequestError(str(error))
    _LOG.error("A request failed.", exc_info=error)
    return RequestError("The server failed; its log has the reason.", status=500, code="internal_error")


def error_response(error: Exception, body: ErrorBody = openai_error) -> JSONResponse:
    """Return the reply to a request that failed."""
    found = to_request_error(error)
    headers = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
    if found.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(found), found.status, headers)


def settings_of(request: Request) -> Settings:
    """Return the settings of the server."""
    return request.app.state.settings


async def get_model(request: Request, name: str | None) -> ServedModel:
    """Return a model by the name in a request, the first one without a name.

    Raises:
        RequestError: There is no such model (404), or it is being loaded (503).
    """
    return await request.app.state.registry.get(name)


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: It is longer than the limit (413).
    """
    limit = settings_of(request).max_body
    length = request.headers.get("content-length", "")
    parts, size = list[bytes](), int(length) if length.isdecimal() else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                break
    if size > limit:
        raise RequestError(
            f"The body of the request has more than {limit} bytes; send less.", status=413, code="request_too_large"
        )
    return b"".join(parts)


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request, without the fields that are null.

    Raises:
        RequestError: The body is too long, not JSON, or not an object.
    """
    return decode_object(await read_body(request))


def decode_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object without the fields that are null.

    Raises:
        RequestError: The bytes are not JSON, or not an object.
    """
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(f"The body of the request is not valid JSON ({reason}).", code="invalid_json") from error
    if not isinstance(found, dict):
        raise RequestError("The body of the request must be a JSON object.", code="invalid_json")
    return {name: value for name, value in cast(dict[str, Any], found).items() if value is not None}


def convert(fields: Mapping[str, Any], kind: type[T], without_effect: frozenset[str] = frozenset()) -> T:
    """Return the fields of a request as a `msgspec.Struct`; log names that it lacks, once each.

    Args:
        fields: The fields, as `read_json` returns them.
        kind: The struct.
        without_effect: Names of documented fields that change nothing.

    Raises:
        RequestError: A field is missing, of another type or out of range; `param` has its name.
    """
    unknown = fields.keys() - {field.encode_name for field in msgspec.structs.fields(kind)} - without_effect  # type: ignore[arg-type]
    for name in sorted(unknown - _ignored)[:10]:
        if len(_ignored) < 1000:
            _ignored.add(name)
            _LOG.warning("The field %.100r of a request is unknown and has no effect.", name)
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise _name_field(str(error)) from error


def _name_field(problem: str) -> RequestError:
    """Return msgspec's description of a problem as an error that names the field."""
    if missing := _MISSING.match(problem):
        return RequestError(f"{missing[1]} is missing; send it.", code="missing_field", param=missing[1])
    place = _PLACE.search(problem)
    problem = _PLACE.sub("", problem).replace("`", "")
    return RequestError(f"{place[1]}: {problem}." if place else f"{problem}.", param=place[1] if place else None)


def refuse(fields: Mapping[str, Any], refused: Mapping[str, str], neutral: tuple[Any, ...] = (False, [], {})) -> None:
    """Raise if a request has a field that would change its result and is not supported.

    Args:
        fields: The fields, as `read_json` returns them.
        refused: Names of such fields, with advice.
        neutral: Values that ask for nothing.

    Raises:
        RequestError: A field is in `refused`, with a value that is not in `neutral`.
    """
    for name in fields.keys() & refused.keys():
        if fields[name] not in neutral:
            raise RequestError(f"{name} is not supported; {refused[name]}", code="unsupported_parameter", param=name)


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled when the client closes the connection.

    Read the body of the request first.

    Raises:
        ClientDisconnect: The client closed the connection.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """A streaming reply that closes its generator at once when the client leaves, and may send pings."""

    ping_seconds: float | None = None
    stack: AsyncExitStack | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await cast(AsyncGenerator[bytes, None], self.body_iterator).aclose()
            if self.stack is not None:  # a generator that was never started has not left its contexts
                await self.stack.aclose()

    async def stream_response(self, send: Send) -> None:
        pings = asyncio.ensure_future(self._ping(send))
        try:
            await super().stream_response(send)
        finally:
            pings.cancel()

    async def _ping(self, send: Send) -> None:
        """Send comments, so that proxies keep the connection open while nothing else is sent."""
        while self.ping_seconds is not None:
            await asyncio.sleep(self.ping_seconds)
            await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})


def stream_lines(
    chunks: AsyncGenerator[bytes, None], media_type: str, stack: AsyncExitStack | None = None
) -> StreamingResponse:
    """Return a reply that is sent in parts, such as lines of JSON; contexts of `stack` are left at its end."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    response = _Stream(chunks, media_type=media_type, headers=headers)
    response.stack = stack
    return response


def stream_events(
    request: Request,
    events: AsyncGenerator[Any, None],
    stack: AsyncExitStack | None = None,
    *,
    body: ErrorBody = openai_error,
    done: bytes = _DONE,
) -> Response:
    """Return a reply of server-sent events.

    Args:
        request: The request.
        events: Values to send as JSON; a pair of a name and a value is an event with that name.
        stack: Contexts that are left at the end of the reply, such as that of `collect.start`: entered before, an error
            still has its status.
        body: Format of an error that ends the stream.
        done: Sent at the end.
    """
    response = stream_lines(_encode(events, body, done), "text/event-stream", stack)
    cast(_Stream, response).ping_seconds = settings_of(request).ping_seconds
    return response


async def _encode(events: AsyncGenerator[Any, None], body: ErrorBody, done: bytes) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for event in events:
                yield _encode_event(event)
        except Exception as error:  # the status has been sent: the error is part of the stream
            yield _encode_event(body(to_request_error(error)))
        yield done


def _encode_event(event: Any) -> bytes:
    name, value = cast(tuple[str, Any], event) if isinstance(event, tuple) else ("", event)
    prefix = f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + msgspec.json.encode(value) + b"\n\n"
