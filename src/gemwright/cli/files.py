"""`gemwright convert`, `gemwright quantize` and `gemwright pull`: checkpoints as files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A path, or a model that is on this machine.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="What to make: a folder, or a .gguf file.")],
    to: Annotated[Literal["huggingface", "gguf"], typer.Option(help="The format to write.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"] | None,
        typer.Option(
            help="Of the weights; by default the source's, or float32 if quantised. The last two are GGUF's alone."
        ),
    ] = None,
    variant: o.VariantOption = None,
) -> None:
    """Write a checkpoint in another format, tokenizer included."""
    import_jax()
    from gemwright.checkpoint.convert import convert as convert_checkpoint
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    with Bar(f"Converting {Path(source).name}") as bar:
        converted = convert_checkpoint(path, target, to, dtype, variant, bar)
    if to == "gguf" and converted.config.vision:
        render.warn("A GGUF holds no vision tower, so only the decoder was written.")
    render.write(f"{target}\n")


def quantize(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A path, or a model that is on this machine.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="What to make.")],
    bits: Annotated[Literal["8", "4"], typer.Option(help="Of a weight; 32 weights share a scale of 16 bits.")] = "8",
    variant: o.VariantOption = None,
) -> None:
    """Write a checkpoint with 8-bit or 4-bit weights."""
    import_jax()
    from gemwright.checkpoint.quantize import quantize as quantize_checkpoint
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    with Bar(f"Quantising {Path(source).name}") as bar:
        quantize_checkpoint(path, target, 8 if bits == "8" else 4, variant, bar)
    render.write(f"{target}\n")


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A name of `gemwright models`, or a hub id.")],
) -> None:
    """Fetch a model from the hub and print its path."""
    from gemwright.cli.loading import find

    render.write(f"{find(model)}\n")
