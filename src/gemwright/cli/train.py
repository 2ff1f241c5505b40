"""`gemwright train`: run what a file describes."""

from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.cli.tune import PACKAGES, SHOWN_DOCUMENTS
from gemwright.runtime.installation import require_extra


def train(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Description of the run: see docs/pretrain.md.")],
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue a run although its data, model or settings changed.")
    ] = False,
    show_data: Annotated[
        bool, typer.Option("--show-data", help="Print some documents token by token, learned ones marked, and exit.")
    ] = False,
    threads: o.ThreadsOption = None,
) -> None:
    """Train as a file describes: pretraining, mixtures, objectives.

    Run the same command again to continue. `gemwright tune` is the short way to tune a model on one kind of data.
    """
    require_extra("train", PACKAGES, "Training")
    render.status("Reading the data ...")
    import_jax()
    from gemwright.cli import tune_report
    from gemwright.train.description import prepare_described, read_description
    from gemwright.train.run import train as train_run

    prepared = prepare_described(read_description(run))
    if show_data:
        tune_report.show_data(prepared, SHOWN_DOCUMENTS)
        return
    render.facts(tune_report.describe(prepared), render.err())
    render.status("Compiling ...")
    result = train_run(prepared, tune_report.ProgressLines(), tune_report.note, accept_changes=accept_changes)
    for line in tune_report.describe_shares(prepared):
        render.note(line)
    tune_report.print_result(prepared, result)
