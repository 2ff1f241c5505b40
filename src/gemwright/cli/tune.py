"""`gemwright tune`: tune a model on your own data."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError
from gemwright.runtime.installation import require_extra

SHOWN_DOCUMENTS = 3
"""Number of documents that `--show-data` prints."""
PACKAGES = ("optax", "orbax", "grain")
"""Packages of the extra `train` that tuning needs."""


def tune(
    model: o.ModelArgument,
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA", help="Files or folders: JSON lines, CSV, TSV, Parquet or text.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the results; a run in it is continued.")
    ] = None,
    method: Annotated[
        Literal["lora", "qlora", "full"],
        typer.Option(help="Train an adapter; an adapter over weights as stored, such as 4 bits; or all weights."),
    ] = "lora",
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the updates of LoRA.")] = 16,
    alpha: Annotated[float, typer.Option(metavar="X", help="LoRA multiplies the updates by alpha / rank.")] = 32.0,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Highest learning rate. Default: 2e-4, or 1e-5 for full.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Number of passes over the data.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of steps, instead of epochs.")] = None,
    length: Annotated[int, typer.Option(min=8, metavar="N", help="Number of tokens of a sequence.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Number of sequences of a step.")] = 4,
    accumulation: Annotated[
        int, typer.Option(min=1, metavar="N", help="Compute a step in N parts, which take less memory.")
    ] = 1,
    packing: Annotated[
        Literal["best-fit", "first-fit", "concatenate", "none"],
        typer.Option(help="How documents fill a sequence: whole ones, one after another cut at its end, or one."),
    ] = "best-fit",
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Whether a prompt and its completion are a conversation. Default: as the model."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SHARE",
            help="Data that are not trained on, for a loss on the way: a file, or a share of the records. "
            "Default: 0.02 if they are 200 or more.",
        ),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Prompt to continue on the way; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the updates and of the order of data.")] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="[float32|bfloat16]", help="Data type of activations and frozen weights.")
    ] = "float32",
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue a run although its data, model or settings changed.")
    ] = False,
    show_data: Annotated[
        bool, typer.Option("--show-data", help="Print some documents token by token, learned ones marked, and exit.")
    ] = False,
    mesh: o.MeshOption = None,
    threads: o.ThreadsOption = None,
) -> None:
    """Tune a model on your own data.

    The result is an adapter for `--adapter`, or with --method full a model. Run the same command again to continue.
    """
    require_extra("train", PACKAGES, "Tuning")
    if out is None and not show_data:
        raise GemwrightError("There is no folder for the results; add --out FOLDER.")
    render.status("Reading the data ...")
    import_jax()
    from gemwright.cli import tune_report
    from gemwright.runtime import distributed
    from gemwright.train.recipe import Recipe
    from gemwright.train.run import prepare, train

    distributed.join()
    recipe = Recipe(
        method=cast(Any, method),
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        epochs=epochs,
        steps=steps,
        length=length,
        batch_size=batch_size,
        accumulation=accumulation,
        packing=packing,
        seed=seed,
        dtype=cast(Any, dtype),
    )
    folder = out or Path()
    run = prepare(
        model, data, folder, recipe, chat, _file_or_share(held_out), [render.argument(text) for text in sample or ()]
    )
    if show_data:
        tune_report.show_data(run, SHOWN_DOCUMENTS)
        return
    if distributed.is_first():
        render.facts(tune_report.describe(run), render.err())
        render.status("Compiling ...")
    result = train(run, tune_report.ProgressLines(), tune_report.note, accept_changes=accept_changes, mesh=mesh)
    if distributed.is_first():
        tune_report.print_result(run, result)


def _file_or_share(held_out: str | None) -> Path | float | None:
    """Return the value of `--held-out`: a path, or a share."""
    if held_out is None or Path(held_out).exists():
        return None if held_out is None else Path(held_out)
    try:
        share = float(held_out)
    except ValueError:
        return Path(held_out)
    if not 0 <= share < 1:
        raise GemwrightError(f"--held-out is {held_out}; a share lies between 0 and 1.")
    return share
