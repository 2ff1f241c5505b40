"""The texts of a record, whatever its kind, and the record with other texts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from gemwright.data.records import KINDS, Fields, check_text, find_kind
from gemwright.data.sources import Record

_CONTENT = frozenset(name for kind in KINDS for names in kind.required for name in names) | frozenset(
    ("system", "system_prompt", "input", "context", "output", "answer")
)
"""Fields that hold texts, of all kinds of records."""
_LABELS = frozenset(("role", "from", "type", "name", "id", "message_id", "parent_id", "message_tree_id", "lang"))
"""Fields that hold no text."""


def find_fields(record: Record, field: str | None) -> frozenset[str]:
    """Return the names of the fields with the texts of a record, which is checked as for tuning.

    Args:
        record: The record.
        field: The name of the only one, or None to find them by its kind.

    Raises:
        GemwrightError: The record is of no kind or not valid, or the field has no text.
    """
    if field is not None:
        check_text(record.fields.get(field), field)
        return frozenset((field,))
    kind = find_kind(record)
    kind.read(record.fields)
    return frozenset(("text",)) if kind.name == "text" else _CONTENT - _LABELS


def join_texts(fields: Fields, names: frozenset[str]) -> str:
    """Return the texts of a record, with an empty line between them."""
    return "\n\n".join(text for name, value in fields.items() if name in names for text in _walk(value))


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in cast(Mapping[str, Any], value).items():
            if key not in _LABELS:
                yield from _walk(item)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _walk(item)


def edit_texts(fields: Fields, names: frozenset[str], edit: Callable[[str], str]) -> Fields:
    """Return a record with every text edited."""
    return {name: _edit(value, edit) if name in names else value for name, value in fields.items()}


def _edit(value: Any, edit: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return edit(value)
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {key: item if key in _LABELS else _edit(item, edit) for key, item in items}
    if isinstance(value, list):
        return [_edit(item, edit) for item in cast(list[Any], value)]
    return value
