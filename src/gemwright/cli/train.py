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
    mesh: o.MeshOption = None,
    threads: o.ThreadsOption = None,
) -> None:
    """Train as a file describes: pretraining, mixtures, objectives.

    Run the same command again to continue. `gemwright tune` is the short way to tune a model on one kind of data.
    """
    require_extra("train", PACKAGES, "Training")
    render.status("Reading the data ...")
    import_jax()
    from gemwright.cli import tune_report
    from gemwright.runtime import distributed
    from gemwright.train.description import prepare_described, read_description
    from gemwright.train.run import train as train_run

    distributed.join()
    prepared = prepare_described(read_description(run))
    if show_data:
        tune_report.show_data(prepared, SHOWN_DOCUMENTS)
        return
    if distributed.is_first():
        render.facts(tune_report.describe(prepared), render.err())
        render.status("Compiling ...")
    report = tune_report.ProgressLines()
    result = train_run(prepared, report, tune_report.note, accept_changes=accept_changes, mesh=mesh)
    if not distributed.is_first():
        return
    for line in tune_report.describe_shares(prepared):
        render.note(line)
    tune_report.print_result(prepared, result)
