"""Render Jinja templates of checkpoints, which are untrusted code, within limits on time, memory and access.

The output is that of transformers (`utils/chat_template_utils.py`, 5.23): the same environment, filters and functions.
Filters that no chat template needs and that are costly to limit (`center`, `batch`, `urlize`, ...) are left out.
"""

import json
import types
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
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
from gemwright.text.chat import RefusedError
from gemwright.text.template_limits import (
    LimitError,
    charge,
    check_method,
    checked,
    counted,
    join,
    limit_filter,
    limited,
    measure,
    require,
    require_bits,
    require_formatted,
    texts,
)

MAX_SOURCE = 1 << 15
"""Maximum length of a template in characters. Published ones have up to 17,000."""
MAX_NODES = 10_000
"""Maximum number of nodes of a template's syntax tree, which takes half a second to compile."""
_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string",
    "sum", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
)  # fmt: skip


class RefusalError(TemplateError):
    """The template raised an exception: it does not support the conversation."""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose operations are limited."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(join)  # pyright: ignore[reportAssignmentType]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result may be large."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*" and not numbers:
            sized, times = (right, left) if isinstance(left, int) else (left, right)
            require(measure(sized) * max(0, int(times)))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            require_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            require_formatted(left, "%", right)
        return checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call a function, macro or method."""
        charge()
        # str.format arrives in a wrapper of the sandbox.
        method = getattr(function, "__wrapped__", function)
        receiver = getattr(method, "__self__", None)
        if isinstance(receiver, str):
            if method.__name__ == "join":
                return join(texts(args[0]), receiver)
            check_method(receiver, method.__name__, args, kwargs)
            return checked(super().call(context, function, *args, **kwargs))
        if isinstance(method, types.BuiltinMethodType) and not isinstance(receiver, dict | list | tuple):
            raise LimitError(f"the method {method.__name__} is not available in templates")
        return super().call(context, function, *args, **kwargs)


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
    return checked(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )


def _raise_exception(message: Any) -> None:
    raise RefusalError(str(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > 100:
        raise LimitError("a date format has more than 100 characters")
    return datetime.now().strftime(layout)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return checked(dict(*args, **kwargs))


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
        finalize=checked,
        cache_size=0,
    )
    settings: Any = environment
    filters = {name: limit_filter(name, settings.filters[name]) for name in _FILTERS}
    settings.filters = filters | {"tojson": _tojson, _CHECKED: checked, _COUNTED: counted, _CONCAT: join}
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
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _apply(_CHECKED, node)

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
        with limited(), _explained("is not valid"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about the compiled template
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
        with limited(), _explained("fails"):
            context = self._template.new_context(dict(variables))
            return join(self._template.root_render_func(context))


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn any error of untrusted code into a sentence."""
    try:
        yield
    except RefusalError as error:
        raise RefusedError(f"The chat template refuses the conversation: {_sentence(error)}.") from error
    except Exception as error:  # a template may raise anything
        raise GemwrightError(
            f"The chat template {what}: {_sentence(error)}; use another template or other messages."
        ) from error


def _sentence(error: Exception) -> str:
    """Return the text of an error on one line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
