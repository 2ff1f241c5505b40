"""The texts and conversations of a call of `gemwright.Model`: one, or a batch of several.

This module must not import JAX.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, TypeGuard

from gemwright.errors import GemwrightError
from gemwright.text.chat import Conversation, Message

Text: TypeAlias = str | Sequence[int]
"""A text, or its token ids, to which no BOS is added."""


def parse_texts(given: Any) -> tuple[list[Text], bool]:
    """Return the given text or texts as a list, and whether it is one text that is not in a list.

    Ids may be integers of NumPy, and a list may be an array.

    Raises:
        GemwrightError: It is neither a text, nor ids, nor a list of them.
    """
    given = _as_list(given)
    if isinstance(given, str) or (given and _are_ids(given)):
        return [_text(given)], True
    return [_text(_as_list(item)) for item in given], False


def parse_conversations(given: Any) -> tuple[list[Conversation], bool]:
    """Return the given conversation or conversations as a list, and whether it is one that is not in a list.

    Raises:
        GemwrightError: It is neither.
    """
    if is_conversation(given) or (_is_list(given) and not len(given)):
        return [given], True
    if not _is_list(given) or not all(map(is_conversation, given)):
        raise GemwrightError('A conversation is a list of messages, such as [{"role": "user", "content": "Hello"}].')
    return list(given), False


def is_conversation(given: Any) -> TypeGuard[Conversation]:
    """Return whether it is a list of messages, and not empty."""
    return _is_list(given) and len(given) > 0 and all(isinstance(item, Message | Mapping) for item in given)


def _as_list(given: Any) -> str | list[Any]:
    """Return a text as it is, and an array or another sequence as a list."""
    if isinstance(given, str):
        return given
    if isinstance(given, bytes | bytearray):
        raise GemwrightError("The text is bytes; decode it, as in text.decode().")
    if isinstance(given, Message | Mapping) or is_conversation(given):
        raise GemwrightError("The text is a message or a conversation; pass a list of messages to chat.")
    listed = given.tolist() if hasattr(given, "tolist") else given
    if not _is_list(listed):
        kind = type(given).__name__
        raise GemwrightError(f"A text is a string or a list of token ids, not {kind}; pass several texts as a list.")
    return list(listed)


def _text(given: str | list[Any]) -> Text:
    if isinstance(given, str):
        return given
    if not _are_ids(given):
        raise GemwrightError("Each text of a list must be a string or a list of token ids.")
    return list(map(int, given))


def _are_ids(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Integral) and not isinstance(item, bool) for item in items)


def _is_list(given: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)
