"""From the messages of any API to the prompt of a conversation.

Messages are those of `gemwright.Model.chat`: mappings with "role", "content" (text, or a list of parts of type text or
image, with the image's file as bytes) and optional "tool_calls".
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gemwright.api import Model
from gemwright.errors import RequestError
from gemwright.generate.prompts import Ids, Prompt
from gemwright.images.load import count_pixels
from gemwright.serve.models import ServedModel
from gemwright.serve.settings import Settings

Message = dict[str, Any]
_SYSTEM = ("system", "developer")
_ANSWERS = ("assistant", "model")


async def encode_messages(
    served: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    settings: Settings,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Ids | Prompt:
    """Return the prompt of a conversation; a last message of the assistant is continued.

    Args:
        served: The model.
        messages: The messages.
        settings: Limits of images.
        tools: Functions, for a chat template that describes them.
        variables: Variables of the chat template.

    Raises:
        RequestError: There are no messages, or too many or too large images.
        GemwrightError: The chat template refuses the conversation, or an image cannot be read.
    """
    return await served.run(_encode, served.model, messages, settings, tools, variables)


def _encode(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    settings: Settings,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any] | None,
) -> Ids | Prompt:
    if not messages:
        raise RequestError("messages is empty; send at least one message.", param="messages")
    _check_images(messages, settings)
    if model.image_prompter is not None and model.image_prompter.style == "prefix":
        return _encode_single(model, messages)
    folded = fold(messages, keeps_tools=_knows_tools(model))
    answer = ""
    if folded[-1]["role"] == "assistant" and not folded[-1].get("tool_calls"):
        answer = _text_of(folded.pop())
    return model.prepare_chat(folded, tools, variables, answer=answer)


def _encode_single(model: Model, messages: Sequence[Mapping[str, Any]]) -> Ids | Prompt:
    """Return the prompt of a PaliGemma, which has no conversations: the images and the text of one message."""
    if len(messages) > 1:
        raise RequestError(
            f"{model.name} answers one message, without a conversation; send the last message only.", param="messages"
        )
    images = [part["image"] for part in _parts_of(messages[0]) if part["type"] == "image"]
    return model.prepare(_text_of(messages[0]), images)


def _knows_tools(model: Model) -> bool:
    return any("tool" in source for source in model.chat_template.sources.values())


def fold(messages: Sequence[Mapping[str, Any]], *, keeps_tools: bool) -> list[Message]:
    """Return a conversation as chat templates take it: after a system message, user and assistant alternate.

    Neighboring messages of one role are joined by an empty line, a later system message becomes part of the user's next
    message, and an empty message of the user comes before an assistant that begins.

    Args:
        messages: Messages with any order of roles.
        keeps_tools: Whether the template takes calls and results of tools; results are the user's messages otherwise.
    """
    folded: list[Message] = []
    for given in messages:
        message = {**given, "content": given.get("content", "")}
        role = message["role"] = "assistant" if given["role"] == "model" else given["role"]
        if (role in _SYSTEM and folded and folded[-1]["role"] not in _SYSTEM) or (role == "tool" and not keeps_tools):
            message = {"role": "user", "content": message["content"]}
        if role == "assistant" and (not folded or folded[-1]["role"] in _SYSTEM):
            folded.append({"role": "user", "content": ""})
        last = folded[-1] if folded else None
        if last is not None and _may_join(last, message):
            last["content"] = _join(last["content"], message["content"])
        else:
            folded.append(message)
    if folded[-1]["role"] in _SYSTEM:
        folded[-1]["role"] = "user"
    return folded


def _may_join(first: Message, second: Message) -> bool:
    roles = first["role"], second["role"]
    same = roles[0] == roles[1] or (roles[0] in _SYSTEM and roles[1] in _SYSTEM)
    return same and roles[0] != "tool" and not (first.get("tool_calls") or second.get("tool_calls"))


def _join(first: Any, second: Any) -> Any:
    """Return two contents as one; texts that meet are separated by an empty line."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}" if first and second else first + second
    parts, others = _parts(first), _parts(second)
    if parts and others and parts[-1]["type"] == others[0]["type"] == "text":
        text = _join(parts[-1]["text"], others[0]["text"])
        return [*parts[:-1], {"type": "text", "text": text}, *others[1:]]
    return [*parts, *others]


def _parts(content: Any) -> list[Message]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(cast(Sequence[Message], content))


def _parts_of(message: Mapping[str, Any]) -> list[Message]:
    return _parts(message.get("content", ""))


def find_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of a conversation that a shield judges, the last of them that which is answered.

    Earlier answers are left out: they were judged when they were written. The beginning of the next answer, which a
    last message of the assistant gives, follows the message before it.
    """
    texts = [_text_of(message) for message in messages if message["role"] not in _ANSWERS]
    if messages[-1]["role"] in _ANSWERS:
        texts[-1:] = ["\n".join([*texts[-1:], _text_of(messages[-1])])]
    return texts


def _text_of(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in _parts_of(message) if part["type"] == "text")


def read_image_url(url: str, param: str) -> bytes:
    """Return the file in a `data:` URL.

    Raises:
        RequestError: It is another URL, as nothing is fetched, or not Base64.
    """
    if url[:5].lower() != "data:":
        raise RequestError(
            "The server fetches no images; send the image as data:image/png;base64,... .",
            code="unsupported_image_url",
            param=param,
        )
    header, comma, content = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RequestError("An image must be encoded as data:image/png;base64,... .", code="invalid_image", param=param)
    return read_base64(content, param)


def read_base64(content: str, param: str) -> bytes:
    """Return the bytes of a Base64 text.

    Raises:
        RequestError: It is not Base64.
    """
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"An image is not valid Base64 ({error}); encode its file again."
        raise RequestError(message, code="invalid_image", param=param) from error


def _check_images(messages: Sequence[Mapping[str, Any]], settings: Settings) -> None:
    """Check the number of images and their sizes, by their headers."""
    images = [part["image"] for message in messages for part in _parts_of(message) if part["type"] == "image"]
    images += [image for message in messages for image in message.get("images", ())]
    if len(images) > settings.max_images:
        raise RequestError(
            f"The request has {len(images)} images, and at most {settings.max_images} are allowed.",
            code="too_many_images",
            param="messages",
        )
    if sum(map(count_pixels, images)) > settings.max_pixels:
        raise RequestError(
            f"The images of the request have over {settings.max_pixels / 1e6:g} megapixels; reduce their size.",
            code="image_too_large",
            param="messages",
        )
