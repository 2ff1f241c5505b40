"""The settings of a run, and the steps that they make."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemwright.data.filters import classifier, decontamination, heuristics, personal
from gemwright.data.filters.language import find_language
from gemwright.data.sources import Record
from gemwright.errors import DataError

MIN_LANGUAGE = 0.65
"""Least probability of the language that is wanted; that of FineWeb."""
PAGES = ("gopher-quality", "gopher-repetition", "c4", "fineweb")
"""Steps for web pages, which leave conversations, instructions and other kinds of records alone."""
STEPS = ("language", *PAGES, "quality", "toxicity", "decontamination", "personal", "exact", "minhash")
"""All steps, in the order in which they are applied."""
DEFAULT = ("gopher-quality", "gopher-repetition", "fineweb", "personal", "exact", "minhash")
"""Steps that need no option. `c4` is not among them, as it also removes headings and lists from pages."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run.

    Attributes:
        steps: Names of steps, each with its setting below.
        language: Code of the language to keep (ISO 639).
        personal: Whether personal data are replaced by their names in brackets, or their records removed.
        toxicity: File of a classifier of texts to remove, and the least probability, or None for its own.
        quality: The same, of texts to keep.
        text_field: Field that holds the text, or None to find it by the kind of record.
        label: Field and values of the records that should be removed, to measure precision and recall.
    """

    steps: tuple[str, ...] = DEFAULT
    language: str | None = None
    personal: Literal["replace", "remove"] = "replace"
    toxicity: tuple[str, float | None] | None = None
    quality: tuple[str, float | None] | None = None
    text_field: str | None = None
    label: tuple[str, tuple[str, ...]] | None = None

    def is_labelled(self, record: Record) -> bool:
        """Return whether the label says that a record should be removed."""
        return self.label is not None and str(record.fields.get(self.label[0])) in self.label[1]


@dataclass(frozen=True)
class Step:
    """A step that looks at one record at a time.

    Attributes:
        name: Its name.
        judge: Returns why a text is removed, or None.
        edit: Returns an edited text, and counts what it changed; applied before `judge`.
        show: Whether the report may show the texts that it removed.
    """

    name: str
    judge: Callable[[str], str | None] | None = None
    edit: Callable[[str, Counter[str]], str] | None = None
    show: bool = True


def make_steps(recipe: Recipe, index: Path) -> Sequence[Step]:
    """Return the steps of a recipe that look at one record at a time.

    Args:
        recipe: The settings.
        index: The file of `decontamination.build_index`.
    """
    makers: dict[str, Callable[[], Step]] = {
        "language": lambda: Step("language", _judge_language(str(recipe.language))),
        "gopher-quality": lambda: Step("gopher-quality", heuristics.judge_gopher_quality),
        "gopher-repetition": lambda: Step("gopher-repetition", heuristics.judge_gopher_repetition),
        "c4": lambda: Step("c4", heuristics.judge_c4, _edit_c4),
        "fineweb": lambda: Step("fineweb", heuristics.judge_fineweb),
        "quality": lambda: Step("quality", _judge_class(recipe.quality, keep=True)),
        "toxicity": lambda: Step("toxicity", _judge_class(recipe.toxicity, keep=False), show=False),
        "decontamination": lambda: Step("decontamination", _judge_contamination(index)),
        "personal": lambda: (
            Step("personal", None, personal.replace, show=False)
            if recipe.personal == "replace"
            else Step("personal", _judge_personal, show=False)
        ),
    }
    return [makers[name]() for name in STEPS if name in recipe.steps and name in makers]


def is_unsafe(text: str, recipe: Recipe) -> bool:
    """Return whether a classifier of the run finds a text toxic."""
    judge = None if recipe.toxicity is None else _judge_class(recipe.toxicity, keep=False)
    return judge is not None and judge(text) is not None


def check(recipe: Recipe) -> None:
    """Check the settings of a run.

    Raises:
        DataError: A step is unknown or lacks its setting.
    """
    for name in recipe.steps:
        if name not in STEPS:
            raise DataError(f"There is no step {name!r:.60}; use some of {', '.join(STEPS)}.")
    for name in ("language", "toxicity", "quality"):
        if (getattr(recipe, name) is not None) != (name in recipe.steps):
            raise DataError(f"The step {name} and the option --{name} need each other; give both or neither.")
    for setting in (recipe.toxicity, recipe.quality):
        if setting is not None:
            classifier.load(Path(setting[0]))
    if recipe.language is not None:
        from gemwright.data.filters.language import list_languages

        if recipe.language not in (known := list_languages()):
            raise DataError(f"There is no language {recipe.language!r:.60}; use one of {', '.join(known)}.")


def _judge_language(wanted: str) -> Callable[[str], str | None]:
    def judge(text: str) -> str | None:
        language, probability = find_language(text)
        if language != wanted:
            return f"language {language}"
        return None if probability >= MIN_LANGUAGE else "language not certain"

    return judge


def _edit_c4(text: str, counts: Counter[str]) -> str:
    kept = heuristics.keep_c4_lines(text)
    counts["lines removed"] += len(text.splitlines()) - len(kept.splitlines())
    return kept


def _judge_class(setting: tuple[str, float | None] | None, *, keep: bool) -> Callable[[str], str | None]:
    assert setting is not None
    model = classifier.load(Path(setting[0]))
    threshold = model.threshold if setting[1] is None else setting[1]

    def judge(text: str) -> str | None:
        found = bool(model.score([text])[0] >= threshold)
        return None if found == keep else f"probability {'below' if keep else 'from'} {threshold:.3g}"

    return judge


@lru_cache(1)
def _load_index(path: Path) -> Any:
    """Return the arrays of an index, mapped so that all processes share them."""
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}


def _judge_contamination(index: Path) -> Callable[[str], str | None]:
    arrays = _load_index(index)
    return lambda text: "run of words of an evaluation set" if decontamination.is_contaminated(text, arrays) else None


def _judge_personal(text: str) -> str | None:
    found = personal.find(text)
    return found[0][2] if found else None
