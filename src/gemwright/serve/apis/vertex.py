"""The contract of a Vertex AI prediction container: health and predictions at the routes that its environment names.

An instance is a request to another endpoint, which its "@requestFormat" names by path or as llama-server does
("chatCompletions"), or a request of Text Generation Inference ({"inputs"} or {"messages"}) or of vLLM ({"prompt"}),
whose prediction is the text alone. A body without instances is a raw prediction: it is sent on as it is.

Sources: cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements; llama.cpp,
tools/server/server-http.cpp; text-generation-inference, router/src/vertex.rs
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Message

from gemwright.errors import RequestError
from gemwright.serve.http import JSONResponse, decode_object, error_response, read_body, refuse

MAX_INSTANCES = 128
"""Maximum number of instances of a request."""

_FORMAT = "@requestFormat"
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_DEFAULTS = {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/predict"}
TGI_REFUSED = {
    "adapter_id": "leave it out.",
    "best_of": "use n, and choose among the texts by their log-probabilities.",
    "details": "send the instance as @requestFormat completions.",
    "decoder_input_details": "send the instance as @requestFormat completions.",
    "grammar": "use response_format.",
    "top_n_tokens": "send the instance as @requestFormat completions.",
    "truncate": "shorten the prompt.",
    "typical_p": "leave it out.",
    "watermark": "leave it out.",
}


def routes() -> list[Route]:
    """Return the routes that the environment names; none outside of Vertex AI. Put them first."""
    health, predict = health_path(), _path("AIP_PREDICT_ROUTE")
    if health is None or predict is None:
        return []
    return [Route(health, _health), Route(predict, _predict, methods=["POST"])]


def health_path() -> str | None:
    """Return the path of the health check, which needs no key; None outside of Vertex AI."""
    return _path("AIP_HEALTH_ROUTE")


def _path(name: str) -> str | None:
    """Return a path of the environment, or its default if the environment is that of Vertex AI otherwise."""
    is_vertex = os.environ.get("AIP_MODE") == "PREDICTION" or any(name in os.environ for name in _DEFAULTS)
    return os.environ.get(name) or _DEFAULTS[name] if is_vertex else None


async def _health(request: Request) -> Response:
    """Return 200 when the server is ready and 503 until then."""
    return await _send(request, "GET", "/health", b"")


async def _predict(request: Request) -> Response:
    """Return the predictions of instances, or the reply to a raw prediction."""
    body = await read_body(request)
    fields = decode_object(body)
    if "instances" not in fields:
        return await _send(request, "POST", _raw_path(request, fields), body)
    instances, parameters = fields["instances"], fields.get("parameters", {})
    if not isinstance(instances, list) or not isinstance(parameters, dict):
        raise RequestError("instances must be a list, and parameters an object.", param="instances")
    found = cast(list[Any], instances)
    if len(found) > MAX_INSTANCES:
        raise RequestError(f"There are {len(found)} instances; send at most {MAX_INSTANCES}.", param="instances")
    shared = cast(dict[str, Any], parameters)
    return JSONResponse({"predictions": await asyncio.gather(*(_predict_one(request, one, shared) for one in found))})


def _raw_path(request: Request, fields: Mapping[str, Any]) -> str:
    """Return the path of the endpoint for a raw prediction: that of the request if it is one, else by its fields."""
    if _find(request, "POST", request.url.path) is not None:
        return request.url.path
    if "messages" in fields:
        return _CHAT
    if "prompt" in fields:
        return _COMPLETIONS
    raise RequestError("A prediction needs instances, messages or a prompt.", param="instances")


async def _predict_one(request: Request, instance: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the prediction of an instance: the value of an endpoint, a text, or an object with the error."""
    try:
        if not isinstance(instance, dict):
            raise RequestError("An instance must be a JSON object.", param="instances")
        path, fields, text_only = _translate(request, cast(dict[str, Any], instance), parameters)
        reply = await _send(request, "POST", path, msgspec.json.encode(fields))
        if isinstance(reply, StreamingResponse):
            raise RequestError(f"{path} replies with a stream; send it as a raw prediction.", param=_FORMAT)
        value = msgspec.json.decode(bytes(reply.body)) if reply.body else None
        return _text(value) if text_only and reply.status_code == 200 else value
    except ClientDisconnect:
        raise
    except Exception as error:  # one instance that fails leaves the others as they are
        return msgspec.json.decode(bytes(error_response(error).body))


