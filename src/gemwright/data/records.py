"""Recognize the kind of records, and read each as texts, prompts with completions, or conversations.

The kinds are a table, `KINDS`. Values of None count as absent, and fields that a kind does not name are ignored.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from gemwright.data.examples import Chat, Example, Form, Prompted, Text, form
from gemwright.data.record_images import FIELDS, add_images, fill_images, find_images, put_first, resolve_images
from gemwright.data.sources import Record
from gemwright.errors import DataError, GemwrightError
from gemwright.text.chat import read_messages
from gemwright.text.protected_template import MAX_DEPTH

__all__ = ["KINDS", "Chat", "Example", "Form", "Prompted", "Text", "check_text", "find_kind", "form", "read_examples"]

MAX_MESSAGES = 1000
"""Maximum number of messages of a conversation, and of conversations of a record."""
Fields: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        name: Its name in messages.
        required: Fields that a record of the kind has, each with its alternative names.
        read: Returns the examples of a record.
    """

    name: str
    required: tuple[tuple[str, ...], ...]
    read: Callable[[Fields], Sequence[Example]]

    def fits(self, fields: Fields) -> bool:
        """Return whether a record has the fields of this kind."""
        return all(any(fields.get(name) is not None for name in names) for names in self.required)


def find_kind(record: Record) -> Kind:
    """Return the kind of a record.

    Raises:
        DataError: It is of no kind.
    """
    kind = next((kind for kind in KINDS if kind.fits(record.fields)), None)
    if kind is None:
        present = [str(name) for name, value in record.fields.items() if value is not None]
        names = ", ".join(present[:10]).encode(errors="backslashreplace").decode() or "no field"
        known = "; ".join(" and ".join("/".join(names) for names in kind.required) for kind in KINDS)
        header = ", the names in the first line" if record.place.path.suffix.lower() in (".csv", ".tsv") else ""
        raise record.place.error(
            f"the kind of record is not recognized (it has {names:.200}{header}); use one of: {known}."
        )
    return kind


def read_examples(kind: Kind, record: Record, chat: bool) -> Sequence[Example]:
    """Return the examples of a record.

    Args:
        kind: Its kind.
        record: The record.
        chat: Whether a prompt and its completion are a conversation.

    Raises:
        DataError: A field has another type or text that is not valid.
    """
    try:
        examples = list(kind.read(record.fields))
        if images := find_images(record.fields):
            examples = add_images(examples, images)
        examples = [_as_chat(example) if chat and isinstance(example, Prompted) else example for example in examples]
        return [resolve_images(example, record.place.path.parent) for example in examples]
    except DataError:
        raise
    except GemwrightError as error:
        raise record.place.error(str(error)) from error


def check_text(text: Any, name: str) -> str:
    """Return a text of a record.

    Raises:
        GemwrightError: It is not a string, or has a NUL or half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise GemwrightError(f'"{name}" must be a string, not {type(text).__name__}; correct the record.')
    if "\0" in text:
        raise GemwrightError(f'"{name}" has a NUL character; remove it from the record.')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GemwrightError(f'"{name}" has half of a surrogate pair; correct the record.') from None
    return text


def _field(fields: Fields, *names: str) -> str:
    """Return the text of the first field that is present, else nothing."""
    name = next((name for name in names if fields.get(name) is not None), None)
    return "" if name is None else check_text(fields[name], name)


def _system(fields: Fields) -> str:
    return _field(fields, "system", "system_prompt")


def _leading(fields: Fields) -> list[dict[str, str]]:
    """Return the messages before a list of messages: that of the system, if the record has one."""
    system = _system(fields)
    return [{"role": "system", "content": system}] if system else []


def _list(value: Any, name: str) -> list[Any]:
    """Return a list of mappings."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise GemwrightError(f'"{name}" must be a list of objects; correct the record.')
    return value


def _as_chat(example: Prompted) -> Chat:
    chat = _talk([("system", example.system), ("user", example.prompt), ("assistant", example.completion)])
    return put_first(chat, example.images) if example.images else chat


def _talk(turns: Sequence[tuple[str, str]]) -> Chat:
    """Return a conversation of roles and texts, less an empty system message."""
    kept = [{"role": role, "content": text} for role, text in turns if text or role != "system"]
    return _chat(kept)


def _chat(
    messages: Sequence[Mapping[str, Any]], learned: Sequence[bool] | None = None, tools: Any = None, start: int = 0
) -> Chat:
    """Return a conversation, with the model's messages from `start` on learned unless they say otherwise."""
    if len(messages) > MAX_MESSAGES:
        raise GemwrightError(f"the conversation has more than {MAX_MESSAGES:,} messages; split it.")
    for message in messages:
        _check_strings(message)
        if message.get("tool_calls") is not None:
            _list(message["tool_calls"], "tool_calls")
        if message.get("function_call") is not None:
            raise GemwrightError('"function_call" is not supported; write the call as a list "tool_calls".')
    read, images = read_messages(cast(Any, messages))
    given = [True] * len(read) if learned is None else learned
    flags = [
        index >= start and flag and message["role"] == "assistant" and not _is_empty(message)
        for index, (message, flag) in enumerate(zip(read, given, strict=True))
    ]
    return Chat(read, tuple(flags), None if tools is None else _list(tools, "tools") or None, tuple(images))


