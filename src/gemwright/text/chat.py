"""Messages of a conversation, and the chat formats of the families.

`gemwright.text.chat_template` encodes conversations, with the checkpoint's own template or that of its family.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

from gemwright.errors import GemwrightError


class RefusedError(GemwrightError):
    """A chat template refuses a conversation, as those without a system role do."""


Role = Literal["system", "developer", "user", "assistant", "model", "tool"]


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Its author.
        content: Its text.
        images: Images of a user that come before the text, of any kind that `gemwright.images.load` reads.
    """

    role: Role
    content: str
    images: tuple[Any, ...] = ()


Conversation: TypeAlias = Sequence[Message | Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The format of a conversation for models whose checkpoint has no chat template.

    Attributes:
        name: Its name in gemwright.
        turn_start, turn_end: Control tokens around every turn.
        template: The format as a Jinja template.
        source: The publication of the format.
    """

    name: str
    turn_start: str
    turn_end: str
    template: str
    source: str


# These models have no system role: a system message is put before the first user message, followed by an empty line.
# As in the published templates, whitespace around content is stripped, but not around a system message.
_TEMPLATE = """\
{{ bos_token }}
{%- set system, turns = '', messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set content, turns = messages[0]['content'], messages[1:] -%}
    {%- set system = (content if content is string else content[0]['text']) + '\\n\\n' -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set expected = 'user' if loop.index0 % 2 == 0 else 'assistant' -%}
    {%- if message['role'] != expected -%}
        {%- set place = loop.index + (messages | length) - (turns | length) -%}
        {{ raise_exception("Message " ~ place ~ " of the conversation has role '" ~ message['role'] ~ "' instead of '"
            ~ expected ~ "': begin with user (a system message may come first) and alternate with assistant") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('user' if expected == 'user' else 'model') + '\\n' + (system if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if (turns | length) % 2 == 0 -%}
        {{ raise_exception("The conversation does not end with a user message: add one for the model to answer") }}
    {%- endif -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

GEMMA = ChatFormat(
    name="gemma",
    turn_start="<start_of_turn>",
    turn_end="<end_of_turn>",
    template=_TEMPLATE,
    source="Gemma 1, 1.1, 2, CodeGemma 7B and RecurrentGemma: model cards; arXiv:2403.08295 section 5",
)
GEMMA3 = dataclasses.replace(GEMMA, name="gemma3", source="Gemma 3: model cards; arXiv:2503.19786 section 3")

FORMATS = {row.name: row for row in (GEMMA, GEMMA3)}
"""All chat formats by name."""

_ROLES = ("system", "developer", "user", "assistant", "model", "tool")
_IMAGE_KEYS = ("image", "url", "path")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. Templates read the first, as in transformers; some read the second."""


def read_messages(messages: Conversation) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages as a chat template reads them, and the images of all messages in order.

    The content of a message with images is a list of parts. A value of None counts as absent, and the role `model` as
    `assistant`.

    Raises:
        GemwrightError: A message has no known role, no content, or a part that is neither text nor an image.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise GemwrightError('A conversation is a list of messages, such as [{"role": "user", "content": "Hello"}].')
    images: list[Any] = []
    return [_read_message(message, images) for message in messages], images


def _read_message(message: Message | Mapping[str, Any], images: list[Any]) -> dict[str, Any]:
    """Return a message as a template reads it, and add its images to those of the conversation."""
    if isinstance(message, Message):
        message = {"role": message.role, "content": message.content, "images": message.images}
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise GemwrightError(f'A message needs a "role" ({", ".join(_ROLES)}) and its text as "content".')
    read = {key: value for key, value in message.items() if value is not None and key != "images"}
    read["role"] = "assistant" if read["role"] == "model" else read["role"]
    own = message.get("images") or ()
    if isinstance(own, str | bytes) or not isinstance(own, Sequence):
        raise GemwrightError("images must be a list of images; put the image into a list.")
    if not isinstance(read.get("content"), str | list | tuple) and not (
        read.get("tool_calls") and "content" not in read
    ):
        raise GemwrightError('A message needs its "content": text, or a list of parts of type text or image.')
    if own or isinstance(read.get("content"), list | tuple):
        read["content"] = _read_parts(read.get("content", ""), list(own), images)
    reasoning = next((read[key] for key in _REASONING if key in read), None)
    return read if reasoning is None else {"thinking": reasoning, **read, "reasoning_content": reasoning}


def _read_parts(content: str | Sequence[Any], own: list[Any], images: list[Any]) -> list[dict[str, Any]]:
    """Return the parts of a content. Images that no part mentions come before it."""
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts: list[dict[str, Any]] = []
    found: list[Any] = []
    for part in given:
        match part:
            case {"type": "text", "text": str()}:
                parts.append(dict(cast(Mapping[str, Any], part)))
            case {"type": "image"}:
                source = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
                if source is None and not own:
                    raise GemwrightError('An image of a message has no file; give its path or pixels as "image".')
                found.append(own.pop(0) if source is None else source)
                parts.append({"type": "image"})
            case _:
                raise GemwrightError(
                    'A part of a message must be {"type": "text", "text": ...} or {"type": "image", "image": ...}.'
                )
    images += [*own, *found]
    return [*({"type": "image"} for _ in own), *parts]
