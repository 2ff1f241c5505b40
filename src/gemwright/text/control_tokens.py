"""Find the names of control tokens in text."""

import bisect
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import final


@final
class ControlTokens:
    """The control tokens of a vocabulary.

    Attributes:
        ids: Id of each control token by name.
    """

    def __init__(self, ids: Mapping[str, int]):
        self.ids = ids
        self._lengths = sorted({len(name) for name in ids}, reverse=True)
        self._start = re.compile(f"[{re.escape(''.join(self.first_characters))}]" if ids else "(?!)")

    @property
    def first_characters(self) -> frozenset[str]:
        """Return the characters that names begin with."""
        return frozenset(name[0] for name in self.ids)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.ids)

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the places and names of the control tokens that a text names: leftmost first, then the longest."""
        end = 0
        for match in self._start.finditer(text):
            start = match.start()
            name = self._at(text, start) if start >= end else None
            if name:
                yield start, name
                end = start + len(name)

    def _at(self, text: str, start: int) -> str | None:
        names = (text[start : start + length] for length in self._lengths)
        return next((name for name in names if name in self.ids), None)

    def begun_by(self, text: str) -> set[str]:
        """Return the names of which a part, but not all, is at the end of a text."""
        begun: set[str] = set()
        for length in range(1, min(len(text) + 1, self._lengths[0] if self._lengths else 0)):
            prefix = text[-length:]
            index = bisect.bisect_right(self._sorted, prefix)
            while index < len(self._sorted) and self._sorted[index].startswith(prefix):
                begun.add(self._sorted[index])
                index += 1
        return begun
