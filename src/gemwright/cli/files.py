"""`gemwright convert`, `gemwright quantize` and `gemwright pull`: write and download checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Path, or name of a local model.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New folder, or new .gguf file.")],
    to: Annotated[
        Literal["huggingface", "gguf"],
        typer.Option(help="Format to write: a Hugging Face folder of safetensors, or one GGUF file."),
    ],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"] | None,
        typer.Option(
            help="Data type of the weights. Default: the source's, or float32 if quantised. q8_0 and q4_0: GGUF only."
        ),
    ] = None,
    variant: o.VariantOption = None,
) -> None:
    """Convert a checkpoint and its tokenizer to another format."""
    render.status(f"Converting {Path(source).name} ...")
    import_jax()
    from gemwright.checkpoint.convert import convert as convert_checkpoint
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    with Bar(f"Converting {Path(source).name}") as bar:
        converted = convert_checkpoint(path, target, to, dtype, variant, bar)
    if to == "gguf" and converted.config.vision:
        render.warn("The vision tower was not written: GGUF files hold the decoder only.")
    render.write(f"{target}\n")


def quantize(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Path, or name of a local model.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.")],
    bits: Annotated[
        Literal["8", "4"], typer.Option(help="Bits per weight (plus one 16-bit scale per 32 weights).")
    ] = "8",
    variant: o.VariantOption = None,
) -> None:
    """Quantise a checkpoint to 8-bit or 4-bit weights."""
    render.status(f"Quantising {Path(source).name} ...")
    import_jax()
    from gemwright.checkpoint.quantize import quantize as quantize_checkpoint
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    with Bar(f"Quantising {Path(source).name}") as bar:
        quantize_checkpoint(path, target, 8 if bits == "8" else 4, variant, bar)
    render.write(f"{target}\n")


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Name listed by `gemwright models`, or hub id.")],
) -> None:
    """Download a model from the hub and print its path."""
    render.status(f"Looking for {model} ...")
    from gemwright.cli.loading import find

    render.write(f"{find(model)}\n")
