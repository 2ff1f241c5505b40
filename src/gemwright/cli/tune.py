"""`gemwright tune`: tune a model on your own data."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax

if TYPE_CHECKING:
    from gemwright.train.run import Progress


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path, name listed by `gemwright models`, or hub id.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA", help="Files or folders: JSONL, text or Parquet.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the results.")],
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of steps instead of epochs.")] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the data.")] = 1,
    length: Annotated[int, typer.Option(min=8, metavar="N", help="Tokens of a sequence.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences of a step.")] = 4,
    learning_rate: Annotated[float | None, typer.Option(metavar="R", help="Highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the order of the data.")] = 0,
    threads: o.ThreadsOption = None,
) -> None:
    """Tune a model on your own data."""
    import_jax()
    from gemwright.train.recipe import Recipe
    from gemwright.train.run import prepare, train

    recipe = Recipe(
        steps=steps, epochs=epochs, length=length, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    run = prepare(model, data, out, recipe)
    render.note(f"{run.dataset.statistics} {run.dataset.kind}")
    target = train(run, _report)
    render.note(f"wrote {target}")


def _report(progress: "Progress") -> None:
    speed = progress.tokens / progress.seconds
    print(f"{progress.step}/{progress.steps} loss {progress.loss:.4f} {speed:.0f} tokens/s", file=sys.stderr)  # noqa: T201
