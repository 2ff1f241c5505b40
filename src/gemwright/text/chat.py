"""Conversations as ids, in the format that an instruction-tuned model was trained on.

Markers are ids and content is encoded apart from them: nothing that a user writes can open or close a turn.
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
        role: Who says it.
        content: What is said.
        images: Pictures that go before the text, of a user: anything that `gemwright.images.load` reads.
    """

    role: Role
    content: str
    images: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a model marks the turns of a conversation.

    Attributes:
        name: what the format is called here.
        turn_start, turn_end: control pieces around every turn.
        user, model: what stands after `turn_start`, before a newline, for each of the two speakers.
        template: the same as jinja source, for tools that read a Hugging Face folder or a GGUF.
        source: where the format is defined.
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
"""Every chat format, by name."""


def render(
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    insertion: Callable[[Any], list[int]] | None = None,
) -> list[int]:
    """Ids of a conversation up to the point where the model speaks next; exactly one BOS stands at the front.

    None of these models has a system role: a first system message goes before the first user message, with
    an empty line between. Content is stripped of surrounding whitespace, but a system message is not, as in
    the templates that the models came with.

    Args:
        chat_format: the model's format.
        tokenizer: the model's tokenizer.
        messages: an optional system message, then user and assistant in turn, ending with user.
        insertion: the ids that stand for a picture; None where the model sees none.

    Raises:
        GemwrightError: roles are out of order, a model that sees none is given a picture, or the vocabulary lacks the
            format's markers.
    """
    system, turns = _split_system(messages)
    start, end = tokenizer.id_of(chat_format.turn_start), tokenizer.id_of(chat_format.turn_end)
    newline = tokenizer.encode("\n")
    ids = [tokenizer.bos_id]
    for message in turns:
        speaker = chat_format.user if message.role == "user" else chat_format.model
        before, text = f"{speaker}\n{system}", message.content.strip()
        if message.images and insertion is None:
            raise GemwrightError("This model sees no pictures; take one that does, such as gemma-3-4b-it.")
        pictures = [token for image in message.images for token in insertion(image)] if insertion else []
        if pictures:
            said = [*tokenizer.encode(before), *pictures, *tokenizer.encode(text)]
        else:
            said = tokenizer.encode(before + text)
        ids += [start, *said, end, *newline]
        system = ""
    return [*ids, start, *tokenizer.encode(f"{chat_format.model}\n")]


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> tuple[int, ...]:
    """Ids that end the model's turn."""
    return tokenizer.eos_id, tokenizer.id_of(chat_format.turn_end)


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """What goes before the first user message, and the turns, whose order is checked."""
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
