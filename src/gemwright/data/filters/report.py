"""The report of a run: `report.json`, `report.md`, and `removed.jsonl` with a line about each removed record."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.data.filters.engines import Stage
from gemwright.data.filters.tally import Tally, merge
from gemwright.errors import DataError

if TYPE_CHECKING:
    from gemwright.data.filters.run import Plan

_Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95%."""


def wilson_interval(hits: int, trials: int) -> tuple[float, float] | None:
    """Return the interval of 95% of a share, or None without trials. Source: Wilson 1927."""
    if trials == 0:
        return None
    share, weight = hits / trials, _Z * _Z / trials
    center = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, center - half), min(1.0, center + half)


def write(run: "Plan", screened: Stage, written: Stage) -> None:
    """Write the report; `report.json` comes last, and says that the run is done."""
    tallies = merge(result["tallies"] for stage in (screened, written) for result in stage.results())
    kept = sum(result["kept"] for result in written.results())
    value = {
        "records": tallies["read"].seen,
        "kept": kept,
        "labelled": tallies["read"].labelled,
        "bytes": run.nbytes,
        "steps": [_describe(name, tally, run) for name, tally in tallies.items()],
        "stamp": run.stamp,
    }
    with replace_file(run.out / "removed.jsonl") as file:
        for path in run.screened():
            for ending in (".removed", ".dropped"):
                with path.with_suffix(ending).open("rb") as part:
                    shutil.copyfileobj(part, file)
    with replace_file(run.out / "report.md") as file:
        file.write("\n".join(format_report(value, run.recipe.label)).encode(errors="backslashreplace") + b"\n")
    with replace_file(run.out / "report.json") as file:
        file.write(json.dumps(value, indent=1).encode())


def _describe(name: str, tally: Tally, run: "Plan") -> dict[str, Any]:
    removed = sum(tally.removed.values())
    value: dict[str, Any] = {
        "step": name,
        "seen": tally.seen,
        "removed": removed,
        "removed_characters": tally.removed_characters,
        "edited": tally.edited,
        "reasons": dict(sorted(tally.removed.items(), key=lambda item: (-item[1], item[0]))),
        "found": dict(sorted(tally.found.items())),
        "samples": tally.samples,
    }
    if name == "decontamination":
        value |= dict(zip(("files", "items", "items_too_short"), run.evaluation, strict=True))
    if run.recipe.label is not None and name != "read":
        value |= {
            "hits": tally.hits,
            "labelled": tally.labelled,
            "precision": tally.hits / removed if removed else None,
            "precision_interval": wilson_interval(tally.hits, removed),
            "recall": tally.hits / tally.labelled if tally.labelled else None,
            "recall_interval": wilson_interval(tally.hits, tally.labelled),
        }
    return value


def format_report(value: Mapping[str, Any], label: tuple[str, Sequence[str]] | None) -> Iterator[str]:
    """Yield the lines of the report in Markdown."""
    records, kept = value["records"], value["kept"]
    yield "# What was filtered"
    yield ""
    yield f"{kept:,} of {records:,} records stay ({kept / max(1, records):.1%})."
    yield ""
    yield "| step | records | removed | edited |"
    yield "| --- | ---: | ---: | ---: |"
    for step in value["steps"]:
        share = step["removed"] / max(1, step["seen"])
        yield f"| {step['step']} | {step['seen']:,} | {step['removed']:,} ({share:.1%}) | {step['edited']:,} |"
    if label is not None:
        yield from _format_measures(value, label)
    for step in value["steps"]:
        yield from _format_step(step)


def _format_measures(value: Mapping[str, Any], label: tuple[str, Sequence[str]]) -> Iterator[str]:
    wanted = f"`{label[0]}` of {' or '.join(map(_quote, label[1]))}"
    yield ""
    yield f"Records with {wanted} should be removed: {value['labelled']:,} of {value['records']:,}."
    yield "The recall of a step is of those that reach it; intervals are of 95% (Wilson)."
    yield ""
    yield "| step | precision | interval | recall | interval |"
    yield "| --- | ---: | --- | ---: | --- |"
    for step in value["steps"]:
        if "hits" in step:
            texts = [_format_share(step[name], step[f"{name}_interval"]) for name in ("precision", "recall")]
            yield f"| {step['step']} | {texts[0]} | {texts[1]} |"


def _format_share(share: float | None, interval: tuple[float, float] | None) -> str:
    """Return the cells of a share and its interval."""
    return "– | –" if share is None or interval is None else f"{share:.3f} | {interval[0]:.3f} to {interval[1]:.3f}"


def _format_step(step: Mapping[str, Any]) -> Iterator[str]:
    if not (step["reasons"] or step["found"]):
        return
    yield ""
    yield f"## {step['step']}"
    yield ""
    if "items" in step:
        yield f"{step['items']:,} items of {step['files']:,} files; {step['items_too_short']:,} are too short."
        yield ""
    for name, count in step["found"].items():
        yield f"- {name}: {count:,} in the texts"
    for reason, count in step["reasons"].items():
        yield f"- {reason}: {count:,} removed"
        for sample in step["samples"].get(reason, ()):
            because = f", because of {_quote(sample['because'])}" if "because" in sample else ""
            text = f": {_quote(sample['text'])}" if "text" in sample else ""
            yield f"  - {_quote(sample['place'])}{because}{text}"


def _quote(text: str) -> str:
    """Return a text as code in Markdown, without control characters."""
    plain = "".join(character if character.isprintable() else " " for character in text).replace("`", "'")
    return f"`{plain}`"


def read(out: Path) -> dict[str, Any]:
    """Return the report of a folder.

    Raises:
        DataError: It is damaged.
    """
    try:
        value = json.loads((out / "report.json").read_bytes())
        if not isinstance(value, dict) or not isinstance(value.get("stamp"), str):
            raise ValueError("it is no report")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{out / 'report.json'} is damaged ({error}); choose another folder.") from error
    return value


def read_stamp(out: Path) -> str | None:
    """Return what tells the run that made a folder from others, or None if no run in it has ended."""
    return read(out)["stamp"] if (out / "report.json").is_file() else None
