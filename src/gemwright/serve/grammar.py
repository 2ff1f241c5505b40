"""Grammars of llguidance that a text must match."""

from collections.abc import Mapping
from typing import Any


def from_response_format(response_format: Mapping[str, Any]) -> str | None:
    """Return the grammar of a response format."""
    raise NotImplementedError


class Matcher:  # replaced by the branch grammar
    """Stub."""

    is_stopped = False

    def fill_mask(self, row: object) -> None:
        """Stub."""

    def accept(self, token: int) -> None:
        """Stub."""


def compile(grammar: str, tokenizer: object, stop_ids: object) -> Matcher:  # noqa: A001
    """Stub."""
    raise NotImplementedError
