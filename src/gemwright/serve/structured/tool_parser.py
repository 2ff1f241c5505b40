"""Calls of functions in a text that arrives in pieces."""

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gemwright.serve.structured import tool_formats
from gemwright.serve.structured.tool_formats import Call, CallFormat

MAX_HELD = 1 << 18
"""Maximum number of characters of a call; a longer one is content."""
_LANGUAGES = "json", "tool_code", "tool_call"
"""Languages of the fences that may hold calls."""
_KEYS = "name", "function", "tool", "tool_name", "type", "id", "arguments", "parameters", "args", "input"
_STARTS = tuple(f'{bracket}"{key}"' for bracket in ("{", "[{") for key in _KEYS)
_OPENING = re.compile(r"```|[\[{]")
_FENCE = re.compile(r"```(\w*)[ \t]*(\n?)\s*")
_OBJECT = re.compile(r'(\[?)\s*(\{?)\s*("?\w*"?)')
_FUNCTION = re.compile(r"\[?\s*([A-Za-z_][\w.]*)?(\(?)")
_BETWEEN = re.compile(r"\s*,?\s*(?:```(?!\w))?\s*")
_CLOSING = re.compile(r"[\]})>`]")


@dataclass(frozen=True)
class ToolCallDelta:
    """The next part of a call: its id and name in the first part, then its arguments.

    Attributes:
        index: Number of the call, from 0.
        id: "call_..." in the first part, else None.
        name: The function in the first part, else None.
        arguments: The next piece of the arguments, which together are a JSON object.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ParsedText:
    """A part of a text: content for the user, and parts of calls."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallParser:
    """Separates calls from content, in a text that arrives in pieces.

    A call is complete before any part of it is given, so arguments are always valid JSON; a text that turns out not to
    be a call, or is cut off within one, is content.

    Attributes:
        has_calls: Whether there was a call.
    """

    def __init__(self, call_format: CallFormat, names: Collection[str], parallel: bool = True):
        """Begin a text.

        Args:
            call_format: How the model writes calls.
            names: The functions. JSON that names another one is content.
            parallel: Whether to keep calls after the first.
        """
        self.has_calls = False
        self._format, self._names, self._parallel = call_format, names, parallel
        self._scan = self._scan_marked if call_format.start else self._scan_json
        self._held = ""
        self._is_inside = self._follows_call = self._has_content = False
        self._count = 0

    def push(self, text: str) -> ParsedText:
        """Return what the next piece of the text adds."""
        self._held += text
        if self._is_inside and not _CLOSING.search(text) and len(self._held) < MAX_HELD:
            return ParsedText()
        return self._take(at_end=len(self._held) >= MAX_HELD)

    def finish(self) -> ParsedText:
        """Return the rest, at the end of the text, whatever ended it."""
        return self._take(at_end=True)

    def _take(self, at_end: bool) -> ParsedText:
        content: list[str] = []
        deltas: list[ToolCallDelta] = []
        going = True
        while going and self._held:
            self._is_inside = False
            part = self._scan(self._held, at_end)
            self._held, going = part.rest, not part.waits
            if part.content:
                content += ["\n"] if self._follows_call and self._has_content else []
                self._has_content = True
            self._follows_call = bool(part.calls) or (self._follows_call and not part.content)
            content.append(part.content)
            for call in part.calls:
                deltas += self._deltas(call)
        text = "".join(content)
        for marker in self._format.markers:
            text = text.replace(marker, "")
        return ParsedText(text, tuple(deltas))

    def _deltas(self, call: Call) -> list[ToolCallDelta]:
        if self.has_calls and not self._parallel:
            return []
        index, self._count, self.has_calls = self._count, self._count + 1, True
        first = ToolCallDelta(index, f"call_{secrets.token_hex(12)}", call.name, "")
        return [first, ToolCallDelta(index, None, None, call.arguments)]

    def _scan_marked(self, text: str, at_end: bool) -> "_Part":
        """Take content up to a start marker, or the call behind it."""
        start, end = self._format.start, self._format.end
        text = text.lstrip() if self._follows_call else text
        at = text.find(start)
        if at < 0:
            return self._content(text, at_end, (start, *self._format.markers))
        if at > 0:
            before = text[:at]
            return _Part(before.rstrip(), text[at:])
        stop = self._marked_end(text, len(start), end)
        if stop is None and not at_end:
            self._is_inside = True
            return _Part("", text, waits=True)
        body, rest = (text[len(start) :], "") if stop is None else (text[len(start) : stop], text[stop + len(end) :])
        try:
            return _Part("", rest, self._format.read(body))
        except ValueError:
            return _Part(text[: len(text) - len(rest)], rest)

    def _marked_end(self, text: str, start: int, end: str) -> int | None:
        """Return the place of the end marker that is not in the JSON of the call."""
        if not self._format.quote:
            opening = _skip_space(text, start)
            if text[opening : opening + 1] in ("{", "["):
                closing = tool_formats.value_end(text, opening)
                if closing is None:
                    return None
                start = closing
        found = text.find(end, start)
        return None if found < 0 else found

    def _scan_json(self, text: str, at_end: bool) -> "_Part":
        """Take content up to what may be calls, or those calls."""
        if self._follows_call:
            between = _BETWEEN.match(text)
            assert between is not None
            rest = text[between.end() :]
            if not at_end and not rest.strip("`"):
                return _Part("", text, waits=True)  # a fence may go on
            text = rest
        for opening in _OPENING.finditer(text):
            found = _candidate(text, opening.start(), self._names)
            if found is None:
                continue
            if before := text[: opening.start()].rstrip():
                return _Part(before, text[len(before) :])
            return self._scan_candidate(text, found, at_end)
        return self._content(text, at_end, ("```",))

    def _scan_candidate(self, text: str, found: "_Candidate", at_end: bool) -> "_Part":
        """Take a candidate, which only whitespace may precede: its calls, or all of it as content."""
        stop = found.end(text, at_end)
        if stop is None:
            self._is_inside = found.is_certain
            return _Part(text, "") if at_end else _Part("", text, waits=True)
        try:
            calls = found.read(text[found.body : stop])
        except ValueError:
            calls = []
        if not calls or any(call.name not in self._names for call in calls):
            return _Part(text[:stop], text[stop:])
        return _Part("", text[stop:], calls)

    @staticmethod
    def _content(text: str, at_end: bool, markers: Collection[str]) -> "_Part":
        """Take content, but for whitespace and the beginning of a marker at its end, which may precede a call."""
        if at_end:
            return _Part(text, "")
        kept = max(_overlap(text, marker) for marker in markers)
        shown = text[: len(text) - kept].rstrip()
        return _Part(shown, text[len(shown) :], waits=True)


