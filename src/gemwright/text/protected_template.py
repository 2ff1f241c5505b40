"""Render chat templates so that text of a conversation never becomes a control token.

In the literals of the template every control token is replaced by one private character, its symbol, before the
template is compiled, and the text of the conversation contains no symbol. So whatever a template does with the text,
the symbols in its output are the control tokens, and all else is text.

Two cases need the conversation with some of its characters replaced by stand-ins, other private characters that show
which characters of the output came from it: control tokens that a template assembles from pieces, such as
`'<|' + role + '|>'`, and text that names a control token, which a template may split at it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from gemwright.errors import GemwrightError
from gemwright.text.control_tokens import ControlTokens
from gemwright.text.jinja import JinjaTemplate

Pieces: TypeAlias = list[str | int]
"""A rendered conversation: texts and ids of control tokens."""
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages."""
MAX_DEPTH = 32
"""Maximum nesting of the lists and mappings of a conversation."""
MAX_SIZE = 4_000_000
"""Maximum size of a conversation in characters, and elements of lists and mappings."""

_SYMBOLS = range(0xF0000, 0xFFFFE)
_STAND_INS = range(0x100000, 0x10FFFE)
_QUERIES = frozenset((
    "split", "rsplit", "partition", "rpartition", "startswith", "endswith", "strip", "lstrip", "rstrip", "find",
    "rfind", "index", "rindex", "count", "replace", "removeprefix", "removesuffix", "trim",
))  # fmt: skip
"""Methods and filters whose arguments are compared with the text of a conversation."""
_WORDS = frozenset((
    "role", "content", "type", "text", "image", "name", "id", "function", "arguments", "parameters",
    "properties", "required", "description", "items", "enum", "tool_calls", "tool_call_id", "response",
    "object", "string", "number", "integer", "boolean", "array", "user", "assistant",
))  # fmt: skip
"""Words of the structure of tools and their calls, which templates compare with."""
_PROBE = "probe"


class _Output(NamedTuple):
    """The output of a template.

    Attributes:
        text: The text with symbols and stand-ins.
        restore: A table from stand-ins to the characters of the conversation.
        spelled: Places and names of control tokens that the template assembled.
    """

    text: str
    restore: dict[int, str]
    spelled: Sequence[tuple[int, str]] = ()

    @property
    def restored(self) -> str:
        return self.text.translate(self.restore)


