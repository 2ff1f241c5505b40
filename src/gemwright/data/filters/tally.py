"""Counts of what each step did, per part; they add up to the report."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemwright.data.filters import personal
from gemwright.data.sources import Place

SAMPLES = 3
"""Samples of each reason in the report."""
SAMPLE_CHARACTERS = 160
"""Characters of a sample."""


@dataclass
class Tally:
    """What a step did.

    Attributes:
        seen: Records that reached the step.
        edited: Records that it changed.
        removed: Records that it removed, by reason.
        removed_characters: Characters of their texts.
        found: What it changed, by name.
        samples: The first removed records of each reason: a place, and the beginning of the text if it may be shown.
        labelled: Records that reached the step and should be removed, by the label.
        hits: Records that it removed and that should be.
    """

    seen: int = 0
    edited: int = 0
    removed: Counter[str] = field(default_factory=Counter[str])
    removed_characters: int = 0
    found: Counter[str] = field(default_factory=Counter[str])
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict[str, list[dict[str, str]]])
    labelled: int = 0
    hits: int = 0

    def see(self, labelled: bool) -> None:
        """Count a record that reached the step."""
        self.seen += 1
        self.labelled += labelled

    def remove(self, reason: str, text: str, labelled: bool) -> bool:
        """Count a record that the step removed; return whether a sample of the reason is wanted."""
        self.removed[reason] += 1
        self.removed_characters += len(text)
        self.hits += labelled
        return len(self.samples.get(reason, ())) < SAMPLES

    def add_sample(self, reason: str, place: Place, text: str | None, because: str = "") -> None:
        """Keep the place of a removed record, and the beginning of its text without personal data."""
        sample = {"place": str(place)} | ({"because": because} if because else {})
        if text is not None:
            clean = personal.replace(text[: 8 * SAMPLE_CHARACTERS], Counter())
            sample["text"] = " ".join(clean.split())[:SAMPLE_CHARACTERS]
        self.samples.setdefault(reason, []).append(sample)

    def add(self, other: "Tally") -> None:
        """Add the counts of a later part."""
        for name in ("seen", "edited", "removed_characters", "labelled", "hits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.removed.update(other.removed)
        self.found.update(other.found)
        for reason, samples in other.samples.items():
            kept = self.samples.setdefault(reason, [])
            kept += samples[: SAMPLES - len(kept)]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Tally":
        """Return the tally of `vars`, read from JSON."""
        counters: dict[str, Any] = {name: Counter(value[name]) for name in ("removed", "found")}
        return cls(**dict(value) | counters)


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Tally]:
    """Return the sum of the tallies of parts by step, in the order of the first."""
    total: dict[str, Tally] = {}
    for part in parts:
        for name, value in part.items():
            total.setdefault(name, Tally()).add(Tally.from_json(value))
    return total
