"""The fields of Anthropic's messages, and their meaning in the names of OpenAI's chat.

Source: anthropic-sdk-python, src/anthropic/types/message_create_params.py
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from gemwright.errors import RequestError
from gemwright.serve.http import convert, refuse

WITHOUT_EFFECT = frozenset(
    {"cache_control", "context_management", "diagnostics", "inference_geo", "metadata", "service_tier"}
    | {"speed", "thinking", "user_profile_id", "workspace_id"}
)
"""Fields that change nothing. `thinking` is among them since its budget is a maximum, and these models use none of it;
so is `cache_control`, since every prefix is cached, and an edit by `context_management` that clears thinking, since
thinking of earlier answers is not read anyway."""

REFUSED = {
    "container": "leave it out.",
    "mcp_servers": "call the tools yourself, and send their results.",
}
_CLEAR_THINKING = "clear_thinking_"
_DROPPED = ("thinking", "redacted_thinking")
"""Content of earlier answers that models of this server do not read."""


class InputMessage(msgspec.Struct):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class MessagesFields(msgspec.Struct, kw_only=True):
    """The fields of POST /v1/messages that have an effect."""

    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    model: str | None = None
    system: str | list[dict[str, Any]] = ""
    stop_sequences: list[str] = []
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] = {}
    output_format: dict[str, Any] | None = None


def read_messages(fields: Mapping[str, Any], *, count: bool = False) -> MessagesFields:
    """Return the fields of a request.

    Args:
        fields: The fields.
        count: Whether the request only counts tokens, so that `max_tokens` is not required.

    Raises:
        RequestError: One is missing, has another type, or asks for what is not supported; `param` has its name.
    """
    refuse(fields, REFUSED)
    _check_edits(fields.get("context_management"))
    found = convert(fields, MessagesFields, WITHOUT_EFFECT)
    if found.max_tokens is None and not count:
        raise RequestError("max_tokens: Field required", param="max_tokens")
    return found


def _check_edits(given: Any) -> None:
    match given:
        case None | {"edits": []}:
            return
        case {"edits": [*edits]} if all(str(edit).startswith(_CLEAR_THINKING) for edit in map(_type_of, edits)):
            return
        case _:
            raise RequestError(
                "context_management is not supported, except to clear thinking; send a shorter conversation.",
                code="unsupported_parameter",
                param="context_management",
            )


def _type_of(edit: Any) -> Any:
    return cast(dict[str, Any], edit).get("type") if isinstance(edit, dict) else None


def to_chat(fields: MessagesFields) -> dict[str, Any]:
    """Return the request as the fields of OpenAI's chat.

    Raises:
        RequestError: A message, a tool or a format is of a kind that is not supported; `param` has the field.
    """
    chat: dict[str, Any] = {"messages": [*_system(fields.system), *_messages(fields.messages)]}
    given = {
        "model": fields.model,
        "max_tokens": fields.max_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "stop": fields.stop_sequences or None,
        "tools": [_tool(tool) for tool in fields.tools] or None,
        "response_format": _response_format(fields.output_format or fields.output_config.get("format")),
        **_tool_choice(fields.tool_choice),
    }
    return chat | {name: value for name, value in given.items() if value is not None}


def _system(system: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    texts = [system] if isinstance(system, str) else [_text(block, "system") for block in system]
    text = "\n".join(texts)
    return [{"role": "system", "content": text}] if text else []


def _messages(messages: Sequence[InputMessage]) -> list[dict[str, Any]]:
    return [found for message in messages for found in _message(message)]


def _message(message: InputMessage) -> list[dict[str, Any]]:
    """Return a message as one or several: each result of a tool is a message of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found, parts, calls = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for block in message.content:
        match block.get("type"):
            case "tool_use" if message.role == "assistant":
                calls.append(_call(block))
            case "tool_result" if message.role == "user":
                found += [{"role": "user", "content": parts}] if parts else []
                found.append(_result(block))
                parts = []
            case kind if kind not in _DROPPED:
                parts += _parts(block)
            case _:
                pass
    if calls:
        found.append({"role": "assistant", "content": parts or None, "tool_calls": calls})
    elif parts:
        found.append({"role": message.role, "content": parts})
    return found


