"""Read and check the keys of untrusted configuration files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gemwright.errors import CheckpointError

MAX_LAYERS = 1024
MAX_SIZE = 1 << 24
"""Maximum width, number of heads, size of the vocabulary and the like."""
MAX_POSITIONS = (1 << 31) - 1
"""Maximum context and window: positions are int32."""
MAX_NUMBER = 1e30
"""Maximum of positive real numbers, and the inverse of their minimum: well within float32."""


def cannot_write(why: str) -> CheckpointError:
    """Return the error for a model that a format cannot describe."""
    return CheckpointError(f"This model cannot be written in the chosen format: {why}.")


@dataclass(frozen=True)
class ConfigReader:
    """A reader of an untrusted file's keys, which checks every value.

    Methods raise a `CheckpointError` if a value is not allowed, or if a key without a default is missing.

    Attributes:
        data: The keys. A key whose value is null counts as present.
        where: The file, for error messages.
        prefix: Prefix of each key in error messages.
    """

    data: Mapping[str, Any]
    where: str
    prefix: str = ""

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        """Return a whole number."""
        value = self.data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.error(key, f"a whole number from {least} to {most}")

    def real(
        self, key: str, default: float | None = None, *, least: float = 1 / MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """Return a positive number."""
        value = self.data.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)  # NaN fails both comparisons
        raise self.error(key, f"a number from {least} to {most}")

    def optional_real(self, key: str, default: float | None = None) -> float | None:
        """Return a positive number, or None for null."""
        return None if self.data.get(key, default) is None else self.real(key, default)

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.data.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, "true or false")

    def choice(self, key: str, *choices: Any) -> Any:
        """Return one of a few values; the first is the default."""
        value = self.data.get(key, choices[0])
        # 1 == True: the types must agree too.
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        raise self.error(key, " or ".join("null" if choice is None else repr(choice) for choice in choices))

    def mapping(self, key: str, *known: str) -> "ConfigReader":
        """Return a group of keys, empty if it is absent or null; raise if it has keys that are not `known`."""
        value = self.data.get(key)
        if value is None:
            value = {}
        group = ConfigReader(value, self.where, f"{self.prefix}{key}.")
        if not isinstance(value, Mapping):
            raise self.error(key, "a group of keys")
        for other in value:
            if known and other not in known:
                raise group.error(other, f"absent: the supported keys are {', '.join(known)}")
        return group

    def error(self, key: str, wanted: str) -> CheckpointError:
        """Return the error for a key that is missing or has a value that is not allowed."""
        found = _shown(self.data[key]) if key in self.data else "missing"
        return CheckpointError(
            f"{self.where}: key '{self.prefix}{key:.80}' is {found}, and it must be {wanted}; "
            "correct the file or download it again."
        )

    def unsupported(self, feature: str, supported: Iterable[str]) -> CheckpointError:
        """Return the error for a valid file that needs an unsupported feature."""
        return CheckpointError(f"{self.where}: {feature} is not supported yet; supported are {', '.join(supported)}.")

    def unsupported_scaling(self, kind: Any) -> CheckpointError:
        """Return the error for a scaling of the rotary embedding that is not supported."""
        name = "YaRN" if kind == "yarn" else f"RoPE scaling of type {_shown(kind)}"
        return self.unsupported(name, ("linear RoPE scaling", "none"))


def _shown(value: Any) -> str:
    """Return a short text for any value."""
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
