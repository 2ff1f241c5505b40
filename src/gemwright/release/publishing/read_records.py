"""Read what runs, filters and evaluations recorded about a model.

The files are those that `gemwright tune`, `filter`, `eval` and `memorize` write. They are told apart by their fields.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemwright.checkpoint.files.json_file import read_json
from gemwright.errors import GemwrightError
from gemwright.release.publishing.records import (
    Benchmarks,
    Filtering,
    FilterStep,
    Memorization,
    MemorizedShare,
    Metrics,
    Record,
    Records,
    Run,
    Safety,
    SafetyScore,
    Score,
    Source,
    Tested,
)

NAMES = ("run.json", "results.json", "report.json")
"""Names of the files of records."""
MAX_DEPTH = 3
"""Maximum number of folders between a given folder and a record."""
_METRICS = "metrics.jsonl"
T = TypeVar("T")


def find_records(model: Path, given: Iterable[Path] = ()) -> Records:
    """Return what was recorded beside a model, and what is in other files and folders.

    Args:
        model: The model. If it is the result of a run, what is in the folder of the run belongs to it.
        given: Files or folders.

    Raises:
        GemwrightError: A given path does not exist or has no record, or a file is damaged.
    """
    folder = model if model.is_dir() else model.parent
    is_result = (folder.parent / "run.json").is_file()
    paths = dict.fromkeys(_list(folder.parent if is_result else folder))
    for path in given:
        listed = list(_list(path))
        if not listed:
            raise GemwrightError(f"{path} has no record of a run, a filter or an evaluation; give its folder.")
        paths |= dict.fromkeys(listed)
    unique = {path.resolve(): path for path in paths}.values()
    found = [record for path in unique if (record := read_record(path)) is not None]

    def of(kind: type[T]) -> tuple[T, ...]:
        return tuple(record for record in found if isinstance(record, kind))

    return Records(of(Run), of(Filtering), of(Benchmarks), of(Safety), of(Memorization))


def _list(path: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the files of records of a folder, or a file itself."""
    if path.is_file():
        yield path
    elif path.is_dir():
        entries = sorted(path.iterdir())
        yield from (entry for entry in entries if entry.name in NAMES and entry.is_file())
        if depth < MAX_DEPTH:
            for entry in entries:
                if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                    yield from _list(entry, depth + 1)
    else:
        raise GemwrightError(f"{path} does not exist; give the folder of a run, a filter or an evaluation.")


