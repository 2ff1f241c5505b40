"""`gemwright export`: write a model for another runtime."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemwright.cli import render
from gemwright.cli.imports import import_jax


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path, or name of a local model.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New file or folder.")],
    to: Annotated[
        Literal["litert", "stablehlo", "mlx", "ollama"] | None,
        typer.Option(help="Format to write. Default: that of the suffix of TARGET (.tflite, .litertlm)."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Encoding of the weights: f32, int8 or int4. Default: that of the format.")
    ] = None,
    context: Annotated[int, typer.Option(help="Number of tokens that the exported programs hold.")] = 1024,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run what was written beside its source.")
    ] = True,
) -> None:
    """Export a model to another runtime."""
    from gemwright.release.targets import ExportOptions, choose_target, find_exporter

    chosen = choose_target(target, to)
    render.status(f"Exporting {Path(model).name} ...")
    import_jax()
    from gemwright.cli.loading import find

    source = find(model, may_download=False)
    find_exporter(chosen)(source, target, ExportOptions(weights, context, verify), render.status)
    render.write(f"{target}\n")
