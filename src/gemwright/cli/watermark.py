"""`gemwright watermark`: make keys; `gemwright detect`: find a watermark in a text."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.cli.score import read_text


def watermark(path: Annotated[Path, typer.Argument(metavar="FILE", help="New file.")]) -> None:
    """Make the keys of a watermark.

    `generate` and `chat` mark texts with them, and `detect` finds them again. Keep the file secret: whoever has it can
    mark texts as yours. transformers' SynthIDTextWatermarkingConfig takes the same settings.
    """
    from gemwright.generate.watermark import create_watermark

    create_watermark(path)
    render.write(f"{path}\n")


def detect(
    watermark: Annotated[Path, typer.Option(metavar="FILE", help="Keys to look for, from `gemwright watermark`.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text; - reads standard input. Default: --file or that.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="File of the text; - for standard input.")] = None,
    model: o.ModelOption = "gemma-3-270m",
    as_json: o.JsonOption = False,
) -> None:
    """Look for a watermark in a text.

    It prints how likely such a text is without the watermark. Of --model only the vocabulary is read, which must be
    that of the model that may have written the text.
    """
    from gemwright.generate.watermark import detect as detect_in
    from gemwright.generate.watermark import read_watermark

    keys, content = read_watermark(watermark), read_text(text, file)
    import_jax()
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.cli.loading import find
    from gemwright.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(open_checkpoint(find(model)).vocabulary())
    found = detect_in(keys, tokenizer.encode(content))
    if as_json:
        return render.write_json(asdict(found))
    rows = [
        ("tokens", f"{found.tokens:,}, {found.ngrams:,} n-grams counted"),
        ("mean g value", f"{found.mean:.4f} (without the watermark about {found.expected:.4f})"),
        ("p-value", f"{found.p_value:.2g}, the probability of such a mean without the watermark"),
    ]
    return render.facts(rows, render.out())