class ProtectedTemplate:
    """A chat template for the control tokens of a vocabulary.

    Args:
        source: The template in Jinja.
        tokens: The control tokens.
        constants: Variables of the template that may name control tokens, such as `bos_token`.
        image_marker: Name of the control token of an image.

    Raises:
        GemwrightError: The template is not valid.
    """

    def __init__(self, source: str, tokens: ControlTokens, constants: Mapping[str, str], image_marker: str):
        self._tokens = tokens
        self._symbols: dict[str, str] = {}
        self._begun: set[str] = set()
        self._constants = {name: self._protect(value) for name, value in constants.items()}
        self._image = self._protect(image_marker)
        self._jinja = JinjaTemplate(source, lambda tree: _Protect(self._protect).visit(tree))
        self._ids = {symbol: tokens.ids[name] for name, symbol in self._symbols.items()}

    def _protect(self, literal: str) -> str:
        """Return a literal of the template with a symbol for each control token."""
        parts, end = list[str](), 0
        for start, name in self._tokens.find(literal):
            symbol = self._symbols.setdefault(name, chr(_SYMBOLS[len(self._symbols)]))
            parts += literal[end:start], symbol
            end = start + len(name)
        self._begun |= self._tokens.begun_by(literal[end:])
        return "".join([*parts, literal[end:]])

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> Pieces:
        """Return the texts and control tokens of a conversation.

        Args:
            messages: The messages, as `gemwright.text.chat.read_messages` returns them.
            variables: Other variables of the template.

        Raises:
            GemwrightError: The template refuses the conversation, fails, exceeds a limit, or makes control tokens of
                its text.
        """
        talk = _Conversation(messages, variables)
        output = self._render(talk)
        if self._spelled(output.text) or any(True for text in talk.texts for _ in self._tokens.find(text)):
            output = self._trace(talk, output)
        return self._split(output)

    def _trace(self, talk: "_Conversation", output: _Output) -> _Output:
        """Return the output with the control tokens that the template assembled, from no text of the conversation."""
        hidden = self._render(talk, self._tokens.first_characters)
        if self._controls(hidden.text) != self._controls(output.text):
            raise self._error()
        if not self._spelled(hidden.text):
            return output
        keep = frozenset(word for word in _WORDS if not any(word in name for name in self._begun))
        try:
            traced = self._render(talk, frozenset("".join(self._begun)), keep)
        except GemwrightError as error:
            raise self._error() from error
        if traced.restored != output.restored:
            raise self._error()
        return traced._replace(spelled=self._spelled(traced.text))

    def _error(self) -> GemwrightError:
        return GemwrightError(
            "The chat template makes control tokens from the text of messages, which is not allowed; "
            "remove names of control tokens from the messages or use another template."
        )

    def _render(self, talk: "_Conversation", hidden: Iterable[str] = (), keep: frozenset[str] = frozenset()) -> _Output:
        """Render a conversation with stand-ins for symbols and `hidden` characters, but not in words to keep."""
        free = (chr(code) for code in _STAND_INS if chr(code) not in talk.characters)
        table = {ord(character): next(free) for character in talk.characters & {*hidden, *self._ids}}
        restore = {ord(stand_in): chr(character) for character, stand_in in table.items()}
        messages, variables = talk.translate(table, keep)
        given = {**variables, "messages": [self._fit(message) for message in messages], **self._constants}
        return _Output(self._jinja.render(given), restore)

    def _fit(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with its content as text or as a list of parts, whichever the template supports."""
        content = message.get("content")
        if isinstance(content, list) and not self._takes_parts:
            content = "".join(self._image if part["type"] == "image" else part["text"] for part in content)
        elif isinstance(content, str) and not self._takes_text:
            content = [{"type": "text", "text": content}]
        return message if content is None else message | {"content": content}

    @cached_property
    def _takes_text(self) -> bool:
        return _PROBE in self._try(_PROBE) or not self._takes_parts

    @cached_property
    def _takes_parts(self) -> bool:
        output = self._try([{"type": "text", "text": _PROBE}])
        return _PROBE in output and "'type'" not in output and '"type"' not in output

    def _try(self, content: Any) -> str:
        given = {"tools": None, "documents": None, "add_generation_prompt": False, **self._constants}
        try:
            return self._jinja.render(given | {"messages": [{"role": "user", "content": content}]})
        except GemwrightError:
            return ""

    def _controls(self, text: str) -> list[str]:
        return [character for character in text if character in self._ids]

    def _spelled(self, text: str) -> list[tuple[int, str]]:
        """Return the places and names in a text of control tokens that the template begins in a literal."""
        return [found for found in self._tokens.find(text) if found[1] in self._begun] if self._begun else []

    def _split(self, output: _Output) -> Pieces:
        places = [(index, 1, self._ids[char]) for index, char in enumerate(output.text) if char in self._ids]
        places += [(start, len(name), self._tokens.ids[name]) for start, name in output.spelled]
        pieces: Pieces = []
        end = 0
        for start, length, token in sorted(places):
            pieces += output.text[end:start].translate(output.restore), token
            end = start + length
        return [piece for piece in (*pieces, output.text[end:].translate(output.restore)) if piece != ""]


class _Protect(NodeTransformer):
    """Replace literals of a template, except those that are compared with the text of a conversation."""

    def __init__(self, protect: Any):
        self._protect = protect

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.TemplateData(self._protect(node.data), lineno=node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        value = self._protect(node.value) if isinstance(node.value, str) else node.value
        return nodes.Const(value, lineno=node.lineno)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        return self._visit_sum(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return self._visit_sum(node)

    def _visit_sum(self, node: nodes.Expr) -> nodes.Node:
        """Replace a sum of literals as one literal."""
        text = _fold(node)
        return self.generic_visit(node) if text is None else nodes.Const(self._protect(text), lineno=node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        node.expr = self._visit_compared(node.expr)
        for operand in node.ops:
            operand.expr = self._visit_compared(operand.expr)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        return self._visit_query(node, isinstance(node.node, nodes.Getattr) and node.node.attr in _QUERIES)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        return self._visit_query(node, node.name in _QUERIES)

    def _visit_query(self, node: nodes.Call | nodes.Filter, compared: bool) -> nodes.Node:
        if not compared:
            return self.generic_visit(node)
        if node.node is not None:
            node.node = self.visit(node.node)
        node.args = [self._visit_compared(argument) for argument in node.args]
        return node

    def _visit_compared(self, node: nodes.Expr) -> nodes.Expr:
        literal = isinstance(node, nodes.Const) or (
            isinstance(node, nodes.List | nodes.Tuple) and all(isinstance(item, nodes.Const) for item in node.items)
        )
        return node if literal else self.visit(node)


def _fold(node: nodes.Node) -> str | None:
    """Return the text of literals joined by `+` or `~`; None if they are not all literals."""
    match node:
        case nodes.Const(value=str(value)):
            return value
        case nodes.Add() | nodes.Concat():
            parts = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
            texts = [text for part in parts if (text := _fold(part)) is not None]
            return "".join(texts) if len(texts) == len(parts) else None
        case _:
            return None


@dataclass
class _Conversation:
    """Messages and variables of a template, copied as plain values.

    Attributes:
        texts: All strings.
        characters: All characters of these.
    """

    texts: list[str]

    def __init__(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]):
        self.texts, self._size = [], 0
        self._messages: list[dict[str, Any]] = [self._copy(message) for message in messages]
        self._variables = {name: self._copy(value) for name, value in variables.items()}
        self.characters = frozenset("".join(self.texts))

    def _copy(self, value: Any, depth: int = 0) -> Any:
        """Return a plain value, so that a template can only read it."""
        self._size += 1
        if depth > MAX_DEPTH or self._size > MAX_SIZE:
            raise GemwrightError(
                f"A conversation has more than {MAX_DEPTH} levels or {MAX_SIZE:,} characters; shorten it."
            )
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self._size += len(value)
            self.texts.append(str.__str__(value))
            return self.texts[-1]
        if isinstance(value, int | float):
            return int(value) if isinstance(value, int) else float(value)
        if isinstance(value, Mapping):
            return {self._copy(key, depth + 1): self._copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._copy(item, depth + 1) for item in value]
        raise GemwrightError(
            f"A conversation holds a value of type {type(value).__name__}; use text, numbers, lists and mappings."
        )

    def translate(self, table: Mapping[int, str], keep: frozenset[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the messages and variables with characters replaced, except in roles and in words to keep."""
        if not table:
            return self._messages, self._variables

        def replace(value: Any) -> Any:
            if isinstance(value, str):
                return value if value in keep else value.translate(table)
            if isinstance(value, dict):
                return {replace(key): replace(item) for key, item in value.items()}
            return [replace(item) for item in value] if isinstance(value, list) else value

        def replace_message(message: dict[str, Any]) -> dict[str, Any]:
            return {
                key: item
                if key == "role" and item in ROLES
                else replace_content(item)
                if key == "content"
                else replace(item)
                for key, item in message.items()
            }

        def replace_content(content: Any) -> Any:
            if not isinstance(content, list):
                return replace(content)
            return [{key: item if key == "type" else replace(item) for key, item in part.items()} for part in content]

        messages = [replace_message(message) for message in self._messages]
        return messages, {name: replace(value) for name, value in self._variables.items()}
