"""`gemwright convert`, `gemwright quantize` and `gemwright pull`: write and download checkpoints."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Path, or name of a local model.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New folder, or new .gguf file.")],
    to: Annotated[
        Literal["huggingface", "gguf"],
        typer.Option(help="Format to write: a Hugging Face folder of safetensors, or one GGUF file."),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16; for GGUF also q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, "
            "q4_1, q4_0, iq4_nl, iq4_xs, q3_k_l, q3_k_m, q3_k_s or q2_k. Default: that of the source, or float32 if "
            "it is quantized."
        ),
    ] = None,
    adapter: o.AdapterOption = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model of an adapter that does not name it.")
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix of llama.cpp (.dat or .gguf), for a quantized GGUF file."),
    ] = None,
    variant: o.VariantOption = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare what was written with its source. Default: its tensors, and a run if they are quantized or "
            "merged and memory suffices.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint or an adapter to another format.

    A checkpoint is written with its tokenizer, and with each --adapter merged.
    """
    render.status(f"Converting {Path(source).name} ...")
    import_jax()
    from gemwright.checkpoint.adapters import find_model, is_adapter
    from gemwright.checkpoint.convert import convert as convert_checkpoint
    from gemwright.checkpoint.convert_adapter import convert_adapter
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    if is_adapter(path):
        if dtype or adapter:
            raise GemwrightError("An adapter is converted as it is; --dtype and --adapter are for models.")
        with ExitStack() as stack:
            if check is not False:
                from gemwright.release.verify.conversion import checked_adapter

                stack.enter_context(checked_adapter(path, target, None if base is None else find(base)))
            convert_adapter(path, target, to, base)
        render.write(f"{target}\n")
        return
    _, adapters = find_model(path, o.adapters(adapter))
    with ExitStack() as stack:
        if check is not False:
            from gemwright.release.verify.conversion import checked_model

            stack.enter_context(checked_model(path, target, dtype, adapters, _report, variant, check))
        with Bar(f"Converting {Path(source).name}") as bar:
            convert_checkpoint(path, target, to, dtype, variant, bar, adapters, imatrix)
    render.write(f"{target}\n")


def _report(found: object) -> None:
    render.note(f"Checked: {found}.")


def quantize(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Path, or name of a local model.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.")],
    bits: Annotated[
        Literal["8", "4"], typer.Option(help="Bits per weight (plus one 16-bit scale per 32 weights).")
    ] = "8",
    variant: o.VariantOption = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare what was written with its source. Default: its tensors, and a run if memory suffices.",
        ),
    ] = None,
) -> None:
    """Quantize a checkpoint to 8-bit or 4-bit weights."""
    render.status(f"Quantizing {Path(source).name} ...")
    import_jax()
    from gemwright.checkpoint.quantize import quantize as quantize_checkpoint
    from gemwright.cli.loading import Bar, find

    path = find(source, may_download=False)
    with ExitStack() as stack:
        if check is not False:
            from gemwright.release.verify.conversion import checked_model

            stack.enter_context(checked_model(path, target, None, {}, _report, variant, check))
        with Bar(f"Quantizing {Path(source).name}") as bar:
            quantize_checkpoint(path, target, 8 if bits == "8" else 4, variant, bar)
    render.write(f"{target}\n")


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Name listed by `gemwright models`, or hub id.")],
) -> None:
    """Download a model from the hub and print its path."""
    render.status(f"Looking for {model} ...")
    from gemwright.cli.loading import find

    render.write(f"{find(model)}\n")
