"""Filtered data as a release: Croissant metadata with the extension for responsible AI, and a card.

Sources: docs.mlcommons.org/croissant/docs/croissant-spec.html (1.0) and croissant-rai-spec.html (1.0).
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemwright import __version__
from gemwright.checkpoint.files.atomic import create_folder
from gemwright.data.sources import read_records
from gemwright.errors import GemwrightError
from gemwright.release.publishing.answers import Answers, read_answers
from gemwright.release.publishing.provenance import hash_file, write_sums
from gemwright.release.publishing.read_records import read_record
from gemwright.release.publishing.records import Filtering
from gemwright.release.publishing.results import day

FILE, CARD = "croissant.json", "README.md"
_DATA = "data"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that every Croissant file has."""
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "sc:Boolean"),
    (int, "sc:Integer"),
    (float, "sc:Float"),
    (str, "sc:Text"),
)


def is_filtered_data(folder: Path) -> bool:
    """Return whether a folder is the result of `gemwright filter`."""
    report = folder / "report.json"
    return (folder / _DATA).is_dir() and report.is_file() and isinstance(read_record(report), Filtering)


def prepare_data(folder: Path, out: Path, name: str | None, answers: Path | None) -> Answers:
    """Make the folder of a release of filtered data, completely or not at all.

    Args:
        folder: The result of `gemwright filter`.
        out: The folder to make.
        name: Name of the data; by default that of the folder.
        answers: A file of answers, with at least `data` and `data_license`.

    Returns:
        The answers.

    Raises:
        GemwrightError: Personal data were not looked for, what the data are and their license is not answered, or the
            folder exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GemwrightError(f"{out} exists; choose another name, or remove it first.")
    filtering = read_record(folder / "report.json")
    assert isinstance(filtering, Filtering)
    said = read_answers(answers)
    if said.data is None or said.data_license is None:
        raise GemwrightError("Data need an answer to data and data_license; add --answers FILE (docs/release.md).")
    if "personal" not in {step.name for step in filtering.steps}:
        raise GemwrightError(f"{folder} was not searched for personal data; filter with the step personal.")
    files = sorted(file for file in (folder / _DATA).iterdir() if file.is_file() and not file.name.endswith(".partial"))
    title = name or out.resolve().name
    with create_folder(out, sum(file.stat().st_size for file in files)) as temporary:
        (temporary / _DATA).mkdir()
        for file in files:
            shutil.copyfile(file, temporary / _DATA / file.name)
        document = describe_data(temporary, title, said, filtering)
        (temporary / FILE).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(render_card(title, said, filtering), encoding="utf-8")
        write_sums(temporary)
    return said


def describe_data(folder: Path, name: str, answers: Answers, filtering: Filtering) -> dict[str, Any]:
    """Return the Croissant metadata of the JSON lines in a folder."""
    files = sorted((folder / _DATA).iterdir())
    removed = sum(step.removed for step in filtering.steps)
    steps = ", ".join(f"{step.name} ({step.removed:,} removed, {step.edited:,} edited)" for step in filtering.steps)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": answers.summary or answers.data,
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "license": answers.data_license,
        "url": answers.contact or "https://huggingface.co/datasets",
        "version": "1.0.0",
        "datePublished": day(time.time()),
        **({"citeAs": answers.citation} if answers.citation else {}),
        **({"creator": {"@type": "sc:Organization", "name": answers.authors}} if answers.authors else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": f"{_DATA}/{file.name}",
                "name": file.name,
                "contentUrl": f"{_DATA}/{file.name}",
                "contentSize": f"{file.stat().st_size} B",
                "encodingFormat": "application/jsonlines",
                "sha256": hash_file(file),
            }
            for file in files
        ],
        "recordSet": [_describe_records(file, f"records-{number}") for number, file in enumerate(files)],
        "rai:dataCollection": answers.data,
        "rai:dataPreprocessingProtocol": f"gemwright {__version__} filter: {steps}",
        "rai:personalSensitiveInformation": "Found by patterns and replaced or removed; names are not found.",
        "rai:dataLimitations": answers.limitations or f"Not stated. {removed:,} records were removed.",
    }


def _describe_records(file: Path, name: str) -> dict[str, Any]:
    record = next(iter(read_records([file])), None)
    fields: Mapping[str, Any] = {} if record is None else record.fields
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{field}",
                "name": field,
                "dataType": next((kind for python, kind in _TYPES if isinstance(value, python)), "sc:Text"),
                "source": {"fileObject": {"@id": f"{_DATA}/{file.name}"}, "extract": {"column": field}},
            }
            for field, value in fields.items()
        ],
    }


def render_card(name: str, answers: Answers, filtering: Filtering) -> str:
    """Return the card of the data in Markdown, with the hub's metadata."""
    from huggingface_hub import DatasetCardData

    known = answers.data_license or ""
    is_url = "/" in known
    more: dict[str, Any] = {"license_link": known} if is_url else {}
    metadata = DatasetCardData(
        license="other" if is_url else known.lower(),
        language=list(answers.languages) if answers.languages else None,
        pretty_name=name,
        **more,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(_lines(name, answers, filtering)) + "\n"


def _lines(name: str, answers: Answers, filtering: Filtering) -> Iterator[str]:
    yield from (f"# {name}", "", str(answers.data), "", f"License: {answers.data_license}", "", "## Filtering", "")
    yield f"{filtering.kept:,} of {filtering.records:,} records stayed."
    yield from ("", "| step | records | removed | edited |", "| --- | ---: | ---: | ---: |")
    for step in filtering.steps:
        yield f"| {step.name} | {step.seen:,} | {step.removed:,} | {step.edited:,} |"
    yield from ("", "Personal data were looked for by patterns, which do not find names.", "")
    yield f"`{FILE}` describes the files and their fields (Croissant 1.0)."
