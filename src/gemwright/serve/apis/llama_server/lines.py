"""Where editors want a text to end: at a line with less indentation, or after some time."""

import re
import time
from dataclasses import replace

from gemwright.serve.batching.request import Update

_LINE = re.compile(r"\n([ \t]*)(?=[^\s])")
_OPEN_LINE = re.compile(r"\n[ \t]*\Z")


class LineLimit:
    """Cuts the text of one generation.

    Source: llama.cpp, tools/server/README.md, `n_indent` and `t_max_predict_ms`
    """

    def __init__(self, indent: int, seconds: float):
        """Make a limit.

        Args:
            indent: End the text before a line that is indented by fewer characters; 0 for no limit.
            seconds: End a text with more than one line after this time from its first part; 0 for no limit.
        """
        self._indent, self._seconds = indent, seconds
        self._start: float | None = None
        self._has_new_line = False
        self._held = ""

    def cut(self, update: Update) -> Update:
        """Return an update with the text that may be sent now; it is the last if the text ends here."""
        self._start = self._start or time.monotonic()
        text, ended = self._held + update.text, False
        if self._indent:
            short = next((line for line in _LINE.finditer(text) if len(line[1]) < self._indent), None)
            text, ended = (text, False) if short is None else (text[: short.start()], True)
        unfinished = _OPEN_LINE.search(text) if self._indent and not ended and update.finish_reason is None else None
        self._held = unfinished[0] if unfinished else ""
        text = text.removesuffix(self._held)
        self._has_new_line |= "\n" in text
        is_late = 0 < self._seconds < time.monotonic() - self._start
        if ended:
            return replace(update, text=text, finish_reason="length", stop=None)
        if is_late and self._has_new_line:
            return replace(update, text=text, finish_reason=update.finish_reason or "length")
        return replace(update, text=text)
