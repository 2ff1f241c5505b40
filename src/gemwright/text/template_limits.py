"""Limits on the time and memory of templates.

Every string and container that an expression makes is measured, so that one operation takes little time, and operations
that could make a large value (`*`, `%`, `replace`, `join`, ...) are measured before they run.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MAX_SIZE = 1 << 22
"""Maximum size of a value: characters, and `NODE_SIZE` for each element and number."""
MAX_TOTAL = 1 << 26
"""Maximum size of all values that one rendering makes."""
MAX_SECONDS = 0.5
"""Maximum CPU time of one rendering."""
MAX_DEPTH = 64
"""Maximum nesting of lists and mappings."""
MAX_WIDTH = 1000
"""Maximum width of padding, indentation and number formats."""
MAX_BITS = 4096
"""Maximum size of an integer in bits."""
MAX_SCAN = 200_000_000
"""Maximum product of the lengths of a text and of a string that is searched in it."""
NODE_SIZE = 16

_STR_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper", "zfill",
))  # fmt: skip


class LimitError(TemplateRuntimeError):
    """The template exceeds a limit."""


class _Meter:
    """The time and memory that are left to a rendering."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL
        self._deadline = time.thread_time() + MAX_SECONDS

    def charge(self, size: int) -> None:
        """Take a size, and raise if the time or memory is used up."""
        self._left -= size
        if self._left < 0:
            raise LimitError(f"it makes more than {MAX_TOTAL:,} characters")
        if time.thread_time() > self._deadline:
            raise LimitError(f"it takes longer than {MAX_SECONDS:g} s")


_METER: ContextVar[_Meter] = ContextVar("meter")


def charge(size: int = 1) -> None:
    """Take an operation and the size of its result from the limits of the current rendering."""
    _METER.get().charge(size)


@contextmanager
def limited() -> Generator[None]:
    """Give the statements of a `with` block the limits of one rendering."""
    token = _METER.set(_Meter())
    try:
        yield
    finally:
        _METER.reset(token)


def measure(value: Any, depth: int = 0) -> int:
    """Return the size of a value; values that are neither text, numbers nor containers count as one number.

    Raises:
        LimitError: It is larger than `MAX_SIZE`, deeper than `MAX_DEPTH`, or holds an integer of more than `MAX_BITS`.
    """
    size = NODE_SIZE
    if isinstance(value, str):
        size += len(value)
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise LimitError(f"it makes a number of more than {MAX_BITS:,} bits")
    elif isinstance(value, list | tuple | dict):
        if depth == MAX_DEPTH:
            raise LimitError(f"a value is nested more than {MAX_DEPTH} levels deep")
        for item in value:
            size += measure(item, depth + 1) + (measure(value[item], depth + 1) if isinstance(value, dict) else 0)
            if size > MAX_SIZE:
                break
    require(size)
    return size


def require(size: int) -> None:
    """Raise if the size of a value is larger than `MAX_SIZE`."""
    if size > MAX_SIZE:
        raise LimitError(f"a value has more than {MAX_SIZE:,} characters")


def checked(value: Any) -> Any:
    """Return a new value, after measuring it."""
    measure(value)
    charge(len(value) if isinstance(value, str | list | tuple | dict) else 1)
    return value


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop."""
    for item in items:
        charge()
        yield item


def join(pieces: Iterable[Any], separator: str = "") -> str:
    """Return the concatenation of values as text."""
    texts: list[str] = []
    size = 0
    for piece in pieces:
        texts.append(str(piece))
        size += len(texts[-1]) + len(separator)
        require(size)
        charge()
    charge(size)
    return separator.join(texts)


def require_width(value: Any) -> None:
    """Raise if a width, given as a number or as text, is large."""
    if (len(value) if isinstance(value, str) else abs(int(value or 0))) > MAX_WIDTH:
        raise LimitError(f"a width is larger than {MAX_WIDTH:,}")


def _require_replaced(text: str, old: Any, new: Any) -> None:
    require(len(text) + text.count(str(old)) * len(str(new)))


# Widths of four digits, and widths that are arguments.
_LARGE_WIDTHS = {"%": r"%(\([^)]*\))?[^a-zA-Z%]*([0-9]{4}|\*)", "{": r":[^{}]*([0-9]{4}|\{)"}


def require_formatted(template: str, mark: str, arguments: Any) -> None:
    """Raise if `%` or `format` may make a large text: widths come from the template, never from the arguments."""
    if re.search(_LARGE_WIDTHS[mark], template):
        raise LimitError(f"a width is larger than {MAX_WIDTH:,}")
    require(len(template) + template.count(mark) * (MAX_WIDTH * 2 + measure(arguments)))


def require_bits(bits: int) -> None:
    """Raise if the size of a number is larger than `MAX_BITS`."""
    if bits > MAX_BITS:
        raise LimitError(f"it makes a number of more than {MAX_BITS:,} bits")


def texts(items: Iterable[Any]) -> Iterator[str]:
    """Yield the items of `str.join`, which must be text."""
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"join needs text, not {type(item).__name__}")
        yield item


def check_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise if a method of a text is not available, or may take long or make a large text."""
    if name not in _STR_METHODS:
        raise LimitError(f"the method {name} of text is not available in templates")
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            require_width(args[0])
        case "replace":
            _require_replaced(text, *args[:2])
        case "format":
            require_formatted(text, "{", [*args, *kwargs.values()])
        case _:
            if len(text) * max((len(given) for given in args if isinstance(given, str)), default=0) > MAX_SCAN:
                raise LimitError("it searches a long text for another")


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise if a filter may take long or make a large value."""
    given = [*args, *kwargs.values()]
    match name:
        case "indent" | "round":
            for width in given:
                require_width(0 if isinstance(width, bool) else width)
            if name == "indent":
                require(str(value).count("\n") * MAX_WIDTH + len(str(value)) if given else 0)
        case "replace":
            _require_replaced(str(value), *given[:2])
        case "format":
            require_formatted(str(value), "%", given)
        case "sum" if any(not isinstance(start, int | float | str) for start in given):
            raise LimitError("sum is for numbers")
        case "trim" if len(str(value)) * max((len(chars) for chars in given if isinstance(chars, str)), default=0) > (
            MAX_SCAN
        ):
            raise LimitError("it searches a long text for another")
        case _:
            pass


def limit_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja with its arguments and result checked."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context comes first

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        charge()
        before, (value, *rest) = args[:skipped], args[skipped:]
        if name == "join":  # as lists are joined by the original
            value = [*counted(value)]
            require(measure(value) + len(value) * sum(len(str(given)) for given in (*rest, *kwargs.values())))
        _check_filter(name, value, tuple(rest), kwargs)
        return checked(function(*before, value, *rest, **kwargs))

    return call