@dataclass(frozen=True)
class _Part:
    """The result of a scan: content, what is left of the text, calls, and whether more text is needed."""

    content: str
    rest: str
    calls: Sequence[Call] = ()
    waits: bool = False


@dataclass(frozen=True)
class _Candidate:
    """A part of a text that may be calls.

    Attributes:
        body: Where they begin.
        is_certain: Whether the text so far is enough to look for their end.
        is_python: Whether they are calls in Python, up to the end of a fence; JSON otherwise.
    """

    body: int
    is_certain: bool
    is_python: bool = False

    def end(self, text: str, at_end: bool) -> int | None:
        """Return where they end; None if the text ends before."""
        if not self.is_certain:
            return None
        if not self.is_python:
            return tool_formats.value_end(text, self.body)
        closing = text.find("```", self.body)
        return closing if closing >= 0 else len(text) if at_end else None

    def read(self, body: str) -> list[Call]:
        """Return the calls; raises ValueError if there are none."""
        return tool_formats.read_python(body) if self.is_python else tool_formats.read_json(body)


def _candidate(text: str, at: int, names: Collection[str]) -> _Candidate | None:
    """Return what may begin at a bracket or fence; None if it cannot be a call."""
    if text[at] != "`":
        return _json(text, at)
    fence = _FENCE.match(text, at)
    assert fence is not None
    if not fence[2]:
        is_open = fence.end() == len(text) and any(language.startswith(fence[1]) for language in _LANGUAGES)
        return _Candidate(fence.end(), False) if is_open else None
    if fence[1] not in _LANGUAGES:
        return None
    if fence.end() == len(text):
        return _Candidate(fence.end(), False)
    return _json(text, fence.end()) or (_python(text, fence.end(), names) if fence[1] == "tool_code" else None)


def _json(text: str, at: int) -> _Candidate | None:
    match = _OBJECT.match(text, at)
    assert match is not None
    begun = "".join(match.groups())
    if begun.endswith('"') and begun in _STARTS:
        return _Candidate(at, True)
    is_open = match.end() == len(text) and begun and any(start.startswith(begun) for start in _STARTS)
    return _Candidate(at, False) if is_open else None


def _python(text: str, at: int, names: Collection[str]) -> _Candidate | None:
    match = _FUNCTION.match(text, at)
    assert match is not None
    if match[2]:
        return _Candidate(at, True, is_python=True) if match[1] in names else None
    is_open = match.end() == len(text) and any(name.startswith(match[1] or "") for name in names)
    return _Candidate(at, False) if is_open else None


def _overlap(text: str, marker: str) -> int:
    """Return the length of the longest beginning of a marker with which a text ends."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)


def _skip_space(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip())
