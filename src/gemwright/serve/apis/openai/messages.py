"""Messages in OpenAI's format."""

from typing import Any

import msgspec

from gemwright.errors import RequestError
from gemwright.serve.apis.conversation import Message, read_image_url

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text, each with the field that has it."""
_IMAGES = ("image_url", "input_image")


class ChatMessage(msgspec.Struct):
    """A message of a request."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


def read_messages(messages: list[ChatMessage]) -> list[Message]:
    """Return messages as `gemwright.serve.apis.conversation` takes them.

    Raises:
        RequestError: A role or the type of a part is unknown, or an image is not a `data:` URL.
    """
    return [_read(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read(message: ChatMessage, place: str) -> Message:
    if message.role not in _ROLES:
        raise RequestError(
            f"{place}.role is {message.role!r:.60}, and it must be one of {', '.join(_ROLES)}.", param=f"{place}.role"
        )
    read: Message = {"role": "tool" if message.role == "function" else message.role}
    if isinstance(message.content, list):
        read["content"] = [_read_part(part, f"{place}.content[{i}]") for i, part in enumerate(message.content)]
    else:
        read["content"] = message.content or ""
    named = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": message.tool_calls}
    return read | {name: value for name, value in named.items() if value}


def _read_part(part: dict[str, Any], place: str) -> Message:
    kind = part.get("type")
    if kind in _TEXTS and isinstance(part.get(_TEXTS[kind]), str):
        return {"type": "text", "text": part[_TEXTS[kind]]}
    if kind in _IMAGES:
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            return {"type": "image", "image": read_image_url(url, f"{place}.image_url")}
    raise RequestError(
        f'{place} must be {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": {{"url": ...}}}}.',
        code="unsupported_content",
        param=place,
    )
