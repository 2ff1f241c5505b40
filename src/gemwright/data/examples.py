"""What is learned of a record: a text, a prompt with its completion, or a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gemwright.data.images import Source

Form: TypeAlias = Literal["text", "prompted", "chat"]


@dataclass(frozen=True)
class Text:
    """A text that is learned as a whole."""

    text: str


@dataclass(frozen=True)
class Prompted:
    """A prompt, after its images, and its completion, of which the completion is learned."""

    prompt: str
    completion: str
    system: str = ""
    images: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Attributes:
        messages: Its messages, as `gemwright.text.chat.read_messages` returns them.
        learned: Whether each message is learned; only those of the model can be.
        tools: Functions that the model may call.
        images: The images of all messages in order.
    """

    messages: Sequence[Mapping[str, Any]]
    learned: tuple[bool, ...]
    tools: Sequence[Mapping[str, Any]] | None = None
    images: tuple[Source, ...] = ()


Example: TypeAlias = Text | Prompted | Chat


def form(example: Example) -> Form:
    """Return how an example is encoded."""
    return "text" if isinstance(example, Text) else "prompted" if isinstance(example, Prompted) else "chat"
