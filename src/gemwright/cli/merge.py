"""`gemwright merge`: average the weights of models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError


def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Paths, names of local models, or adapters; two or more.")
    ],
    to: Annotated[Path, typer.Option(metavar="TARGET", help="New folder, or new .gguf file.")],
    method: Annotated[
        Literal["linear", "slerp"],
        typer.Option(help="A weighted mean, or spherical interpolation of each tensor."),
    ] = "linear",
    weights: Annotated[
        str | None, typer.Option(metavar="X,Y", help="The weight of each model; they sum to 1. Default: equal ones.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model that all were tuned from: what each adds to it is averaged."),
    ] = None,
    eta: Annotated[
        float, typer.Option(metavar="X", help="Share of the average; the rest is that of --base, from 0 to 1.")
    ] = 1.0,
    dtype: Annotated[
        str | None,
        typer.Option(help="As for `gemwright convert`. Default: that of the first model, or float32 if quantized."),
    ] = None,
    variant: o.VariantOption = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare what was written with the average, every weight.")
    ] = True,
) -> None:
    """Average the weights of models of one shape.

    The result has the tokenizer, the chat template and the settings of the first model.
    """
    numbers = None if weights is None else _read_weights(weights)
    render.status("Merging ...")
    import_jax()
    from contextlib import nullcontext

    from gemwright.checkpoint.average import open_average
    from gemwright.checkpoint.convert import source_dtype, write_checkpoint
    from gemwright.cli.loading import Bar, find
    from gemwright.release.verify.conversion import checked_average

    paths = [str(find(model, may_download=False)) for model in models]
    origin = None if base is None else str(find(base, may_download=False))
    average = open_average(paths, method, numbers, origin, eta, variant)
    first = average.first or average
    with checked_average(average, to, _report) if check else nullcontext(), Bar("Merging") as bar:
        to_gguf = "gguf" if to.suffix.lower() == ".gguf" else "huggingface"
        write_checkpoint(average, to, to_gguf, dtype or source_dtype(first), progress=bar)
    render.write(f"{to}\n")


def _read_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise GemwrightError(f"--weights is {text!r:.80}; give a number for each model, such as 0.5,0.5.") from error


def _report(found: object) -> None:
    render.note(f"Checked: {found}.")
