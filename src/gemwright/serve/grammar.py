"""Grammars of llguidance that a text must match."""

from collections.abc import Mapping
from typing import Any


def from_response_format(response_format: Mapping[str, Any]) -> str | None:
    """Return the grammar of a response format."""
    raise NotImplementedError
