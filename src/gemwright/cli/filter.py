"""`gemwright filter`: clean training data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemwright.cli import render
from gemwright.errors import GemwrightError
from gemwright.runtime import machine
from gemwright.runtime.installation import require_extra

if TYPE_CHECKING:
    pass

PACKAGES = ("sklearn", "scipy", "py3langid", "phonenumbers")
"""Packages of the extra `filter`."""


def filter_data(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="Files or folders: JSON lines, CSV, TSV, Parquet or text.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the results; a run in it is continued.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Steps, instead of the default ones and those that an option below asks for: language, "
            "gopher-repetition, gopher-quality, c4, fineweb, quality, toxicity, decontamination, personal, exact, "
            "minhash.",
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Keep the texts of a language, such as en.")
    ] = None,
    personal: Annotated[
        Literal["replace", "remove"],
        typer.Option(help="Replace personal data by names such as [EMAIL], or remove their records."),
    ] = "replace",
    toxicity: Annotated[
        str | None,
        typer.Option(metavar="FILE[=P]", help="Remove texts that a classifier finds, from probability P on."),
    ] = None,
    quality: Annotated[
        str | None, typer.Option(metavar="FILE[=P]", help="Keep texts that a classifier finds, from probability P on.")
    ] = None,
    decontaminate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Remove texts with items of evaluation sets: files or folders; may be repeated."
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field with the text. Default: by the kind of record.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=A,B,...", help="Records that should be removed, to measure precision and recall by."
        ),
    ] = None,
    train_classifier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead of filtering, train a classifier that finds the records of --label."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of processes. Default: all cores.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Work on this machine, or on the Ray cluster of RAY_ADDRESS.")
    ] = "local",
) -> None:
    """Filter training data and report what was removed.

    Writes FOLDER/data, which `gemwright tune` reads, and a report of what each step removed and why. Run the same
    command again to continue.
    """
    require_extra("filter", PACKAGES, "Filtering")
    from gemwright.data.filters import engines
    from gemwright.data.filters.recipe import DEFAULT, STEPS, Recipe
    from gemwright.data.filters.run import plan, run

    if train_classifier is not None:
        _train(inputs, train_classifier, text_field, _parse_label(label))
        return
    if out is None:
        raise GemwrightError("There is no folder for the results; add --out FOLDER.")
    asked = {"language": language, "toxicity": toxicity, "quality": quality, "decontamination": decontaminate}
    wanted = {*DEFAULT, *(name for name, value in asked.items() if value)} if steps is None else set(steps.split(","))
    recipe = Recipe(
        steps=tuple(sorted(wanted, key=lambda name: STEPS.index(name) if name in STEPS else -1)),
        language=language,
        personal=personal,
        toxicity=_parse_classifier(toxicity),
        quality=_parse_classifier(quality),
        text_field=text_field,
        label=_parse_label(label),
    )
    render.status("Reading the data ...")
    planned = plan(inputs, out, recipe, decontaminate or ())
    chosen = engines.run_on_ray() if engine == "ray" else engines.run_locally(workers or machine.cores())
    report = run(planned, chosen, _show_progress)
    _print_report(report, out)


def _parse_classifier(text: str | None) -> tuple[str, float | None] | None:
    """Return the file and the probability of `FILE[=P]`."""
    if text is None or Path(text).exists():
        return None if text is None else (text, None)
    name, separator, number = text.rpartition("=")
    try:
        probability = float(number) if separator else -1.0
    except ValueError:
        probability = -1.0
    if not separator:
        return text, None
    if not 0 <= probability <= 1:
        raise GemwrightError(f"The probability of {text!r:.200} is not a number from 0 to 1; write FILE=0.5.")
    return name, probability


def _parse_label(text: str | None) -> tuple[str, tuple[str, ...]] | None:
    """Return the field and the values of `FIELD=A,B,...`."""
    if text is None:
        return None
    field, separator, values = text.partition("=")
    if not separator or not values:
        raise GemwrightError(f"--label is {text!r:.200}; write a field and its values, such as class=0,1.")
    return field, tuple(values.split(","))


def _train(inputs: list[Path], path: Path, text_field: str | None, label: tuple[str, tuple[str, ...]] | None) -> None:
    """Train a classifier, write it, and print its precision and recall."""
    if label is None:
        raise GemwrightError("A classifier needs records with a label; add --label, such as class=0,1.")
    if path.suffix != ".npz":
        raise GemwrightError(f"{path} must end with .npz; choose another name.")
    from gemwright.cli.options import check_output
    from gemwright.data.filters import classifier
    from gemwright.data.filters.training import read_labelled

    check_output(path)
    texts, labels = read_labelled(inputs, text_field, label)
    render.status("Training ...")
    found, quality = classifier.train(texts, labels)
    classifier.save(found, path)
    rows = [
        ("records", f"{len(texts):,}, {sum(labels):,} of the class; {quality.records:,} held out to measure"),
        ("threshold", f"{found.threshold:.3f}"),
        ("precision", f"{quality.precision:.3f}"),
        ("recall", f"{quality.recall:.3f}"),
        ("AUC", f"{quality.auc:.3f}"),
    ]
    render.facts(rows, render.out())


def _show_progress(stage: str, done: int, tasks: int) -> None:
    render.status(f"{stage}: {done:,} of {tasks:,} parts")


def _print_report(report: dict[str, Any], out: Path) -> None:
    records, kept = report["records"], report["kept"]
    rows = [
        (step["step"], f"{step['removed']:,} of {step['seen']:,} removed" + _edited(step)) for step in report["steps"]
    ]
    render.facts([*rows, ("kept", f"{kept:,} of {records:,} records ({kept / max(1, records):.1%})")], render.out())
    render.note(f"Records: {out / 'data'}. What was removed and why: {out / 'report.md'}, {out / 'removed.jsonl'}.")


def _edited(step: dict[str, Any]) -> str:
    return f", {step['edited']:,} edited" if step["edited"] else ""
