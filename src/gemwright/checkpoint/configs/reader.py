"""Read the keys of untrusted configuration files: every value is checked as it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemwright.errors import CheckpointError

MAX_LAYERS = 1024
MAX_SIZE = 1 << 24
"""Largest width, number of heads, vocabulary and the like that is believed."""
MAX_POSITIONS = (1 << 31) - 1
"""Largest context and window: positions are int32."""
MAX_NUMBER = 1e30
"""Positive real numbers must lie between 1 / MAX_NUMBER and this, well inside float32."""


def cannot_write(why: str) -> CheckpointError:
    """The error for a model that a format cannot describe."""
    return CheckpointError(f"This model cannot be written in the chosen format: {why}.")


@dataclass(frozen=True)
class ConfigReader:
    """The keys of an untrusted file; every value is checked as it is read.

    Attributes:
        data: The keys. A key whose value is null counts as present.
        where: The file, for messages.
        prefix: What stands before each key in messages.
    """

    data: Mapping[str, Any]
    where: str
    prefix: str = ""

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        """A whole number; the key is required where there is no default."""
        value = self.data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.error(key, f"a whole number from {least} to {most}")

    def real(
        self, key: str, default: float | None = None, *, least: float = 1 / MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """A positive number; the key is required where there is no default."""
        value = self.data.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)  # NaN fails both comparisons
        raise self.error(key, f"a number from {least} to {most}")

    def optional_real(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None for null."""
        return None if self.data.get(key, default) is None else self.real(key, default)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, "true or false")

    def choice(self, key: str, *choices: Any) -> Any:
        """One of a few values, the first of which is the default."""
        value = self.data.get(key, choices[0])
        # 1 == True: the types must agree too.
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        raise self.error(key, " or ".join("null" if choice is None else repr(choice) for choice in choices))

    def mapping(self, key: str, *known: str) -> "ConfigReader":
        """A group of keys, empty where it is absent or null; keys that are not `known` are refused."""
        value = self.data.get(key)
        if value is None:
            value = {}
        group = ConfigReader(value, self.where, f"{self.prefix}{key}.")
        if not isinstance(value, Mapping):
            raise self.error(key, "a group of keys")
        for other in value:
            if known and other not in known:
                raise group.error(other, f"absent, as only {', '.join(known)} are understood there")
        return group

    def error(self, key: str, wanted: str) -> CheckpointError:
        """The error for a key that is missing or holds what it must not."""
        found = _shown(self.data[key]) if key in self.data else "missing"
        return CheckpointError(
            f"{self.where}: key '{self.prefix}{key:.80}' is {found}, and it must be {wanted}; "
            "correct the file or fetch it again."
        )


def _shown(value: Any) -> str:
    """A value for a message: never long, whatever it is."""
    match value:
        case None:
            return "null"
        case bool() | float():
            return repr(value).lower()
        case int():
            return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
        case str():
            return repr(value[:40])
        case _:
            return f"of type {type(value).__name__}"
