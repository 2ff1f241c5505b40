"""Render Jinja templates of checkpoints, which are untrusted code, within limits on time, memory and access.

The output is that of transformers (`utils/chat_template_utils.py`, 5.23): the same environment, filters and functions.
Filters that no chat template needs and that are costly to limit (`center`, `batch`, `urlize`, ...) are left out.

Limits work on values: every string and container that an expression makes is measured, so that one operation takes
little time, and operations that could make a large one (`*`, `%`, `replace`, `join`, ...) are measured before they run.
"""

import json
import re
import time
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gemwright.errors import GemwrightError

MAX_SOURCE = 1 << 15
"""Maximum length of a template in characters. Published ones have up to 17,000."""
MAX_NODES = 10_000
"""Maximum number of nodes of a template's syntax tree, which takes half a second to compile."""
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

_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string",
    "sum", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
)  # fmt: skip
_STR_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper", "zfill",
))  # fmt: skip


class RefusalError(TemplateError):
    """The template raised an exception: it does not support the conversation."""


class LimitError(TemplateRuntimeError):
    """The template exceeds a limit."""


class _Meter:
    """The time and memory that are left to a rendering."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL
        self._deadline = time.thread_time() + MAX_SECONDS

    def charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise LimitError(f"it makes more than {MAX_TOTAL:,} characters")
        if time.thread_time() > self._deadline:
            raise LimitError(f"it takes longer than {MAX_SECONDS:g} s")


_METER: ContextVar[_Meter] = ContextVar("meter")


def _charge(size: int = 1) -> None:
    _METER.get().charge(size)


@contextmanager
def _limited() -> Generator[None]:
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
    _require(size)
    return size


def _require(size: int) -> None:
    if size > MAX_SIZE:
        raise LimitError(f"a value has more than {MAX_SIZE:,} characters")


def _checked(value: Any) -> Any:
    """Return a new value, after measuring it."""
    measure(value)
    _charge(len(value) if isinstance(value, str | list | tuple | dict) else 1)
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop."""
    for item in items:
        _charge()
        yield item


def _join(pieces: Iterable[Any], separator: str = "") -> str:
    """Return the concatenation of values as text."""
    texts: list[str] = []
    size = 0
    for piece in pieces:
        texts.append(str(piece))
        size += len(texts[-1]) + len(separator)
        _require(size)
        _charge()
    _charge(size)
    return separator.join(texts)


def _require_width(value: Any) -> None:
    """Raise if a width, given as a number or as text, is large."""
    if (len(value) if isinstance(value, str) else abs(int(value or 0))) > MAX_WIDTH:
        raise LimitError(f"a width is larger than {MAX_WIDTH:,}")


def _require_replaced(text: str, old: Any, new: Any) -> None:
    _require(len(text) + text.count(str(old)) * len(str(new)))