def _check_strings(value: Any, depth: int = 0) -> None:
    """Check all texts of a message, and its depth."""
    if depth > MAX_DEPTH:
        raise GemwrightError(f"a message is nested more than {MAX_DEPTH} levels deep; correct the record.")
    if isinstance(value, str):
        check_text(value, "content")
    elif isinstance(value, Mapping | list):
        for item in [*value.keys(), *value.values()] if isinstance(value, Mapping) else value:
            _check_strings(item, depth + 1)


def _is_empty(message: Mapping[str, Any]) -> bool:
    """Return whether there is nothing to learn in a message of the model."""
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])
    return not (text.strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _read_messages(fields: Fields) -> list[Example]:
    messages = _list(fields["messages"], "messages")
    leading = _leading(fields)
    weights = [1 if message.get("weight") is None else message["weight"] for message in messages]
    if any(isinstance(weight, list | dict) or weight not in (0, 1) for weight in weights):
        raise GemwrightError('"weight" of a message must be 0 or 1; correct the record.')
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    plain = fill_images(plain, find_images(fields))
    return [_chat(leading + plain, [True] * len(leading) + [bool(weight) for weight in weights], fields.get("tools"))]


_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
"""Roles by their names in other formats."""


def _role(name: Any) -> str:
    if not isinstance(name, str) or name not in _ROLES:
        raise GemwrightError(f"the author of a message is {name!r:.40}; use one of {', '.join(_ROLES)}.")
    return _ROLES[name]


def _read_conversations(fields: Fields) -> list[Example]:
    """Read the format of ShareGPT: `from` and `value`, or `role` and `content`."""
    turns = [
        (_role(turn.get("from", turn.get("role"))), check_text(turn.get("value", turn.get("content")), "value"))
        for turn in _list(fields["conversations"], "conversations")
    ]
    return [_talk([("system", _system(fields)), *turns])]


def _read_prompted(fields: Fields) -> list[Example]:
    name = "response" if fields.get("completion") is None else "completion"
    prompt, completion = fields["prompt"], fields[name]
    if isinstance(prompt, list) or isinstance(completion, list):
        before, after = _leading(fields) + _list(prompt, "prompt"), _list(completion, name)
        return [_chat([*before, *after], tools=fields.get("tools"), start=len(before))]
    return [Prompted(check_text(prompt, "prompt"), check_text(completion, name), _system(fields))]


def _read_prefix(fields: Fields) -> list[Example]:
    """Read the format of PaliGemma."""
    return [Prompted(check_text(fields["prefix"], "prefix"), check_text(fields["suffix"], "suffix"))]


def _instruct(fields: Fields, given: str, answer: str) -> Chat:
    """Return an instruction, its input after an empty line, and the answer."""
    instruction = _field(fields, "instruction", "question")
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    return _talk([("system", _system(fields)), ("user", asked), ("assistant", answer)])


def _read_instruction(fields: Fields) -> list[Example]:
    return [_instruct(fields, _field(fields, "input", "context"), _field(fields, "output", "response", "answer"))]


def _read_instances(fields: Fields) -> list[Example]:
    return [
        _instruct(fields, _field(instance, "input"), _field(instance, "output"))
        for instance in _list(fields["instances"], "instances")
    ]


def _read_tree(fields: Fields) -> list[Example]:
    """Read a message tree of OpenAssistant: every question of the user, with the best-ranked answers.

    Each path from the root to a last answer is a conversation. An answer that several have is learned in the first.
    """
    examples: list[Example] = []
    seen: set[int] = set()
    for path in _paths(fields["prompt"]):
        turns = [(_role(node.get("role")), check_text(node.get("text"), "text")) for node in path]
        if len(examples) == MAX_MESSAGES:
            raise GemwrightError(f"the tree has more than {MAX_MESSAGES:,} conversations; split it.")
        learned = [id(node) not in seen for node in path]
        seen |= {id(node) for node in path}
        examples.append(_chat([{"role": role, "content": text} for role, text in turns], learned))
    return examples


def _paths(root: Any) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the paths of a message tree that end with an answer."""
    pending: list[list[Mapping[str, Any]]] = [_list([root], "prompt")]
    while pending:
        path = pending.pop()
        replies = _replies(path[-1])
        if _role(path[-1].get("role")) == "user":
            pending += [[*path, reply] for reply in sorted(replies, key=_rank)[:1]]
        elif answered := [reply for reply in replies if _replies(reply)]:
            pending += [[*path, reply] for reply in reversed(answered)]
        else:
            yield path


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the replies to a message that were not deleted or rejected in review."""
    replies = _list(node.get("replies") or [], "replies")
    return [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else math.inf


def _read_plain(fields: Fields) -> list[Example]:
    return [Text(check_text(fields["text"], "text"))]


KINDS = (
    Kind("messages", (("messages",),), _read_messages),
    Kind("conversations", (("conversations",),), _read_conversations),
    Kind("message tree", (("message_tree_id",), ("prompt",)), _read_tree),
    Kind("image, prefix and suffix", (FIELDS, ("prefix",), ("suffix",)), _read_prefix),
    Kind("prompt and completion", (("prompt",), ("completion", "response")), _read_prompted),
    Kind("instances", (("instruction",), ("instances",)), _read_instances),
    Kind("instruction", (("instruction",), ("output", "response")), _read_instruction),
    Kind("question and answer", (("question",), ("answer", "response")), _read_instruction),
    Kind("text", (("text",),), _read_plain),
)
"""All kinds of records; a record is of the first whose fields it has."""
