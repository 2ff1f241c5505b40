"""What a verification found, check by check."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Result = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        result: Whether it holds; skipped if it does not apply or could not be made.
        detail: What was found, and what a failed check expects instead.
        numbers: The measured numbers and their bounds, by name.
    """

    name: str
    result: Result
    detail: str
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Report:
    """The checks of a file or folder.

    Attributes:
        path: What was verified.
        against: The source that it was compared with; None for its published definition.
        checks: The checks, in the order in which they were made.
    """

    path: Path
    against: Path | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.result != "failed" for check in self.checks)

    @property
    def summary(self) -> str:
        """One line: what holds, or the names of the checks that failed."""
        failed = [check.name for check in self.checks if check.result == "failed"]
        whole = "its published definition" if self.against is None else str(self.against)
        if failed:
            return f"does not conform to {whole}: {', '.join(failed)}"
        skipped = [check.name for check in self.checks if check.result == "skipped"]
        return f"conforms to {whole}" + (f"; not checked: {', '.join(skipped)}" if skipped else "")

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "path": str(self.path),
            "against": None if self.against is None else str(self.against),
            "passed": self.passed,
            "checks": [{**vars(check), "numbers": _finite(check.numbers)} for check in self.checks],
        }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if abs(value) < float("inf") else str(value) for name, value in numbers.items()}


def passes(name: str, ok: bool, detail: str, **numbers: float) -> Check:
    """Return a check that holds or fails."""
    return Check(name, "ok" if ok else "failed", detail, numbers)


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first names as text, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