def _require_formatted(template: str, mark: str, arguments: Any) -> None:
    """Raise if `%` or `format` may make a large text: widths come from the template, never from the arguments."""
    if re.search(r"[0-9]{4}|%[^a-zA-Z%]*\*|:[^{}]*\{", template):
        raise LimitError(f"a width is larger than {MAX_WIDTH:,}")
    _require(len(template) + template.count(mark) * (MAX_WIDTH * 2 + measure(arguments)))


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose operations are limited."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_join)  # pyright: ignore[reportAssignmentType]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result may be large."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*" and not numbers:
            sized, times = (right, left) if isinstance(left, int) else (left, right)
            _require(measure(sized) * max(0, int(times)))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _require_formatted(left, "%", right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call a function, macro or method."""
        _charge()
        # str.format arrives in a wrapper of the sandbox.
        method = getattr(function, "__wrapped__", function)
        receiver = getattr(method, "__self__", None)
        if isinstance(receiver, str):
            if method.__name__ == "join":
                return _join(_texts(args[0]), receiver)
            _check_method(receiver, method.__name__, args, kwargs)
            return _checked(super().call(context, function, *args, **kwargs))
        if isinstance(method, types.BuiltinMethodType) and not isinstance(receiver, dict | list | tuple):
            raise LimitError(f"the method {method.__name__} is not available in templates")
        return super().call(context, function, *args, **kwargs)


def _require_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitError(f"it makes a number of more than {MAX_BITS:,} bits")


def _texts(items: Iterable[Any]) -> Iterator[str]:
    """Yield the items of `str.join`, which must be text."""
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"join needs text, not {type(item).__name__}")
        yield item


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise if a method of a text is not available, or may take long or make a large text."""
    if name not in _STR_METHODS:
        raise LimitError(f"the method {name} of text is not available in templates")
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            _require_width(args[0])
        case "replace":
            _require_replaced(text, *args[:2])
        case "format":
            _require_formatted(text, "{", [*args, *kwargs.values()])
        case _:
            if len(text) * max((len(given) for given in args if isinstance(given, str)), default=0) > MAX_SCAN:
                raise LimitError("it searches a long text for another")


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise if a filter may take long or make a large value."""
    given = [*args, *kwargs.values()]
    match name:
        case "indent" | "round":
            _require_width(given[0] if given and not isinstance(given[0], bool) else 0)
            if name == "indent":
                _require(str(value).count("\n") * MAX_WIDTH + len(str(value)) if given else 0)
        case "replace":
            _require_replaced(str(value), *args[:2])
        case "format":
            _require_formatted(str(value), "%", given)
        case "sum" if any(not isinstance(start, int | float | str) for start in given):
            raise LimitError("sum is for numbers")
        case "trim" if len(str(value)) * max((len(chars) for chars in given if isinstance(chars, str)), default=0) > (
            MAX_SCAN
        ):
            raise LimitError("it searches a long text for another")
        case _:
            pass


def _limit_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja with its arguments and result checked."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context comes first

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _charge()
        before, (value, *rest) = args[:skipped], args[skipped:]
        if name == "join":  # as lists are joined by the original
            value = [*_counted(value)]
            _require(measure(value) + len(value) * sum(len(str(given)) for given in (*rest, *kwargs.values())))
        _check_filter(name, value, tuple(rest), kwargs)
        return _checked(function(*before, value, *rest, **kwargs))

    return call


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without Jinja's escapes for HTML."""
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16 or len("".join(separators or ())) > 16:
        raise LimitError("an indentation is larger than 16")
    measure(value)
    return _checked(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )


def _raise_exception(message: Any) -> None:
    raise RefusalError(str(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > 100:
        raise LimitError("a date format has more than 100 characters")
    return datetime.now().strftime(layout)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return _checked(dict(*args, **kwargs))


class _Namespace(Namespace):
    """Jinja's namespace without a text that lists its values, which may form a cycle."""

    def __init__(self, /, *args: Any, **kwargs: Any):
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise TemplateRuntimeError(f"a namespace cannot have the attribute {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """The tag `generation`, which marks answers in training; its body is rendered in place."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the body."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        finalize=_checked,
        cache_size=0,
    )
    settings: Any = environment
    filters = {name: _limit_filter(name, settings.filters[name]) for name in _FILTERS}
    settings.filters = filters | {"tojson": _tojson, _CHECKED: _checked, _COUNTED: _counted, _CONCAT: _join}
    del settings.globals["lipsum"]
    settings.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _Namespace,
    }
    return environment


# Filters of the limits, with names that no template can write.
_CHECKED, _COUNTED, _CONCAT = ".checked", ".counted", ".concat"


class _Limit(NodeTransformer):
    """Measure the values that the sandbox cannot intercept: `~`, literals, slices and loops."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _apply(_COUNTED, node.iter)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_CHECKED, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_CHECKED, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_CHECKED, node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_CHECKED, node) if isinstance(node.arg, nodes.Slice) else node


def _apply(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _require_few(tree: nodes.Node) -> None:
    left, count = [tree], 0
    while left:
        left.extend(left.pop().iter_child_nodes())
        count += 1
        if count > MAX_NODES:
            raise LimitError(f"it has more than {MAX_NODES:,} expressions")


class JinjaTemplate:
    """A template.

    Args:
        source: Its text.
        rewrite: Change its syntax tree before it is compiled.

    Raises:
        GemwrightError: It is not valid, or too long.
    """

    def __init__(self, source: str, rewrite: Callable[[nodes.Template], None] = lambda tree: None):
        if len(source) > MAX_SOURCE:
            raise GemwrightError(f"The chat template has more than {MAX_SOURCE:,} characters; use another one.")
        with _limited(), _explained("is not valid"):
            environment = _make_environment()
            tree = environment.parse(source)
            _require_few(tree)
            rewrite(tree)
            code = environment.compile(_Limit().visit(tree))
            self._template = Template.from_code(environment, code, environment.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text of the template.

        Raises:
            GemwrightError: It refuses its variables, fails or exceeds a limit.
        """
        with _limited(), _explained("fails"):
            context = self._template.new_context(dict(variables))
            return _join(self._template.root_render_func(context))


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn any error of untrusted code into a sentence."""
    try:
        yield
    except RefusalError as error:
        raise GemwrightError(f"The chat template refuses the conversation: {_sentence(error)}.") from error
    except Exception as error:  # a template may raise anything
        raise GemwrightError(
            f"The chat template {what}: {_sentence(error)}; use another template or other messages."
        ) from error


def _sentence(error: Exception) -> str:
    """Return the text of an error on one line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
