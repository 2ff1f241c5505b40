"""`gemwright memorize`: how much of a corpus a model has memorized."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.tune_report import format_seconds

if TYPE_CHECKING:
    from gemwright.eval.memorization import Finding, Rate

SECONDS = 30.0
"""Time between two lines of progress if standard error is not a terminal, in seconds."""


def memorize(
    model: o.ModelArgument,
    corpus: Annotated[
        list[Path], typer.Argument(metavar="CORPUS", help="Files or folders of documents: JSON lines, text or tables.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the results; an audit in it is continued.")],
    prefix: Annotated[int, typer.Option(min=1, metavar="N", help="Number of tokens of a document to begin with.")] = 50,
    continuation: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of tokens to continue by and to compare.")
    ] = 50,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of documents of each source.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the choice of documents.")] = 0,
    exact_only: Annotated[
        bool, typer.Option("--exact-only", help="Look for exact continuations alone, without generating.")
    ] = False,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    threads: o.ThreadsOption = None,
) -> None:
    """Measure how much of a corpus a model has memorized.

    The first tokens of documents are continued greedily and compared with the tokens that follow in the document.
    """
    from gemwright.data.sources import find_files

    find_files(corpus)
    from gemwright.cli.loading import load

    loaded = load(model, dtype=dtype, variant=variant, verbose=False)
    from gemwright.eval.made_with import describe
    from gemwright.eval.memorization import REPORT, SAMPLES, Settings, audit

    settings = Settings(prefix, continuation, limit, seed, exact_only)
    findings = audit(
        loaded.model, corpus, out, settings, _report_read, Progress(), describe(model, {}, dtype, chat=False)
    )
    render.clear_status()
    for line in format_table(findings):
        render.write(f"{line}\n")
    for kind, count in findings[-1].personal_data.items():
        render.write(f"documents with personal data of the kind {kind}: {count:,}\n")
    render.note(f"{out / REPORT} has the rates, and {out / SAMPLES} every document with its continuation.")


def _report_read(records: int) -> None:
    render.status(f"Reading the corpus: {records:,} records ...")


class Progress:
    """Progress on standard error: a live line on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Report the number of documents done, and of all."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._last = (done, now), now
        start, begin = self._first
        speed = (done - start) / (now - begin) if done > start else 0.0
        line = f"{done:,} of {total:,} documents"
        line += f", {speed:.1f} documents/s, {format_seconds((total - done) / speed)} left" if speed else ""
        render.status(line)
        is_due = now - self._last >= SECONDS or (done == total and done > start)
        if is_due and not sys.stderr.isatty():
            self._last = now
            render.note(line)


def format_table(findings: "Sequence[Finding]") -> list[str]:
    """Return the lines of a table of rates in percent, with their 95% confidence intervals."""
    rows = [("source", "documents", "too short", "exact", "approximate", "with personal data")]
    for one in findings:
        short = f"{one.too_short:,} of {one.tokenized:,}"
        approximate = "-" if one.approximate is None else format_rate(one.approximate)
        name = render.printable(one.source).replace("\n", " ")
        rows.append(
            (name, f"{one.exact.documents:,}", short, format_rate(one.exact), approximate, str(one.with_personal_data))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def format_rate(rate: "Rate") -> str:
    """Return a rate in percent with its interval."""
    return f"{rate.share:.2%} [{rate.low:.2%}, {rate.high:.2%}]" if rate.documents else "-"
