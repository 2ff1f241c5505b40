"""Paths of what the tests publish, and stand-ins for the texts of licenses."""

from dataclasses import dataclass
from pathlib import Path

BASE = "google/gemma-3-270m"
"""What the tests call the base model, whose weights are tiny and random."""


@dataclass(frozen=True)
class Made:
    """A tuned adapter with its records.

    Attributes:
        folder: The folder of all.
        adapter: The adapter.
        base: Its base model.
    """

    folder: Path
    adapter: Path
    base: Path

    @property
    def evaluation(self) -> Path:
        """Results of benchmarks."""
        return self.folder / "evaluation"

    @property
    def safety(self) -> Path:
        """Results of safety suites."""
        return self.folder / "safety"

    @property
    def records(self) -> list[Path]:
        """All records that are not in the folder of the run."""
        return [self.evaluation, self.safety, self.folder / "clean"]


def make_terms(path: Path) -> Path:
    """Write a page with the words by which a copy of the terms is known."""
    path.write_text(
        f"<html><script>menu</script><h1>Gemma Terms\nof <b>Use</b></h1>{'Model Derivatives and more. ' * 100}</html>"
    )
    return path
