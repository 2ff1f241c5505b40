"""Stop strings in streamed text."""

from collections.abc import Iterable
from contextlib import suppress
from typing import final

from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer


def find_stop_ids(tokenizer: Tokenizer, strings: Iterable[str]) -> tuple[int, ...]:
    """Return the ids of stop strings that name a control token, which has no text that a stop string could match."""
    found: list[int] = []
    for string in strings:
        with suppress(GemwrightError):
            found.append(tokenizer.id_of(string.strip()))
    return tuple(found)


@final
class StopStrings:
    """A filter that passes text on up to the earliest stop string, which it drops with all text after it.

    The result does not depend on how the text is split into pushes. Only a suffix that may still become a stop string
    is held back; it is shorter than the longest stop string. Of two that overlap, the one that starts first counts.
    """

    def __init__(self, strings: Iterable[str]):
        self._strings = tuple(strings)
        if "" in self._strings:
            raise GemwrightError("A stop string is empty, which would stop every text at once: remove it.")
        self._held = ""
        self._stopped = False
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text.

        Returns:
            The text released now, and whether a stop string has been found; after that nothing more is released.
        """
        if self._stopped:
            return "", True
        self._held += text
        found = self._find_complete()
        pending = self._find_incomplete()
        self._stop(found <= pending and found < len(self._held), found)
        return self._release(min(found, pending)), self._stopped

    def finish(self) -> tuple[str, bool]:
        """End the text.

        Returns:
            The text still held back, up to a stop string, and whether a stop string has been found.
        """
        found = self._find_complete()
        self._stop(found < len(self._held), found)
        return self._release(found), self._stopped

    def _stop(self, stopped: bool, start: int) -> None:
        """Record that a stop string begins at `start` of the held text, if one does."""
        if stopped:
            self._stopped = True
            self.found = next(string for string in self._strings if self._held.startswith(string, start))

    def _find_complete(self) -> int:
        """Return the start of the first stop string in the held text, or the length of the text."""
        starts = (self._held.find(string) for string in self._strings)
        return min((start for start in starts if start >= 0), default=len(self._held))

    def _find_incomplete(self) -> int:
        """Return the start of the first incomplete stop string in the held text, or the length of the text."""
        longest = max(map(len, self._strings), default=0)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(string.startswith(self._held[start:]) for string in self._strings):
                return start
        return len(self._held)

    def _release(self, end: int) -> str:
        released, self._held = self._held[:end], "" if self._stopped else self._held[end:]
        return released
