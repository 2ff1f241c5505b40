"""The fields of OpenAI's responses, and their meaning in the names of its chat.

Source: openai-python, src/openai/types/responses/response_create_params.py
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from gemwright.errors import RequestError
from gemwright.serve.http import convert, refuse

WITHOUT_EFFECT = frozenset(
    {"access_programs", "client_metadata", "max_tool_calls", "moderation", "prompt_cache_key", "prompt_cache_options"}
    | {"prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "stream_options", "user"}
)
"""Fields that change nothing. `reasoning` is among them since the models of this server do not reason, and
`max_tool_calls` since it only counts tools that run on a server."""

_STATE = "nothing is stored; send the whole conversation as input."
REFUSED = {
    "background": "wait for the response, or stream it.",
    "context_management": "leave it out.",
    "conversation": _STATE,
    "previous_response_id": _STATE,
    "prompt": "send the text as instructions and input.",
    "store": "nothing is stored; set it to false.",
}
_LOGPROBS = "message.output_text.logprobs"
_IGNORED_INCLUDES = ("reasoning.encrypted_content",)


class ResponseFields(msgspec.Struct, kw_only=True):
    """The fields of POST /v1/responses that have an effect."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] = []
    stream: bool = False
    text: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    truncation: str = "disabled"
    metadata: dict[str, Any] = {}

    @property
    def logprobs(self) -> bool:
        """Return whether log-probabilities are reported."""
        return _LOGPROBS in self.include


def read_response(fields: Mapping[str, Any]) -> ResponseFields:
    """Return the fields of a request.

    Raises:
        RequestError: One is missing, has another type, or asks for what is not supported; `param` has its name.
    """
    refuse(fields, REFUSED)
    found = convert(fields, ResponseFields, WITHOUT_EFFECT)
    if found.truncation != "disabled":
        raise RequestError("truncation must be disabled: an input is never shortened.", param="truncation")
    for name in found.include:
        if name not in (_LOGPROBS, *_IGNORED_INCLUDES):
            raise RequestError(f"include: {name!r:.60} is not supported.", param="include")
    return found


def to_chat(fields: ResponseFields) -> dict[str, Any]:
    """Return the request as the fields of OpenAI's chat.

    Raises:
        RequestError: An item, a tool or a format is of a kind that is not supported; `param` has the field.
    """
    given = {
        "model": fields.model,
        "messages": [*_instructions(fields.instructions), *_messages(fields.input)],
        "max_tokens": fields.max_output_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "logprobs": True if fields.logprobs else None,
        "top_logprobs": fields.top_logprobs if fields.logprobs else None,
        "tools": [_tool(tool) for tool in fields.tools] or None,
        "tool_choice": _tool_choice(fields.tool_choice),
        "parallel_tool_calls": None if fields.parallel_tool_calls else False,
        "response_format": _response_format(fields.text.get("format")),
    }
    return {name: value for name, value in given.items() if value is not None}


def _instructions(text: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text else []


def _messages(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of an input as messages; calls of tools belong to the answer before them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise RequestError("input has no items; send at least one.", param="input")
    messages = list[dict[str, Any]]()
    for item in given:
        match item:
            case {"type": "function_call", "call_id": str(identifier), "name": str(name), "arguments": str(arguments)}:
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                call = {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
                messages[-1].setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output", "call_id": str(identifier), "output": output}:
                messages.append({"role": "tool", "tool_call_id": identifier, "content": _content(output)})
            case {"type": "reasoning"}:
                pass
            case {"role": str(role), "content": content} if item.get("type", "message") == "message":
                messages.append({"role": role, "content": _content(content)})
            case _:
                kind = f"{item.get('type')!r:.40}"
                raise _refusal("input", f"an item of type {kind} is not supported, or lacks a field")
    return messages


def _content(content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refusal("input", "a content must be a text or a list of parts")
    return [_part(part) for part in cast(list[Any], content)]


def _part(part: Any) -> dict[str, Any]:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": kind}:
            raise _refusal("input", f"a part of type {kind!r:.40} is not supported, or lacks a field")
        case _:
            raise _refusal("input", "a part must be an object with a type")


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    match tool:
        case {"type": "function", "name": str(name)}:
            function: dict[str, Any] = {"name": name}
        case _:
            raise _refusal(
                "tools", f"a tool of type {tool.get('type')!r:.40} is not supported; send functions with names"
            )
    keys = ("description", "parameters", "strict")
    return {"type": "function", "function": function | {key: tool[key] for key in keys if tool.get(key) is not None}}


def _tool_choice(choice: Any) -> Any:
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case _:
            raise _refusal("tool_choice", "it must be none, auto, required, or a function with a name")


def _response_format(given: Any) -> dict[str, Any] | None:
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "schema": schema}:
            own = {key: given[key] for key in ("name", "strict") if given.get(key) is not None}
            return {"type": "json_schema", "json_schema": {"name": "output", **own, "schema": schema}}
        case _:
            raise _refusal("text", "the format must be of type text, json_object, or json_schema with a schema")


def _refusal(param: str, problem: str) -> RequestError:
    return RequestError(f"{param}: {problem}.", code="unsupported_parameter", param=param)
