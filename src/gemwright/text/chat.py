"""Encode conversations in the chat format of an instruction-tuned model.

Control tokens are ids and content is encoded separately, so a user's text can never open or close a turn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


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


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The format of a conversation.

    Attributes:
        name: Its name in gemwright.
        turn_start, turn_end: Control tokens around every turn.
        user, model: Name of each author, between `turn_start` and a newline.
        template: The format as a Jinja template, for tools that read a Hugging Face folder or a GGUF.
        source: The publication of the format.
    """

    name: str
    turn_start: str
    turn_end: str
    user: str
    model: str
    template: str
    source: str


_TEMPLATE = """\
{{ bos_token }}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{ raise_exception('Roles must alternate user/assistant, starting with user') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('user' if message['role'] == 'user' else 'model') + '\\n' }}
    {{- (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

GEMMA = ChatFormat(
    name="gemma",
    turn_start="<start_of_turn>",
    turn_end="<end_of_turn>",
    user="user",
    model="model",
    template=_TEMPLATE,
    source="Gemma 1, 1.1, 2, CodeGemma 7B and RecurrentGemma: model cards; arXiv:2403.08295 section 5",
)
GEMMA3 = dataclasses.replace(GEMMA, name="gemma3", source="Gemma 3: model cards; arXiv:2503.19786 section 3")

FORMATS = {row.name: row for row in (GEMMA, GEMMA3)}
"""All chat formats by name."""


def render(
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    insertion: Callable[[Any], list[int]] | None = None,
) -> list[int]:
    """Return the ids of a conversation up to the model's next turn, with exactly one BOS, at the front.

    These models have no system role: a system message is put before the first user message, followed by an empty line.
    As in the published templates, whitespace around content is stripped, but not around a system message.

    Args:
        chat_format: The model's format.
        tokenizer: The model's tokenizer.
        messages: An optional system message, then user and assistant in turn, ending with user.
        insertion: Return the ids of an image; None if the model does not accept images.

    Raises:
        GemwrightError: Roles are out of order, the model does not accept images, or the vocabulary lacks the format's
            control tokens.
    """
    system, turns = _split_system(messages)
    start, end = tokenizer.id_of(chat_format.turn_start), tokenizer.id_of(chat_format.turn_end)
    newline = tokenizer.encode("\n")
    ids = [tokenizer.bos_id]
    for message in turns:
        author = chat_format.user if message.role == "user" else chat_format.model
        before, text = f"{author}\n{system}", message.content.strip()
        if message.images and insertion is None:
            raise GemwrightError(
                "This model does not accept images in a conversation; use one that does, such as gemma-3-4b-it."
            )
        images = [token for image in message.images for token in insertion(image)] if insertion else []
        if images:
            turn = [*tokenizer.encode(before), *images, *tokenizer.encode(text)]
        else:
            turn = tokenizer.encode(before + text)
        ids += [start, *turn, end, *newline]
        system = ""
    return [*ids, start, *tokenizer.encode(f"{chat_format.model}\n")]


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> tuple[int, ...]:
    """Return the ids that end the model's turn."""
    return tokenizer.eos_id, tokenizer.id_of(chat_format.turn_end)


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return the text before the first user message, and the turns, after checking their order."""
    has_system = bool(messages) and messages[0].role == "system"
    system = f"{messages[0].content}\n\n" if has_system else ""
    turns = messages[has_system:]
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise GemwrightError(
                f"Message {index + has_system + 1} of the conversation has role {message.role!r} instead of "
                f"{expected!r}: begin with user (a system message may come first) and alternate with assistant."
            )
    if len(turns) % 2 == 0:
        raise GemwrightError("The conversation does not end with a user message: add one for the model to answer.")
    return system, turns
