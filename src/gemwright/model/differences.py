"""What differs between two models, in words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gemwright.model.config import Config


def differences(found: Config, expected: Config) -> Iterator[str]:
    """Yield what differs between two configs, such as "8 heads instead of 4 in 18 layers"."""
    for field in fields(Config):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "layers":
            yield from _layer_differences(found, expected)
        elif field.name == "vision":
            if ours != theirs:
                yield f"vision tower {ours} instead of {theirs}"
        elif ours != theirs:
            yield f"{field.name} {_number(ours)} instead of {_number(theirs)}"


def _layer_differences(found: Config, expected: Config) -> Iterator[str]:
    if len(found.layers) != len(expected.layers):
        yield f"{len(found.layers)} layers instead of {len(expected.layers)}"
        return
    pairs = zip(found.layers, expected.layers, strict=True)
    counted = Counter(change for ours, theirs in pairs for change in _part_differences(ours, theirs, ""))
    yield from (f"{change} in {count} layers" for change, count in counted.items())


def _part_differences(ours: Any, theirs: Any, name: str) -> Iterator[str]:
    if ours == theirs:
        return
    if type(ours) is not type(theirs) or not hasattr(ours, "__dataclass_fields__"):
        yield f"{name} {ours} instead of {theirs}"
        return
    for field in fields(ours):
        yield from _part_differences(getattr(ours, field.name), getattr(theirs, field.name), field.name)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
