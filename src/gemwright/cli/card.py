"""`gemwright card`: make the folder of a release, with a model card."""

from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax


def card(
    model: o.ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder with the files to publish.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model. Default: that of the folder.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Published model that it derives from. Default: what was recorded."),
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Results of eval, memorize or filter, beside those in the folder of the run; may be repeated.",
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file with what only a person can say (docs/release.md)."),
    ] = None,
    terms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Copy of the license. Default: one beside the base model.")
    ] = None,
) -> None:
    """Make a folder to publish, with its model card.

    The card says what the run, the filters and the evaluations recorded. The folder of `gemwright filter` becomes a
    release of its data, with Croissant metadata.
    """
    render.status("Reading what was recorded ...")
    import_jax()
    from gemwright.cli.loading import find
    from gemwright.release.publishing.croissant import is_filtered_data, prepare_data
    from gemwright.release.publishing.prepare import Options, prepare

    if is_filtered_data(Path(model)):
        prepare_data(Path(model), out, name, answers)
        render.write(f"{out}\n")
        return
    options = Options(name, base, tuple(records or ()), answers, terms)
    content = prepare(find(model, may_download=False), out, options, render.status)
    render.write(f"{out}\n")
    if content.answers.unanswered:
        render.note(f"Not answered yet: {', '.join(content.answers.unanswered)} (--answers, docs/release.md).")