def read_record(path: Path) -> Record | None:
    """Return the record of a file, or None if it is something else.

    Raises:
        GemwrightError: It is a record and damaged, or no JSON.
    """
    value = read_json(path)
    for fields, parse in _KINDS:
        if fields <= value.keys():
            source = Source(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
            try:
                return parse(source, value)
            except (LookupError, RecursionError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise GemwrightError(
                    f"{path} is a damaged record or of another version ({type(error).__name__}: {error!s:.100}); "
                    "make it again."
                ) from error
    return None


def _parse_run(source: Source, value: Mapping[str, Any]) -> Run:
    return Run(
        source=source,
        version=_text(value.get("gemwright", "")),
        model=_text(value["model"]["name"]),
        digest=_text(value["model"]["digest"]),
        data=_digests(value["data"]),
        held_out=_digests(value["held_out"]),
        algorithm="sha256" if "sha256" in value["data"] else "sha256-of-sha256",
        recipe=dict(value["recipe"]),
        machine=dict(value["machine"]),
        metrics=_read_metrics(source.path.with_name(_METRICS)),
    )


def _digests(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each file: of its content, or in early records of the digest of that."""
    files = data.get("sha256") or data.get("files") or {}
    return {_text(name): _text(digest) for name, digest in files.items()}


def _read_metrics(path: Path) -> Metrics | None:
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    steps = [line for line in lines if line["step"] > 0]
    if not steps:
        return None
    times = [float(line["time"]) for line in steps if line.get("time")]
    return Metrics(
        steps=int(steps[-1]["step"]),
        tokens=sum(int(line["tokens"]) for line in steps),
        learned=sum(int(line["learned"]) for line in steps),
        seconds=sum(float(line["seconds"]) for line in steps),
        loss=_ends(steps, "loss"),
        held_out=_ends(lines, "held_out"),
        memory=max(int(line["memory"]) for line in steps),
        began=min(times, default=None),
        ended=max(times, default=None),
    )


def _ends(lines: Iterable[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """Return the first and the last number of a name."""
    values = [float(line[name]) for line in lines if line.get(name) is not None]
    return (values[0], values[-1]) if values else None


def _parse_filtering(source: Source, value: Mapping[str, Any]) -> Filtering:
    steps = tuple(
        FilterStep(_text(step["step"]), int(step["seen"]), int(step["removed"]), int(step["edited"]))
        for step in value["steps"]
    )
    return Filtering(source, int(value["records"]), int(value["kept"]), steps)


def _parse_tested(value: Mapping[str, Any], chat: Any = None, limit: Any = None) -> Tested:
    return Tested(
        digest=None if value.get("digest") is None else _text(value["digest"])[:16],
        adapters=tuple(_text(name) for name in value.get("adapters", ())),
        dtype=_text(value.get("dtype", "")),
        chat=bool(value.get("chat", chat)),
        limit=_optional(int, value.get("limit", limit)),
    )


def _optional(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _parse_benchmarks(source: Source, value: Mapping[str, Any]) -> Benchmarks:
    scores = tuple(
        Score(
            benchmark=_text(row["benchmark"]),
            task=_text(row["task"]),
            metric=_text(row["metric"]),
            shots=int(row["shots"]),
            value=float(row["value"]),
            low=float(row["low"]),
            high=float(row["high"]),
            count=int(row["count"]),
            of=int(row["of"]),
            published=_optional(float, row.get("published")),
        )
        for row in value["results"]
    )
    return Benchmarks(source, _parse_tested(value["made_with"]), scores)


def _parse_safety(source: Source, value: Mapping[str, Any]) -> Safety:
    scores: list[SafetyScore] = []
    for suite in value["suites"]:
        first = suite["findings"][0]
        scores.append(
            SafetyScore(
                suite=_text(suite["name"]),
                area=_text(suite["area"]),
                metric=_text(first["metric"]),
                better=_text(first["better"]),
                value=float(first["value"]),
                low=float(first["low"]),
                high=float(first["high"]),
                count=int(first["n"]),
                percent=bool(first["percent"]),
                cannot_say=_text(suite["cannot_say"]),
            )
        )
    tested = _parse_tested(value.get("made_with", {}), value["chat"], value["limit"])
    return Safety(source, tested, tuple(scores), tuple(map(_text, value["missing"])))


def _parse_memorization(source: Source, value: Mapping[str, Any]) -> Memorization:
    rows = [*value["sources"], value["total"]]
    shares = tuple(
        MemorizedShare(
            corpus=_text(row["source"]),
            documents=int(row["exact"]["documents"]),
            exact=_share(row["exact"]),
            approximate=_optional(_share, row["approximate"]),
            personal=int(row["with_personal_data"]),
        )
        for row in rows
    )
    tested = _parse_tested(value.get("made_with", {}), chat=False, limit=value["limit"])
    return Memorization(source, tested, int(value["prefix"]), int(value["continuation"]), shares)


def _share(value: Mapping[str, Any]) -> tuple[float, float, float]:
    return float(value["share"]), float(value["low"]), float(value["high"])


def _text(value: Any) -> str:
    """Return a text of a record.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


_KINDS: tuple[tuple[set[str], Callable[[Source, Mapping[str, Any]], Record]], ...] = (
    ({"model", "data", "held_out", "recipe", "machine"}, _parse_run),
    ({"made_with", "results"}, _parse_benchmarks),
    ({"records", "kept", "steps", "stamp"}, _parse_filtering),
    ({"version", "suites", "scorers"}, _parse_safety),
    ({"sources", "total", "prefix", "continuation"}, _parse_memorization),
)
"""The fields that every record of a kind has, and what reads it."""
