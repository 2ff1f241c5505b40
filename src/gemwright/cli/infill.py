"""`gemwright infill`: fill in missing code."""

import time
from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.errors import GemwrightError


def infill(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File with a gap at --line; - for standard input.")
    ] = None,
    line: Annotated[int | None, typer.Option(min=1, metavar="N", help="Line of the gap, counted from 1.")] = None,
    column: Annotated[
        int | None,
        typer.Option(min=1, metavar="M", help="Column of the gap, counted from 1. Default: the end of the line."),
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="TEXT", help="Code before the gap.")] = None,
    after: Annotated[str | None, typer.Option(metavar="TEXT", help="Code after the gap.")] = None,
    model: o.ModelOption = "codegemma-2b",
    max_tokens: o.MaxTokensOption = 256,
    temperature: o.TemperatureOption = None,
    seed: o.SeedOption = None,
    stop: o.StopOption = None,
    lookup: o.LookupOption = False,
    draft: o.DraftOption = None,
    adapter: o.AdapterOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    threads: o.ThreadsOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Fill in missing code between a prefix and a suffix.

    Needs CodeGemma 2B or 7B (not 7B-it). Greedy unless --temperature is given.
    """
    if (file is None) == (before is None and after is None) or (file is None) != (line is None):
        raise GemwrightError("The position of the gap is missing; pass FILE and --line, or --before and --after.")
    ends = (before or "", after or "") if file is None or line is None else split(_read(file), line, column)
    from gemwright.cli.generate import announce_settings, announce_speed, record
    from gemwright.cli.loading import load, reading

    with reading(model, dtype) as prefetch:
        wanted = o.settings(
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            temperature=0.0 if temperature is None else temperature,
            lookup=lookup,
        )
        loaded = load(
            model,
            dtype=dtype,
            variant=variant,
            verbose=verbose,
            adapters=o.adapters(adapter),
            draft=draft,
            prefetch=prefetch,
        )
    if verbose:
        announce_settings(loaded.model, wanted)
    start = time.perf_counter()
    completion = loaded.model.infill(*ends, **wanted.options())
    seconds = time.perf_counter() - start
    if as_json:
        render.write_json({"before": ends[0], "after": ends[1]} | record(loaded, completion, wanted))
    else:
        render.write(completion.text + "\n")
    if verbose:
        announce_speed(loaded, [completion], None, seconds)


def _read(file: Path) -> str:
    if str(file) != "-":
        return render.read_file(file)
    text = render.read_stdin(keep_newline=True)
    if text is None:
        raise o.no_text("code")
    return text


def split(text: str, line: int, column: int | None) -> tuple[str, str]:
    """Split a text at a position.

    Args:
        text: The text.
        line: Line of the gap, counted from 1.
        column: Column of the character after the gap, counted from 1; None for the end of the line.

    Returns:
        The text before and after the gap.

    Raises:
        GemwrightError: the text has no such position.
    """
    lines = text.split("\n")
    if line > len(lines):
        raise GemwrightError(f"--line is {line}, but the file has {len(lines)} lines.")
    here = lines[line - 1].removesuffix("\r")
    offset = len(here) if column is None else column - 1
    if offset > len(here):
        raise GemwrightError(f"--column is {column}, but line {line} has {len(here)} characters.")
    start = sum(len(earlier) + 1 for earlier in lines[: line - 1]) + offset
    return text[:start], text[start:]
