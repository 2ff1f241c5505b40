"""A whole run: plan it or continue it, do its stages, and write the report."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.data.filters import decontamination, duplicates, parts, report
from gemwright.data.filters.engines import Engine, Progress, Stage
from gemwright.data.filters.recipe import Recipe, check
from gemwright.data.filters.screen import screen
from gemwright.data.sources import digest, find_files
from gemwright.errors import DataError

WORK = ".work"
"""Folder of what a run needs until it ends, in its output."""
SHARE_BYTES = 4 << 30
"""Bytes of input for which signatures are compared at once."""
_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A run that is planned.

    Attributes:
        out: Folder of the output.
        recipe: Settings.
        layout: Segments of each part of the input.
        nbytes: Bytes of the input.
        evaluation: Number of files and items of the evaluation sets, and of items that are too short to be looked for.
        stamp: What tells this run from others.
    """

    out: Path
    recipe: Recipe
    layout: Sequence[parts.Part]
    nbytes: int
    evaluation: tuple[int, int, int]
    stamp: str

    @property
    def work(self) -> Path:
        """Folder of what the run needs until it ends."""
        return self.out / WORK

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return report.read_stamp(self.out) == self.stamp

    def screened(self) -> list[Path]:
        """Return the files of the records of each part that stay."""
        return [self.work / "screen" / f"{part:05d}.jsonl" for part in range(len(self.layout))]

    def stages(self) -> list[Stage]:
        """Return the stages, to be done in order."""
        compared = [(band, share) for band in duplicates.bands(self.recipe) for share in range(self.shares())]
        return [
            Stage("screen", len(self.layout), partial(_screen, self), self.work / "screen"),
            Stage("compare", len(compared), partial(_compare, self, compared), self.work / "compare"),
            Stage("join", 1, partial(_join, self, compared), self.work / "join"),
            Stage("write", len(self.layout), partial(_write, self), self.work / "write"),
        ]

    def shares(self) -> int:
        """Return the number of shares of a band that are compared one by one, a power of two."""
        return 1 << max(0, (self.nbytes - 1) // SHARE_BYTES).bit_length()


def plan(
    inputs: Sequence[Path],
    out: Path,
    recipe: Recipe,
    evaluation: Sequence[Path] = (),
    part_bytes: int = parts.PART_BYTES,
) -> Plan:
    """Plan a run, or find the one in its folder.

    Args:
        inputs: Files and folders of records.
        out: Folder of the output: absent, empty, or of the same run.
        recipe: Settings.
        evaluation: Files and folders of evaluation sets, for the step `decontamination`.
        part_bytes: Size of a part, in bytes.

    Raises:
        DataError: An input, a setting or the folder cannot be used.
    """
    check(recipe)
    if bool(evaluation) != ("decontamination" in recipe.steps):
        raise DataError(
            "The step decontamination and the option --decontaminate need each other; give both or neither."
        )
    files, sets = find_files(inputs), decontamination.find_items(evaluation) if evaluation else []
    layout = parts.cut(files, part_bytes)
    stamp = _stamp(files, recipe, sets, part_bytes)
    nbytes = sum(file.stat().st_size for file in files)
    work = out / WORK
    if (work / "plan.json").exists() or report.read_stamp(out) is not None:
        found = report.read_stamp(out) or json.loads((work / "plan.json").read_bytes())
        if (found if isinstance(found, str) else found["stamp"]) != stamp:
            raise DataError(f"{out} holds a run with other data or settings; choose another folder.")
        counts = (0, 0, 0) if isinstance(found, str) else found["evaluation"]
        return Plan(out, recipe, layout, nbytes, (counts[0], counts[1], counts[2]), stamp)
    if out.exists() and (not out.is_dir() or any(path.name != WORK for path in out.iterdir())):
        raise DataError(f"{out} exists and holds no run; choose an empty or new folder.")
    counts = (len(sets), *_write_index(sets, work / "index")) if sets else (0, 0, 0)
    with replace_file(work / "plan.json") as file:
        file.write(json.dumps({"stamp": stamp, "evaluation": counts}).encode())
    return Plan(out, recipe, layout, nbytes, counts, stamp)


def _stamp(files: Sequence[Path], recipe: Recipe, sets: Sequence[Path], part_bytes: int) -> str:
    """Return a hash of what a run depends on: names, sizes and times of its data, and settings."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in [*files, *sets]]
    classifiers = [Path(setting[0]) for setting in (recipe.toxicity, recipe.quality) if setting is not None]
    return hashlib.sha256(
        json.dumps([_VERSION, stats, asdict(recipe), part_bytes, digest(classifiers)]).encode()
    ).hexdigest()


def _write_index(sets: Sequence[Path], folder: Path) -> tuple[int, int]:
    index, items, short = decontamination.build_index(sets)
    for name, hashes in index.items():
        with replace_file(folder / f"{name}.npy") as file:
            np.save(file, hashes)
    return items, short


def _screen(run: Plan, task: int) -> dict[str, Any]:
    return screen(run.layout[task], run.recipe, run.work / "index", run.screened()[task])


def _compare(run: Plan, compared: Sequence[tuple[int, int]], task: int) -> dict[str, Any]:
    signatures = [path.with_suffix(".signatures") for path in run.screened()]
    band, share = compared[task]
    return duplicates.compare(signatures, band, share, run.shares(), _pairs(run, task))


def _join(run: Plan, compared: Sequence[tuple[int, int]], task: int) -> dict[str, Any]:
    pairs = [(band == 0, _pairs(run, number)) for number, (band, _) in enumerate(compared)]
    return duplicates.join(pairs, run.work / "join" / "dropped.npy")


def _write(run: Plan, task: int) -> dict[str, Any]:
    first = Path(run.layout[task][0].path)
    ending = ".jsonl.gz" if first.suffix.lower() == ".gz" else ".jsonl"
    target = run.out / "data" / f"{first.name.partition('.')[0]}-{task:05d}{ending}"
    return duplicates.drop(task, run.screened(), run.layout, run.work / "join" / "dropped.npy", run.recipe, target)


def _pairs(run: Plan, task: int) -> Path:
    return run.work / "compare" / f"{task:05d}.npy"


def run(planned: Plan, engine: Engine, progress: Progress) -> dict[str, Any]:
    """Do what is left of a run, and return its report.

    Args:
        planned: The run.
        engine: What does the tasks.
        progress: Called after each task.
    """
    if not planned.is_done:
        stages = planned.stages()
        for stage in stages:
            engine(stage, progress)
        by_name = {stage.name: stage for stage in stages}
        report.write(planned, by_name["screen"], by_name["write"])
    shutil.rmtree(planned.work, ignore_errors=True)
    for unfinished in (planned.out / "data").glob("gemwright-*.partial"):
        unfinished.unlink(missing_ok=True)
    return report.read(planned.out)
