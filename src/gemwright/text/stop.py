"""Stop strings over a stream of text."""

from collections.abc import Iterable
from typing import final

from gemwright.errors import GemwrightError


@final
class StopStrings:
    """Passes text on until the earliest occurrence of a stop string, and nothing of it or after it.

    The result does not depend on how the text is cut into pushes. Only what may still become a stop string is
    held back, which is less than the longest of them. Where two overlap, the one that starts first counts.
    """

    def __init__(self, strings: Iterable[str]):
        self._strings = tuple(strings)
        if "" in self._strings:
            raise GemwrightError("A stop string is empty, so nothing could ever be written: leave it out.")
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece of text.

        Returns:
            What may be shown now, and whether a stop string has been met; from then on nothing more is shown.
        """
        if self._stopped:
            return "", True
        self._held += text
        found = self._first_occurrence()
        pending = self._first_pending()
        self._stopped = found <= pending and found < len(self._held)
        return self._release(min(found, pending)), self._stopped

    def finish(self) -> tuple[str, bool]:
        """Ends the text.

        Returns:
            What was held back and may be shown, and whether a stop string has been met.
        """
        found = self._first_occurrence()
        self._stopped = self._stopped or found < len(self._held)
        return self._release(found), self._stopped

    def _first_occurrence(self) -> int:
        """Where the first stop string starts in the held text; its length if there is none."""
        starts = (self._held.find(string) for string in self._strings)
        return min((start for start in starts if start >= 0), default=len(self._held))

    def _first_pending(self) -> int:
        """Where the first stop string that the text ends within starts; its length if there is none."""
        longest = max(map(len, self._strings), default=0)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(string.startswith(self._held[start:]) for string in self._strings):
                return start
        return len(self._held)

    def _release(self, end: int) -> str:
        released, self._held = self._held[:end], "" if self._stopped else self._held[end:]
        return released
