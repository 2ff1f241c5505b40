"""The images of records: beside its other fields, or in the parts of its messages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemwright.data.examples import Chat, Example, Prompted, Text
from gemwright.data.images import read_source
from gemwright.errors import GemwrightError

FIELDS = ("image", "images", "file_name")
"""Fields of a record with its image or images; the last is that of Hugging Face's folders of images."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Ends of the names of images; a `file_name` without one is of something else."""


def find_images(fields: Mapping[str, Any]) -> list[Any]:
    """Return the images beside the fields of a record."""
    given = next((fields[name] for name in FIELDS if fields.get(name) is not None and _may_be(name, fields[name])), [])
    return given if isinstance(given, list) else [given]


def _may_be(name: str, value: Any) -> bool:
    return name != "file_name" or str(value).lower().endswith(SUFFIXES)


def add_images(examples: Sequence[Example], images: Sequence[Any]) -> list[Example]:
    """Return the example of a record with the images beside it, which come before its text unless it says where.

    A text is then learned after its images.
    """
    if len(examples) != 1:
        raise GemwrightError("a record with images has one conversation or prompt; correct the record.")
    match examples[0]:
        case Text(text):
            return [Prompted("", text, images=tuple(images))]
        case Prompted() as prompted:
            return [replace(prompted, images=tuple(images))]
        case Chat() as chat:
            return [chat if chat.images else put_first(chat, images)]


def put_first(chat: Chat, images: Sequence[Any]) -> Chat:
    """Return a conversation with images before the text of its first message of the user."""
    first = next((index for index, message in enumerate(chat.messages) if message["role"] == "user"), None)
    if first is None:
        raise GemwrightError("the images of a conversation belong to a message of the user; correct the record.")
    content = chat.messages[first].get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    message = {**chat.messages[first], "content": [*({"type": "image"} for _ in images), *parts]}
    messages = [*chat.messages[:first], message, *chat.messages[first + 1 :]]
    return replace(chat, messages=messages, images=tuple(images))


def resolve_images(example: Example, folder: Path) -> Example:
    """Return an example whose images are sources."""
    if isinstance(example, Text) or not example.images:
        return example
    return replace(example, images=tuple(read_source(image, folder) for image in example.images))


def fill_images(messages: Sequence[Mapping[str, Any]], images: list[Any]) -> list[dict[str, Any]]:
    """Return messages whose parts with an image name it: a part without one gets the next of those beside them.

    OpenAI's parts `image_url` are images too.
    """
    rest = iter(images)

    def fill(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
            return part
        given = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
        given = next(rest, None) if given is None else given
        return {"type": "image", "image": given}

    def fill_message(message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        return {**message, "content": [fill(part) for part in content]} if isinstance(content, list) else {**message}

    filled = [fill_message(message) for message in messages]
    left = len(list(rest))
    if left and left < len(images):
        raise GemwrightError(f"the record has {len(images)} images, of which its messages use fewer; correct it.")
    return filled
