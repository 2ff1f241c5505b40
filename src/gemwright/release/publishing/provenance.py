"""Where the files of a release come from: SHA256SUMS, and an in-toto statement with SLSA's provenance.

Sources: in-toto attestation spec/v1 (statement, resource descriptor); slsa.dev/spec/v1.0/provenance.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.json_file import read_json
from gemwright.errors import GemwrightError
from gemwright.release.publishing.records import Evaluation, Records, Run
from gemwright.release.publishing.subject import Subject

SUMS, STATEMENT = "SHA256SUMS", "provenance.json"
SIGNATURE = "model.sig"
"""The signature of a release, over all its other files."""
KAGGLE = ("model-metadata.json", "model-instance-metadata.json")
"""Files for Kaggle's client, which it does not upload."""
BUILDER, BUILD_TYPE = "pkg:pypi/gemwright", "pkg:pypi/gemwright#release"
"""Names of this program and of what it does, as URIs."""
_WEIGHTS = "gemwrightWeightsDigest"
"""Annotation with the digest of `gemwright.checkpoint.digest`, which is no digest of a file."""


def list_files(folder: Path) -> list[Path]:
    """Return the files that a release publishes, in order.

    Raises:
        GemwrightError: The folder does not exist, or has a link that leads out of it.
    """
    if not folder.is_dir():
        raise GemwrightError(f"{folder} is no folder; give one that `gemwright card` has written.")
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    for file in files:
        if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            raise GemwrightError(f"{file} is no file of the folder; remove it or copy what it leads to.")
    return sorted(file for file in files if file.name not in KAGGLE or file.parent != folder)


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all other files, in the form that `sha256sum -c` reads."""
    files = [file for file in list_files(folder) if file.name not in (SUMS, SIGNATURE)]
    lines = [f"{hash_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its path, from SHA256SUMS.

    Raises:
        GemwrightError: The file is missing or damaged.
    """
    path = folder / SUMS
    try:
        pairs = [line.split("  ", 1) for line in path.read_text("utf-8").splitlines()]
        return {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise GemwrightError(f"{path} is missing or damaged; write the release again with `gemwright card`.") from error


def write_statement(folder: Path, subject: Subject, records: Records, of_base: Records, version: str) -> None:
    """Write the provenance of all files that are in a folder.

    Args:
        folder: The folder of the release.
        subject: What is published.
        records: What was recorded about it.
        of_base: Evaluations of its base model.
        version: Version of gemwright.
    """
    run = records.runs[0] if records.runs else None
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": file.relative_to(folder).as_posix(), "digest": {"sha256": hash_file(file)}}
            for file in list_files(folder)
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "command": "gemwright tune" if run else "gemwright convert",
                    "base": subject.base,
                    **({"recipe": dict(run.recipe)} if run else {}),
                },
                "internalParameters": {
                    "weights": {_WEIGHTS: subject.digest, "written": to_iso(subject.written)},
                    **({"machine": dict(run.machine)} if run else {}),
                },
                "resolvedDependencies": [*_describe_base(subject), *_describe_data(run)],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"gemwright": run.version if run else version}},
                "metadata": _describe_times(run),
                "byproducts": [
                    _describe_evaluation(one, of)
                    for of, group in (("this", records), ("base", of_base))
                    for one in group.evaluations
                ],
            },
        },
    }
    (folder / STATEMENT).write_text(json.dumps(statement, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe_base(subject: Subject) -> list[dict[str, Any]]:
    """Return a descriptor of each file of the base model; of the model by its name if it is not on this machine."""
    repository, _, file = subject.base.partition(":")
    uri = f"https://huggingface.co/{repository}" + (f"/blob/main/{file}" if file else "")
    files = [
        {"name": path.name, "uri": uri, "digest": {"sha256": hash_file(path)}, "annotations": {"role": "base model"}}
        for path in subject.base_files
    ]
    return files or [{"name": subject.base, "uri": uri, "annotations": {"role": "base model, not on this machine"}}]


def _describe_data(run: Run | None) -> list[dict[str, Any]]:
    """Return a descriptor of each data file, by its name without the folder."""
    if run is None:
        return []
    return [
        {"name": Path(path).name, "digest": {run.algorithm: digest}, "annotations": {"role": role}}
        for role, files in (("training data", run.data), ("held-out data", run.held_out))
        for path, digest in files.items()
    ]


def _describe_times(run: Run | None) -> dict[str, str]:
    metrics = None if run is None else run.metrics
    if metrics is None or metrics.began is None or metrics.ended is None:
        return {}
    return {"startedOn": to_iso(metrics.began), "finishedOn": to_iso(metrics.ended)}


def _describe_evaluation(evaluation: Evaluation, of: str) -> dict[str, Any]:
    return {
        "name": f"{type(evaluation).__name__.lower()}/{evaluation.source.path.name}",
        "digest": {"sha256": evaluation.source.sha256},
        "annotations": {
            "of": of,
            "written": to_iso(evaluation.source.written),
            **({_WEIGHTS: evaluation.tested.digest} if evaluation.tested.digest else {}),
        },
    }


def to_iso(seconds: float) -> str:
    """Return a time in seconds since 1970 as RFC 3339 in UTC, as SLSA asks for."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_statement(folder: Path) -> Mapping[str, Any]:
    """Return the provenance of a release.

    Raises:
        GemwrightError: It is missing or of another form.
    """
    value = read_json(folder / STATEMENT)
    try:
        definition = value["predicate"]["buildDefinition"]
        required = (value["subject"], definition["internalParameters"]["weights"], value["predicate"]["runDetails"])
    except (KeyError, TypeError) as error:
        raise GemwrightError(
            f"{folder / STATEMENT} is no provenance of a release; write the release again with `gemwright card`."
        ) from error
    return value if all(required) else {}


def find_stale(statement: Mapping[str, Any]) -> list[str]:
    """Return the names of evaluations that are older than the weights, by the times that a statement gives."""
    written = statement["predicate"]["buildDefinition"]["internalParameters"]["weights"]["written"]
    return [
        str(one["name"])
        for one in statement["predicate"]["runDetails"].get("byproducts", [])
        if one["annotations"].get("of") == "this"
        and _WEIGHTS not in one["annotations"]
        and str(one["annotations"]["written"]) < str(written)
    ]
