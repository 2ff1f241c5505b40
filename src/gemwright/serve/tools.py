"""Functions that a model may call."""

from collections.abc import Mapping, Sequence
from typing import Any


def prepare(
    tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any] | None, messages: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """Return messages that describe the functions, and the grammar of a call that must come."""
    raise NotImplementedError
