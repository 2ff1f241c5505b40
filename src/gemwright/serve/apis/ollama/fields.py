"""The fields of Ollama's requests, and their meaning in the names of OpenAI's chat.

Source: ollama, docs/api.md and api/types.go
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gemwright.errors import RequestError
from gemwright.serve.apis.prepare import Parameters
from gemwright.serve.http import convert, refuse

OPTIONS_WITHOUT_EFFECT = frozenset(
    {"numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only"}
    | {"use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep", "penalize_newline", "repeat_last_n"}
    | {"mirostat_tau", "mirostat_eta", "draft_num_predict"}
)
"""Options that change nothing: the server was started with its own context and devices, no prompt is ever shortened,
and penalties count the whole text."""
WITHOUT_EFFECT = frozenset({"truncate", "shift"})
"""Fields that change nothing, as no prompt is ever shortened."""

REFUSED = {
    "context": "send the conversation to /api/chat.",
    "height": "this server does not generate images.",
    "steps": "this server does not generate images.",
    "template": "leave it out, or send the formatted text as the prompt with raw.",
    "think": "set it to false; the models of this server do not reason.",
    "width": "this server does not generate images.",
}
REFUSED_OPTIONS = {"mirostat": "set it to 0 or leave it out."}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_UNIT_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNLESS_1 = "set it to 1 or leave it out."
REFUSED_OPTIONS_UNLESS_1 = {"tfs_z": _UNLESS_1, "typical_p": _UNLESS_1}


class OllamaOptions(msgspec.Struct, kw_only=True):
    """The options that have an effect. Those not given are the model's own."""

    num_predict: int = -1
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str
    stream: bool = True
    format: str | dict[str, Any] = ""
    options: dict[str, Any] = {}
    keep_alive: float | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def keep_seconds(self) -> float | None:
        """Return the time for which the model stays loaded, as the text or number of `keep_alive` says; None for ever.

        Raises:
            RequestError: It is no duration.
        """
        given = self.keep_alive
        seconds = float(given) if isinstance(given, int | float) else _read_duration(given or "")
        return None if seconds < 0 else seconds


def _read_duration(text: str) -> float:
    """Return the seconds of a duration of Go such as 1h30m or -1s; a number alone is one of seconds."""
    parts = _DURATION_PART.findall(text)
    if not text or "".join(number + unit for number, unit in parts) != text.removeprefix("-"):
        raise RequestError(f"keep_alive is {text!r:.40}, which is no duration such as 5m.", param="keep_alive")
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


class GenerateFields(_Common, kw_only=True):
    """The fields of POST /api/generate that have an effect."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False
    images: list[str] = []


class ToolFunction(msgspec.Struct):
    """A call of a function."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    """A call of a tool."""

    function: ToolFunction
    id: str = ""


class ChatMessage(msgspec.Struct, kw_only=True):
    """A message of a conversation."""

    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatFields(_Common, kw_only=True):
    """The fields of POST /api/chat that have an effect."""

    messages: list[ChatMessage] = []
    tools: list[dict[str, Any]] = []


def read_generate(fields: Mapping[str, Any]) -> GenerateFields:
    """Return the fields of a request.

    Raises:
        RequestError: One is missing, has another type, or asks for what is not supported; `param` has its name.
    """
    return convert(_checked(fields), GenerateFields, WITHOUT_EFFECT)


def read_chat(fields: Mapping[str, Any]) -> ChatFields:
    """Return the fields of a request; errors are those of `read_generate`."""
    return convert(_checked(fields), ChatFields, WITHOUT_EFFECT)


def _checked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    refuse(fields, REFUSED, (False, [], ""))
    if not fields.get("model"):
        raise RequestError("model is required", param="model")
    return fields


def make_parameters(given: Mapping[str, Any]) -> Parameters:
    """Return options as neutral fields.

    Raises:
        RequestError: An option has another type, or is not supported; `param` has its name.
    """
    options = {name: value for name, value in given.items() if value is not None}
    refuse(options, REFUSED_OPTIONS)
    refuse(options, REFUSED_OPTIONS_UNLESS_1, (1.0,))
    found = convert(options, OllamaOptions, OPTIONS_WITHOUT_EFFECT)
    return Parameters(
        max_tokens=found.num_predict if found.num_predict > 0 else None,
        temperature=found.temperature,
        top_k=None if found.top_k is None else max(found.top_k, 0),
        top_p=found.top_p,
        min_p=found.min_p,
        repetition_penalty=found.repeat_penalty,
        presence_penalty=found.presence_penalty,
        frequency_penalty=found.frequency_penalty,
        seed=None if found.seed == -1 else found.seed,
        stop=found.stop or None,
    )


def chat_fields(fields: ChatFields) -> dict[str, Any]:
    """Return a request for an answer as the fields of OpenAI's chat."""
    messages = [_message(message, index) for index, message in enumerate(fields.messages)]
    return _chat(fields, messages, fields.tools)


def generate_as_chat(fields: GenerateFields) -> dict[str, Any]:
    """Return a request to answer a prompt as the fields of OpenAI's chat."""
    system = [{"role": "system", "content": fields.system}] if fields.system else []
    return _chat(fields, [*system, {"role": "user", "content": _content(fields.prompt, fields.images)}], [])


def _chat(fields: _Common, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parameters = make_parameters(fields.options)
    names = [field for field in parameters.__struct_fields__ if getattr(parameters, field) is not None]
    given = {
        **{name: getattr(parameters, name) for name in names},
        "model": fields.model,
        "messages": messages,
        "tools": list(tools) or None,
        "logprobs": fields.logprobs or None,
        "top_logprobs": fields.top_logprobs if fields.logprobs else None,
        "response_format": response_format(fields.format),
    }
    return {name: value for name, value in given.items() if value is not None}


def response_format(given: str | Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a `format` as OpenAI's response format; None for text.

    Raises:
        RequestError: It is another text than "json".
    """
    if not given:
        return None
    if given == "json":
        return {"type": "json_object"}
    if isinstance(given, str):
        raise RequestError(f'format is {given!r:.40}; send "json" or a JSON schema.', param="format")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": given}}


def _message(message: ChatMessage, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": _content(message.content or "", message.images or [])}
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        found["tool_calls"] = [_call(call, f"call_{index}_{number}") for number, call in calls]
        found["content"] = found["content"] or None
    if message.role == "tool":
        found |= {"tool_call_id": message.tool_call_id or ""}
        found |= {"name": message.tool_name} if message.tool_name else {}
    return found


def _call(call: ToolCall, identifier: str) -> dict[str, Any]:
    arguments = msgspec.json.encode(call.function.arguments).decode()
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or identifier, "type": "function", "function": function}


def _content(text: str, images: Sequence[str]) -> str | list[dict[str, Any]]:
    """Return a text after images in base64 as the content of a message."""
    if not images:
        return text
    urls = [f"data:image/png;base64,{image.rpartition(',')[2]}" for image in images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": text}]
