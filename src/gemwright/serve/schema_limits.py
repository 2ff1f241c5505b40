"""Limits of JSON schemas, so that compiling one of a stranger takes bounded time and memory."""

import json
from collections.abc import Mapping, Sequence
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
    values, patterns, combines, left = 0, 0, False, [(cast(Any, schema), 1)]
    while left:
        value, depth = left.pop()
        values += 1
        if values > MAX_VALUES or depth > MAX_DEPTH:
            raise _error(f"{param} has more than {MAX_VALUES} values or {MAX_DEPTH} levels.", param)
        if isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            _check_numbers(table, param)
            patterns += isinstance(table.get("pattern"), str) + _pattern_properties(table, param)
            combines |= _combines(table)
            left += [(item, depth + 1) for item in table.values()]
        elif isinstance(value, list | tuple):
            left += [(item, depth + 1) for item in cast(Sequence[Any], value)]
    # Whether some text matches several patterns takes a time that is exponential in their number.
    if combines and patterns > 1:
        raise _error(f"{param} combines schemas and has {patterns} patterns, which is not supported.", param)
    if (size := len(json.dumps(schema))) > MAX_BYTES:
        raise _error(f"{param} has {size} bytes, and at most {MAX_BYTES} are supported.", param)


def _combines(table: Mapping[str, Any]) -> bool:
    """Return whether a value must match several schemas: those of allOf, or a combination and its neighbors."""
    all_of: Any = table.get("allOf")
    several = isinstance(all_of, list) and len(cast(list[Any], all_of)) > 1
    return several or (any(key in table for key in _COMBINING) and any(key in table for key in _COMBINED))


def _check_numbers(table: Mapping[str, Any], param: str) -> None:
    for key in _COUNTS:
        if isinstance(count := table.get(key), int | float) and not count <= MAX_REPETITION:
            raise _error(f"{key} in {param} is {count}, and at most {MAX_REPETITION} is supported.", param)
    if isinstance(step := table.get("multipleOf"), int | float):
        parts = Decimal(str(step)).as_tuple()
        if (
            not isinstance(parts.exponent, int)
            or not Decimal(parts._replace(exponent=max(0, parts.exponent))) <= 10_000
        ):
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
