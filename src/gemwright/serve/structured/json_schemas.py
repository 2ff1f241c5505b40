"""JSON schemas of clients: limits, so that compiling takes bounded time and memory, and objects without more."""

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

from gemwright.errors import RequestError

MAX_BYTES = 1 << 17
"""Maximum size of a schema or grammar in bytes."""
MAX_VALUES = 5000
"""Maximum number of values in a schema, keys not counted."""
MAX_DEPTH = 64
"""Maximum nesting of a schema."""
MAX_REPETITION = 10_000
"""Maximum value of keywords such as minItems and maxLength; multipleOf has fewer digits than it."""
MAX_PATTERN_PROPERTIES = 16
"""Maximum number of entries of patternProperties, of which each pair is compared."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_COMBINED = ("pattern", "format", "properties", "patternProperties", "items", "prefixItems")


def check(schema: Mapping[str, Any], param: str) -> None:
    """Refuse a schema that is too large or deep, repeats too often, or combines patterns.

    Raises:
        RequestError: It exceeds the limits of this module.
    """
    patterns = 0
    for index, (value, depth) in enumerate(_walk(schema)):
        if index >= MAX_VALUES or depth > MAX_DEPTH:
            raise _error(f"{param} has more than {MAX_VALUES} values or {MAX_DEPTH} levels.", param)
        if isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            _check_numbers(table, param)
            patterns += isinstance(table.get("pattern"), str) + _pattern_properties(table, param)
    # Whether some text matches several patterns takes a time that is exponential in their number.
    if patterns > 1 and _combines_schemas(schema):
        raise _error(f"{param} combines schemas and has {patterns} patterns, which is not supported.", param)
    if (size := len(json.dumps(schema))) > MAX_BYTES:
        raise _error(f"{param} has {size} bytes, and at most {MAX_BYTES} are supported.", param)


def close(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema whose objects have no other properties than those that it names, where it does not say.

    A schema that combines others with `allOf` is returned as it is, as each of them may name some of the properties.
    """
    return schema if _combines_schemas(schema) else cast(Mapping[str, Any], _close(schema))


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    table = dict(cast(Mapping[str, Any], schema))
    for key in ("properties", "$defs", "definitions"):
        if isinstance(parts := table.get(key), Mapping):
            table[key] = {name: _close(part) for name, part in cast(Mapping[str, Any], parts).items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(parts := table.get(key), list):
            table[key] = [_close(part) for part in cast(list[Any], parts)]
    for key in ("items", "additionalProperties"):
        if key in table:
            table[key] = _close(table[key])
    names, required = table.get("properties"), table.get("required", [])
    says_more = any(key in table for key in ("additionalProperties", "patternProperties", "minProperties"))
    if isinstance(names, Mapping) and isinstance(required, list) and not says_more:
        table["additionalProperties"] = not set(map(str, required)) <= set(names)
    return table


def _combines_schemas(schema: Mapping[str, Any]) -> bool:
    """Return whether some value must match several schemas: those of allOf, or a combination and its neighbors."""
    return any(isinstance(value, Mapping) and _combines(cast(Mapping[str, Any], value)) for value, _ in _walk(schema))


def _walk(schema: Any) -> Iterator[tuple[Any, int]]:
    """Yield every value of a schema and its depth, without recursion."""
    left = [(schema, 1)]
    while left:
        value, depth = left.pop()
        yield value, depth
        if isinstance(value, Mapping):
            left += [(item, depth + 1) for item in cast(Mapping[str, Any], value).values()]
        elif isinstance(value, list | tuple):
            left += [(item, depth + 1) for item in cast(Sequence[Any], value)]


def _combines(table: Mapping[str, Any]) -> bool:
    all_of: Any = table.get("allOf")
    several = isinstance(all_of, list) and len(cast(list[Any], all_of)) > 1
    return several or (any(key in table for key in _COMBINING) and any(key in table for key in _COMBINED))


def _check_numbers(table: Mapping[str, Any], param: str) -> None:
    for key in _COUNTS:
        if isinstance(count := table.get(key), int | float) and not count <= MAX_REPETITION:
            raise _error(f"{key} in {param} is {count}, and at most {MAX_REPETITION} is supported.", param)
    if isinstance(step := table.get("multipleOf"), int | float):
        parts = Decimal(str(step)).normalize().as_tuple()
        exponent = parts.exponent if isinstance(parts.exponent, int) else MAX_REPETITION  # of infinity
        if len(parts.digits) + max(0, exponent) >= len(str(MAX_REPETITION)):
            raise _error(f"multipleOf in {param} is {step}, which has too many digits.", param)


def _pattern_properties(table: Mapping[str, Any], param: str) -> int:
    """Return the number of entries of patternProperties, whose patterns must be simple if there are several."""
    if not isinstance(properties := table.get("patternProperties"), Mapping):
        return 0
    patterns = cast(Mapping[str, Any], properties)
    if len(patterns) > MAX_PATTERN_PROPERTIES or (len(patterns) > 1 and any("{" in pattern for pattern in patterns)):
        limit = f"patternProperties in {param} has more than {MAX_PATTERN_PROPERTIES} entries, or counts repetitions."
        raise _error(limit, param)
    return len(patterns)


def _error(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_grammar", param=param)