def _translate(
    request: Request, instance: dict[str, Any], parameters: Mapping[str, Any]
) -> tuple[str, dict[str, Any], bool]:
    """Return the path and body of the request that an instance means, and whether only the text is the prediction.

    Raises:
        RequestError: It is none that this server knows.
    """
    if _FORMAT in instance:
        kind = instance[_FORMAT]
        path = _paths(request).get(kind) if isinstance(kind, str) else None
        if path is None:
            raise RequestError(f"There is no {_FORMAT} {kind!r:.100}; use chatCompletions.", param=_FORMAT)
        return path, {**parameters, **_without(instance, _FORMAT), "stream": False}, False
    if "inputs" in instance:
        own = instance.get("parameters") or {}
        if not isinstance(own, dict):
            raise RequestError("The parameters of an instance must be an object.", param="parameters")
        given = {**parameters, **cast(dict[str, Any], own)}
        return _COMPLETIONS, {**_rename(given), "prompt": instance["inputs"], "stream": False}, True
    for name, path in (("messages", _CHAT), ("prompt", _COMPLETIONS)):
        if name in instance:
            return path, {**parameters, **_without(instance, "raw_response"), "stream": False}, True
    raise RequestError(f"An instance needs {_FORMAT}, messages, prompt or inputs.", param="instances")


def _rename(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of Text Generation Inference as the fields of a completion, which is greedy unless sampled."""
    refuse(parameters, TGI_REFUSED)
    given = {name: value for name, value in parameters.items() if value is not None}
    sample = given.pop("do_sample", None)
    if sample is False:
        given["temperature"] = 0.0
    if given.pop("return_full_text", None):
        given["echo"] = True
    if "max_new_tokens" in given:
        given["max_tokens"] = given.pop("max_new_tokens")
    return given


def _without(instance: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in instance.items() if key != name}


def _text(reply: Any) -> Any:
    """Return the text of a completion or a message, or those of several choices."""
    texts = [choice["message"]["content"] if "message" in choice else choice["text"] for choice in reply["choices"]]
    return texts[0] if len(texts) == 1 else texts


def _paths(request: Request) -> dict[str, str]:
    """Return the paths of all endpoints by path and in camel case: chatCompletions is /v1/chat/completions."""
    paths = [route.path for route in _other_routes(request) if "POST" in (route.methods or ())]
    paths.sort(key=lambda path: not path.startswith("/v1/"))
    names = {path: path for path in paths}
    for path in paths:
        names.setdefault(_camel(path), path)
    return names


def _camel(path: str) -> str:
    first, *rest = path.removeprefix("/v1").replace("-", "/").replace("_", "/").strip("/").split("/")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def _find(request: Request, method: str, path: str) -> tuple[Route, dict[str, Any]] | None:
    """Return the route of another endpoint and the scope of a request to it."""
    scope = {**request.scope, "method": method, "path": path, "raw_path": path.encode(), "root_path": ""}
    for route in _other_routes(request):
        match, found = route.matches(scope)
        if match is Match.FULL:
            return route, {**scope, **found}
    return None


def _other_routes(request: Request) -> list[Route]:
    routes: list[BaseRoute] = request.app.routes
    return [route for route in routes if isinstance(route, Route) and route.endpoint not in (_predict, _health)]


async def _send(request: Request, method: str, path: str, body: bytes) -> Response:
    """Return the reply of another endpoint of this server; it is cancelled when the client leaves."""
    found = _find(request, method, path)
    if found is None:
        raise RequestError(f"There is no endpoint {path}.", status=404, code="not_found")
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return parts.pop() if parts else await request.receive()

    route, scope = found
    return await route.endpoint(Request(scope, receive))
