"""A bill of materials of a model: CycloneDX with a model card.

Source: the schema of CycloneDX 1.6 (cyclonedx.org/docs/1.6/json).
"""

import json
import uuid
from pathlib import Path
from typing import Any

from gemwright.release.publishing.answers import Answers
from gemwright.release.publishing.notices import License
from gemwright.release.publishing.provenance import hash_file, list_files, to_iso
from gemwright.release.publishing.records import Records
from gemwright.release.publishing.results import percent
from gemwright.release.publishing.subject import Subject

BOM = "bom.cdx.json"
_MODEL, _BASE = "model", "base"


def write_bom(
    folder: Path,
    name: str,
    subject: Subject,
    records: Records,
    answers: Answers,
    weights_license: License,
    version: str,
) -> None:
    """Write the bill of materials of all files that are in a folder.

    Args:
        folder: The folder of the release.
        name: Name of the model.
        subject: What is published.
        records: What was recorded about it.
        answers: What a person said about it.
        weights_license: Its license.
        version: Version of gemwright.
    """
    files = [_describe_file(file, folder) for file in list_files(folder)]
    data = _describe_data(records)
    licenses = [{"license": {"name": weights_license.name, "url": weights_license.url}}]
    model = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": name,
        "licenses": licenses,
        "modelCard": _describe_model(subject, records, answers, data),
    }
    base = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": subject.base,
        "licenses": licenses,
        "externalReferences": [
            {"type": "distribution", "url": f"https://huggingface.co/{subject.base.partition(':')[0]}"}
        ],
    }
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": to_iso(subject.written),
            "tools": {"components": [{"type": "application", "name": "gemwright", "version": version}]},
            "component": model,
        },
        "components": [base, *data, *files],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_BASE, *(one["bom-ref"] for one in data)]},
            {"ref": _BASE, "dependsOn": []},
        ],
    }
    (folder / BOM).write_text(json.dumps(bom, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe_file(file: Path, folder: Path) -> dict[str, Any]:
    name = file.relative_to(folder).as_posix()
    hashes = [{"alg": "SHA-256", "content": hash_file(file)}]
    return {"type": "file", "bom-ref": f"file/{name}", "name": name, "hashes": hashes}


def _describe_data(records: Records) -> list[dict[str, Any]]:
    files = {
        (Path(path).name, digest if run.algorithm == "sha256" else "")
        for run in records.runs
        for path, digest in {**run.data, **run.held_out}.items()
    }
    return [
        {
            "type": "data",
            "bom-ref": f"data/{number}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": digest}] if digest else [],
            "data": [{"type": "dataset", "name": name}],
        }
        for number, (name, digest) in enumerate(sorted(files))
    ]


def _describe_model(subject: Subject, records: Records, answers: Answers, data: list[dict[str, Any]]) -> dict[str, Any]:
    considerations: dict[str, Any] = {
        "useCases": [answers.intended_use] if answers.intended_use else [],
        "technicalLimitations": [answers.limitations] if answers.limitations else [],
        "ethicalConsiderations": [{"name": answers.risks}] if answers.risks else [],
    }
    return {
        "modelParameters": {
            "task": "image-text-to-text" if subject.sees else "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": subject.family.name if subject.family else subject.base,
            "datasets": [{"ref": one["bom-ref"]} for one in data],
            "inputs": [{"format": "text"}, *([{"format": "image"}] if subject.sees else [])],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": f"{score.benchmark}: {score.metric}, {score.shots}-shot, percent",
                    "value": str(percent(score.value)),
                    "confidenceInterval": {
                        "lowerBound": str(percent(score.low)),
                        "upperBound": str(percent(score.high)),
                    },
                }
                for run in records.benchmarks
                for score in run.scores
            ]
        },
        "considerations": {name: value for name, value in considerations.items() if value},
    }
