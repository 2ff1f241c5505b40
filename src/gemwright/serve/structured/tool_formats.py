"""How models write calls of functions: the formats of chat templates, and plain JSON for models without one."""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from gemwright.text.chat_template import DEFAULT, WITH_TOOLS, ChatTemplate

MAX_DEPTH = 50
"""Maximum nesting of the arguments of a call."""
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}()"]', re.DOTALL)
_NAME = re.compile(r"[\w.-]{1,64}")
_NAMES = "name", "function", "tool", "tool_name"
_ARGUMENTS = "arguments", "parameters", "args", "input"


class Call(NamedTuple):
    """A call of a function.

    Attributes:
        name: The function.
        arguments: A JSON object.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class CallFormat:
    """A format of calls in the text of a model.

    Attributes:
        start: The marker before a call; empty for plain JSON, possibly in a fence of Markdown.
        end: The marker behind it.
        quote: The marker around texts in the arguments; empty where they are JSON.
        response: The marker that ends the model's turn after its calls, if there is one.
    """

    start: str = ""
    end: str = ""
    quote: str = ""
    response: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers that are control tokens in models of this format, none of which is content."""
        return tuple(filter(None, (self.start, self.end, self.quote, self.response))) if self.quote else ()

    def read(self, body: str) -> list[Call]:
        """Return the calls between a start and an end marker.

        Raises:
            ValueError: It is not of this format.
        """
        return [read_native(body, self.quote)] if self.quote else read_json(body)


JSON = CallFormat()
HERMES = CallFormat("<tool_call>", "</tool_call>")
FUNCTION_GEMMA = CallFormat("<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>")
GEMMA4 = CallFormat("<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")
FORMATS = FUNCTION_GEMMA, GEMMA4, HERMES
"""Formats with markers. Sources: ai.google.dev/gemma/docs/functiongemma, .../function-calling-gemma4;
github.com/NousResearch/Hermes-Function-Calling."""


def format_of(template: ChatTemplate | None) -> tuple[CallFormat, bool]:
    """Return the format in which a model calls functions, and whether its chat template describes them."""
    sources = {} if template is None else template.sources
    source = sources.get(WITH_TOOLS) or sources.get(DEFAULT) or next(iter(sources.values()), "")
    if not re.search(r"\btools\b", source):
        return JSON, False
    return next((known for known in FORMATS if known.start in source), JSON), True


def value_end(text: str, start: int) -> int | None:
    """Return the end of the bracketed value that begins at `start`; None if the text ends within it."""
    depth = 0
    for token in _BRACKETS.finditer(text, start):
        if token[0] == '"':
            return None
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(token[0], 0)
        if depth <= 0:
            return token.end()
    return None


def read_json(text: str) -> list[Call]:
    """Return the calls of a JSON object or a list of them.

    Raises:
        ValueError: It is something else.
    """
    _check_depth(text)
    value = json.loads(text, parse_constant=_refuse)
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    if not values:
        raise ValueError("no call")
    return [_read_call(value) for value in values]


def _read_call(value: Any) -> Call:
    """Return a call from an object with its name and arguments, or one in OpenAI's form."""
    match value:
        case {"type": "function", "function": {"name": str()} as inner}:
            return _read_call(inner)
        case dict():
            fields = cast(dict[str, Any], value)
        case _:
            raise ValueError("not an object")
    name = next((fields[key] for key in _NAMES if key in fields), None)
    arguments = next((fields[key] for key in _ARGUMENTS if key in fields), {})
    if isinstance(arguments, str):
        _check_depth(arguments)
        arguments = json.loads(arguments, parse_constant=_refuse)
    if set(fields) - {*_NAMES, *_ARGUMENTS, "id", "type"}:
        raise ValueError("other fields")
    return _call(name, {} if arguments is None else arguments)


def read_python(text: str) -> list[Call]:
    """Return the calls of lines of Python such as `f(x=1)`, whose arguments are named literals.

    Raises:
        ValueError: It is something else.
    """
    _check_depth(text)
    try:
        lines = ast.parse(text.strip()).body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error
    calls = [_python_call(value) for line in lines for value in _python_values(line)]
    if not calls:
        raise ValueError("no call")
    return calls


def _python_values(line: ast.stmt) -> list[ast.expr]:
    """Return the expressions of a line, or of its list."""
    if not isinstance(line, ast.Expr):
        raise ValueError("not an expression")
    return line.value.elts if isinstance(line.value, ast.List) else [line.value]


def _python_call(value: ast.expr) -> Call:
    if not isinstance(value, ast.Call) or value.args or not all(keyword.arg for keyword in value.keywords):
        raise ValueError("not a call with named arguments")
    return _call(ast.unparse(value.func), {str(part.arg): ast.literal_eval(part.value) for part in value.keywords})


def read_native(body: str, quote: str) -> Call:
    """Return the call of `call:name{key:value,...}`, whose texts are between two `quote`.

    Raises:
        ValueError: It is something else.
    """
    match = re.match(r"\s*call:\s*([\w.-]{1,64})\s*(?=\{)", body)
    if match is None:
        raise ValueError("not a call")
    value, end = _native_value(body, match.end(), quote, 0)
    if body[end:].strip():
        raise ValueError("text after the arguments")
    return _call(match[1], value)


def _native_value(text: str, at: int, quote: str, depth: int) -> tuple[Any, int]:
    """Return the value at a place, and the place behind it."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if text.startswith(quote, at):
        stop = text.index(quote, at + len(quote))
        return text[at + len(quote) : stop], stop + len(quote)
    if text[at : at + 1] == "{":
        return _native_items(text, at + 1, "}", quote, depth)
    if text[at : at + 1] == "[":
        return _native_items(text, at + 1, "]", quote, depth)
    if text[at : at + 1] == '"':
        return json.JSONDecoder().raw_decode(text, at)
    bare = re.compile(r"[^,{}\[\]]*").match(text, at)
    assert bare is not None
    try:
        return json.loads(bare[0].strip(), parse_constant=_refuse), bare.end()
    except ValueError:
        return bare[0].strip(), bare.end()  # a text without quotes


def _native_items(text: str, at: int, close: str, quote: str, depth: int) -> tuple[Any, int]:
    """Return the object or list whose first item is at a place."""
    values: dict[str, Any] = {}
    while True:
        at = _skip_space(text, at)
        if text[at : at + 1] == close:
            return values if close == "}" else list(values.values()), at + 1
        key = str(len(values))
        if close == "}":
            colon = text.index(":", at)
            key = text[at:colon].strip().removeprefix(quote).removesuffix(quote).strip('"')
            at = _skip_space(text, colon + 1)
        values[key], at = _native_value(text, at, quote, depth + 1)
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != close:
            raise ValueError("neither a comma nor the end")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _call(name: Any, arguments: Any) -> Call:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        raise ValueError("no name, or arguments that are no object")
    try:
        return Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _check_depth(text: str) -> None:
    depth = deepest = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError("too deep")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