def _parts(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a content block as parts of OpenAI's messages."""
    match block:
        case {"type": "text", "text": str(text)}:
            return [{"type": "text", "text": text}]
        case {"type": "image", "source": {"type": "base64", "media_type": str(kind), "data": str(data)}}:
            return [_image(f"data:{kind};base64,{data}")]
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return [_image(url)]
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return [{"type": "text", "text": text}]
        case {"type": "document", "source": {"type": "content", "content": content}}:
            return _content(content)
        case _:
            raise _refusal(block)


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _content(content: Any) -> list[dict[str, Any]]:
    """Return the content of a document or of a tool's result as parts."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = cast(list[Any], content) if isinstance(content, list) else [content]
    return [part for block in blocks for part in _parts(_object(block))]


def _object(block: Any) -> dict[str, Any]:
    if not isinstance(block, dict):
        raise RequestError("messages: a content block must be an object.", param="messages")
    return cast(dict[str, Any], block)


def _refusal(block: Mapping[str, Any]) -> RequestError:
    source = block.get("source")
    kind = f"{block.get('type')!r:.40}"
    if isinstance(source, dict):
        kind += f" with a source of type {cast(dict[str, Any], source).get('type')!r:.40}"
    return RequestError(
        f"messages: a content block of type {kind} is not supported, or lacks a field; send text, images as base64, "
        "tool_use and tool_result.",
        code="unsupported_parameter",
        param="messages",
    )


def _text(block: Mapping[str, Any], param: str) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise RequestError(f"{param}: a block must be of type text and have a text.", param=param)


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    match block:
        case {"id": str(identifier), "name": str(name), "input": dict() as given}:
            arguments = msgspec.json.encode(cast(dict[str, Any], given)).decode()
            function = {"name": name, "arguments": arguments}
            return {"id": identifier, "type": "function", "function": function}
        case _:
            raise RequestError("messages: a tool_use block needs id, name and input.", param="messages")


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a tool; that of one that failed begins with "Error: ", as the models know no other sign."""
    if not isinstance(block.get("tool_use_id"), str):
        raise RequestError("messages: a tool_result block needs a tool_use_id.", param="messages")
    parts = _content(block.get("content", ""))
    if block.get("is_error"):
        parts.insert(0, {"type": "text", "text": "Error: "})
    texts = [part.get("text") for part in parts]
    content: Any = "".join(cast(list[str], texts)) if all(isinstance(text, str) for text in texts) else parts
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool as OpenAI's function.

    Raises:
        RequestError: It is a tool of Anthropic's servers, or lacks a field.
    """
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise RequestError(
            f"tools: {kind!r:.40} is not supported; send tools with name, description and input_schema.",
            code="unsupported_parameter",
            param="tools",
        )
    match tool:
        case {"name": str(name), "input_schema": dict() as schema}:
            function: dict[str, Any] = {"name": name, "parameters": schema}
        case _:
            raise RequestError("tools: a tool needs a name and an input_schema.", param="tools")
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of OpenAI's chat that mean a `tool_choice`."""
    if choice is None:
        return {}
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    match choice:
        case {"type": "auto" | "none" as kind}:
            return {"tool_choice": kind, **parallel}
        case {"type": "any"}:
            return {"tool_choice": "required", **parallel}
        case {"type": "tool", "name": str(name)}:
            return {"tool_choice": {"type": "function", "function": {"name": name}}, **parallel}
        case _:
            raise RequestError(
                "tool_choice: the type must be auto, any, none, or tool with a name.", param="tool_choice"
            )


def _response_format(given: Any) -> dict[str, Any] | None:
    match given:
        case None:
            return None
        case {"type": "json_schema", "schema": dict() as schema}:
            return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
        case _:
            raise RequestError(
                "output_config: the format must be of type json_schema and have a schema.", param="output_config"
            )
