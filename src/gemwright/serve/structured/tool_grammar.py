"""Grammars of calls of functions, in the formats of `tool_formats`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gemwright.serve.structured import grammar, json_schemas
from gemwright.serve.structured.tool_formats import CallFormat

_COMPACT = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}


def required_calls(
    call_format: CallFormat, functions: Sequence[Mapping[str, Any]], control_tokens: Mapping[str, int], parallel: bool
) -> str:
    """Return the grammar of a text that calls at least one of some functions, and nothing else.

    Keywords of schemas that llguidance does not implement are ignored, but for functions with `strict`.

    Args:
        call_format: how the model writes calls.
        functions: with "name" and "parameters".
        control_tokens: of the model, by name.
        parallel: whether there may be several calls.

    Raises:
        RequestError: A schema is not supported or too large.
    """
    for function in functions:  # one by one, so that an error has a name
        place = f"parameters of {function['name']}"
        grammar.from_json_schema(function["parameters"], place, strict=bool(function.get("strict")))
    if call_format.quote:
        return _native(call_format, functions, control_tokens, parallel)
    calls, definitions = _schemas(functions)
    one = {"anyOf": calls} if len(calls) > 1 else calls[0]
    if not call_format.start:
        several = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]} if parallel else one
        return grammar.from_json_schema({**several, "$defs": definitions}, "tools", strict=False)
    start, end = (_marker(marker, control_tokens) for marker in (call_format.start, call_format.end))
    body = json.dumps({**json_schemas.close({**one, "$defs": definitions}), "x-guidance": _COMPACT})
    repeated = ' ("\\n" call)*' if parallel else ""
    lark = f'start: call{repeated}\ncall: {start} "\\n" body "\\n" {end}\nbody: %json {body}\n'
    return grammar.from_own_lark(lark, "tools")


def _schemas(functions: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the schema of a call of each function, and the schemas of parameters to which they refer."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for index, function in enumerate(functions):
        key = f"parameters{index}"
        definitions[key] = _moved(function["parameters"], f"#/$defs/{key}")
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{key}"}}
        call = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        calls.append(call)
    return calls, definitions


def _moved(schema: Any, root: str) -> Any:
    """Return a schema with its references to itself as it is a part of another at `root`."""
    if isinstance(schema, Mapping):
        table = cast(Mapping[str, Any], schema)
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in table.items()
            if key not in ("$id", "$schema")
        }
    return [_moved(item, root) for item in cast(list[Any], schema)] if isinstance(schema, list) else schema


def _marker(marker: str, control_tokens: Mapping[str, int]) -> str:
    """Return a marker in a Lark grammar: a control token by its id, or a text."""
    return f"<[{control_tokens[marker]}]>" if marker in control_tokens else grammar.lark_literal(marker)


def _native(
    call_format: CallFormat, functions: Sequence[Mapping[str, Any]], control_tokens: Mapping[str, int], parallel: bool
) -> str:
    """Return the grammar of calls in the formats with quotes, with arguments in alphabetical order, as in training."""
    start, end, quote = (
        _marker(marker, control_tokens) for marker in (call_format.start, call_format.end, call_format.quote)
    )
    rules = _NativeRules(quote)
    calls = [f'"call:{function["name"]}" {rules.of(function["parameters"])}' for function in functions]
    lines = [f"start: call{'+' if parallel else ''}", f"call: {start} ({' | '.join(calls)}) {end}", *rules.lines]
    return grammar.from_own_lark("\n".join(lines), "tools")


class _NativeRules:
    """Rules of a Lark grammar for values of schemas."""

    def __init__(self, quote: str):
        self._quote = quote
        self._objects = 0
        inside = r"[^\x00]" if quote.startswith("<[") else "[^<]"  # a control token is in no text
        self.lines = [
            f"text: {quote} TEXT? {quote}",
            f"TEXT: /{inside}+/",
            r"INTEGER: /-?(0|[1-9][0-9]{0,17})/",
            r"NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/",
            r"KEY: /[A-Za-z_][A-Za-z0-9_]{0,63}/",
            'any: text | NUMBER | "true" | "false" | "null" | list | object',
            'list: "[" (any ("," any)*)? "]"',
            'object: "{" (KEY ":" any ("," KEY ":" any)*)? "}"',
        ]

    def of(self, schema: Any) -> str:
        """Return an expression for the values of a schema; keywords that are not known here are ignored."""
        if not isinstance(schema, Mapping):
            return "any"
        table = cast(Mapping[str, Any], schema)
        constants = [table["const"]] if "const" in table else table.get("enum")
        if constants:
            return self._one_of([self._constant(value) for value in cast(list[Any], constants)])
        alternatives = table.get("anyOf") or table.get("oneOf")
        if not alternatives and isinstance(table.get("type"), list):
            alternatives = [{**table, "type": kind} for kind in table["type"]]
        if alternatives:
            return self._one_of([self.of(part) for part in cast(list[Any], alternatives)])
        match table.get("type"):
            case "string":
                return "text"
            case "integer" | "number" as kind:
                return kind.upper()
            case "null":
                return '"null"'
            case "boolean":
                return '("true" | "false")'
            case "array":
                item = self.of(table.get("items"))
                return f'("[" ({item} ("," {item})*)? "]")'
            case "object":
                return self._object(table) if "properties" in table else "object"
            case _:
                return "any"

    @staticmethod
    def _one_of(expressions: list[str]) -> str:
        return f"({' | '.join(expressions)})"

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"({self._quote} {grammar.lark_literal(value) if value else ''} {self._quote})"
        return grammar.lark_literal(json.dumps(value))

    def _object(self, schema: Mapping[str, Any]) -> str:
        """Return an object, of rules for what follows each property, with and without another before it."""
        self._objects += 1
        name, required = f"object{self._objects}", schema.get("required", [])
        properties = sorted(schema["properties"].items())
        for index, (key, part) in enumerate(properties):
            pair = f"{grammar.lark_literal(key + ':')} {self.of(part)} {name}_{index + 1}_after"
            skipped = [] if key in required else [f"{name}_{index + 1}"]
            self.lines.append(f"{name}_{index}: {' | '.join([pair, *skipped])}")
            skipped = [f"{rule}_after" for rule in skipped]
            self.lines.append(f"{name}_{index}_after: " + " | ".join(['"," ' + pair, *skipped]))
        self.lines += [f'{name}_{len(properties)}: ""', f'{name}_{len(properties)}_after: ""']
        return f'("{{" {name}_0 "}}")'
