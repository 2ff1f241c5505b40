"""`gemwright init`: a model from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import render
from gemwright.cli.imports import import_jax


def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.json", help="Configuration in the form of transformers.")],
    tokenizer: Annotated[
        str,
        typer.Argument(metavar="TOKENIZER", help="tokenizer.model or tokenizer.json, or a folder or model with one."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.")],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the weights.")] = 0,
) -> None:
    """Make a model with random weights, to be trained from nothing.

    The folder is that of any other model; `gemwright train` with the method full trains it.
    """
    render.status(f"Making {folder.name} ...")
    import_jax()
    from gemwright.checkpoint.create import create
    from gemwright.model.params import parameter_count

    made = create(config, tokenizer, folder, seed)
    render.write(f"{folder}\n")
    render.note(f"{parameter_count(made):,} parameters, float32.")
