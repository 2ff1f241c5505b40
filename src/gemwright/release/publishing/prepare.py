"""Make the folder of a release from a model: its files with notices in their metadata, a card, and its provenance."""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gemwright import __version__
from gemwright.checkpoint.files.atomic import create_folder
from gemwright.checkpoint.files.description import copy_described
from gemwright.checkpoint.files.formats import PART
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.parts import find_parts
from gemwright.checkpoint.find import ADAPTER_CONFIG
from gemwright.errors import GemwrightError
from gemwright.release.publishing.answers import read_answers
from gemwright.release.publishing.bom import BOM, write_bom
from gemwright.release.publishing.card import CARD, Content, render_card
from gemwright.release.publishing.notices import (
    LICENSE,
    NOTICE,
    describe_change,
    find_license,
    find_terms,
    write_notices,
)
from gemwright.release.publishing.provenance import KAGGLE, SIGNATURE, STATEMENT, SUMS, write_statement, write_sums
from gemwright.release.publishing.read_records import NAMES, find_records
from gemwright.release.publishing.results import day, write_results
from gemwright.release.publishing.subject import Subject, describe_subject, split_evaluations

OWN = {CARD, NOTICE, LICENSE, BOM, STATEMENT, SUMS, SIGNATURE, *KAGGLE}
"""Files that a release has of its own, in place of those of its source."""
Progress = Callable[[str], None]
"""Called with a line about each stage."""


@dataclass(frozen=True)
class Options:
    """What a release is made with beside its model.

    Attributes:
        name: Name of the model; by default that of the folder.
        base: Hub id of the published model that it derives from; by default what was recorded.
        records: Further files and folders of records.
        answers: A file of answers.
        terms: A copy of the terms of the license.
    """

    name: str | None = None
    base: str | None = None
    records: tuple[Path, ...] = ()
    answers: Path | None = None
    terms: Path | None = None


def prepare(model: Path, out: Path, options: Options, progress: Progress = lambda line: None) -> Content:
    """Make the folder of a release, completely or not at all.

    Args:
        model: A model, an adapter, or the folder of an export.
        out: The folder to make.
        options: What it is made with.
        progress: Called on the way.

    Returns:
        What its card says.

    Raises:
        GemwrightError: The model, a record or an answer cannot be read, an evaluation is of other weights, no copy of
            the terms is found, or the folder exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GemwrightError(f"{out} exists; choose another name, or remove it first.")
    progress("Reading what was recorded ...")
    answers = read_answers(options.answers)
    records = find_records(model, options.records)
    subject = describe_subject(model, options.base, records)
    own, of_base = split_evaluations(subject, records)
    weights_license = find_license(subject.base, subject.family)
    files = _list_sources(model)
    terms = find_terms(weights_license, options.terms, [*subject.base_files, *files])
    run = own.runs[0] if own.runs else None
    steps = run.metrics.steps if run and run.metrics else None
    method = str(run.recipe.get("method")) if run else None
    change = describe_change(subject, steps, method, __version__, day(time.time()))
    content = Content(options.name or out.resolve().name, subject, own, of_base, answers, weights_license, change)
    with create_folder(out, sum(file.stat().st_size for file in files)) as temporary:
        for file in files:
            progress(f"Copying {file.name} ...")
            _copy(file, temporary / (file.relative_to(model) if model.is_dir() else file.name), subject, change)
        write_notices(temporary, weights_license, change, terms)
        (temporary / CARD).write_text(render_card(content), encoding="utf-8")
        write_results(temporary, own.benchmarks)
        progress("Computing digests ...")
        write_bom(temporary, content.name, subject, own, answers, weights_license, __version__)
        write_statement(temporary, subject, own, of_base, __version__)
        write_sums(temporary)
    return content


def _list_sources(model: Path) -> list[Path]:
    """Return the files of a model, without hidden ones, records and what a release has of its own.

    Raises:
        GemwrightError: It is a file of several.
    """
    if not model.is_dir() and (len(find_parts(model)) > 1 or PART.search(model.name)):
        raise GemwrightError(f"{model} is one of several parts; convert the model to one file or folder first.")
    files: Iterable[Path] = sorted(model.rglob("*")) if model.is_dir() else [model]
    chosen: list[Path] = []
    for file in files:
        place = file.relative_to(model) if model.is_dir() else Path(file.name)
        is_own = len(place.parts) == 1 and (file.name in OWN or file.name in NAMES)
        if file.is_file() and not is_own and not any(part.startswith(".") for part in place.parts):
            chosen.append(file)
    return chosen


def _copy(file: Path, target: Path, subject: Subject, change: str) -> None:
    """Copy a file, with the notice of the change in its metadata if its format has any."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in (".gguf", ".safetensors"):
        copy_described(file, target, change)
    elif file.name == ADAPTER_CONFIG:
        settings = read_json(file) | {"base_model_name_or_path": subject.base.partition(":")[0]}
        target.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    else:
        shutil.copyfile(file, target)
