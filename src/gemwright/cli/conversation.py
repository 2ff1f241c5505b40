"""The conversation of `gemwright chat`, and files of saved conversations."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gemwright.cli import render
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemwright.text.chat import Message

MAX_BYTES = 64 * 2**20
"""Maximum size of a saved conversation in bytes."""


class Attachment(NamedTuple):
    """An image of a message: its file and its pixels [height, width, 3]."""

    path: str
    pixels: "NDArray[np.uint8]"


class Turn(NamedTuple):
    """A message of the user or a reply of the model."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Attachment, ...] = ()


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        system: System prompt, or None.
        turns: Messages and replies in turn.
        images: Images for the next message.
        session: File that is written after every reply, or None.
        file: File that holds an earlier state of the conversation, and may be replaced by a later one.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    images: list[Attachment] = field(default_factory=list)
    session: Path | None = None
    file: Path | None = None

    def messages(self, text: str) -> "list[Message]":
        """Return all messages, followed by a new user message with the attached images."""
        from gemwright.text.chat import Message

        before = [Message("system", self.system)] if self.system else []
        turns = (*self.turns, Turn("user", text, tuple(self.images)))
        return [*before, *(Message(turn.role, turn.text, tuple(i.pixels for i in turn.images)) for turn in turns)]

    def add(self, text: str, reply: str) -> None:
        """Append a user message and the reply to it; write the session."""
        self.turns += [Turn("user", text, tuple(self.images)), Turn("assistant", reply)]
        self.images.clear()
        if self.session is not None:
            self.save(self.session)

    def reset(self) -> None:
        """Remove all turns and images; keep the system prompt."""
        self.turns.clear()
        self.images.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as JSON messages, completely or not at all.

        Raises:
            GemwrightError: The file cannot be written, or exists and is not an earlier state of this conversation.
        """
        from gemwright.checkpoint.files.atomic import replace_file

        if path != self.file and path.exists():
            raise GemwrightError(f"{path} exists; choose another name.")
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            images = {"images": [image.path for image in turn.images]} if turn.images else {}
            messages.append({"role": turn.role, "content": turn.text} | images)
        with replace_file(path) as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False, indent=1).encode())
        self.file = path

    def load(self, path: Path) -> None:
        """Replace the conversation by a saved one.

        Raises:
            GemwrightError: The file or one of its images cannot be read, or it does not hold a conversation.
        """
        self.system, self.turns = _read(path)
        self.images.clear()
        self.file = path


def _read(path: Path) -> tuple[str | None, list[Turn]]:
    """Return the system prompt and the turns in a file: a list of messages, or an object with `messages`."""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise GemwrightError(f"{path} is larger than {render.size(MAX_BYTES)}; load a conversation saved by /save.")
    text = render.read_file(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, "is not JSON") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise _refuse(path, 'has no list of messages, each with "role" and "content"')
    system = _text(messages.pop(0)) or None if messages and messages[0]["role"] == "system" else None
    expected = ["user", "assistant"] * (len(messages) // 2)
    if [message["role"] for message in messages] != expected:
        raise _refuse(path, "does not alternate user and assistant, ending with assistant")
    return system, [Turn(m["role"], _text(m), tuple(map(attach, m.get("images", ())))) for m in messages]


def attach(path: str) -> Attachment:
    """Return an image file as an attachment."""
    from gemwright.images.load import load_image

    return Attachment(str(Path(path).absolute()), load_image(path))


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        and isinstance(message.get("images", []), list)
        and all(isinstance(image, str) for image in message.get("images", []))
    )


def _text(message: Any) -> str:
    """Return the text of a message; half of a surrogate pair, which JSON can hold, becomes U+FFFD."""
    return message["content"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refuse(path: Path, problem: str) -> GemwrightError:
    return GemwrightError(f"{path} {problem}; load a conversation saved by /save or --session.")
