"""`gemwright compare`: judge the answers of models side by side."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.runtime.installation import require_extra

if TYPE_CHECKING:
    from gemwright.api import Model
    from gemwright.eval.compare.run import Plan

PACKAGES = ("httpx", "matplotlib")
"""Packages of the extra `eval` that comparing needs."""


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Path, name or hub id, or an endpoint as http://HOST:PORT/v1#MODEL; with settings, as in "
            "NAME,temperature=0,seed=1.",
            autocompletion=o.complete_model,
        ),
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help="Prompts: JSON lines, JSON, CSV, TSV, Parquet, or text, one a line.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the results; a comparison in it is continued.")
    ],
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL#MODEL", help="Model that judges, at an endpoint. Default: you, on a local page."),
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text that tells the judge what is better, instead of ours.")
    ] = None,
    max_tokens: o.MaxTokensOption = 512,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use the first N prompts only.")] = None,
    threads: o.ThreadsOption = None,
) -> None:
    """Judge the answers of two or more models side by side.

    You judge blind on a local page, or a model judges each pair in both orders. The report has win rates with 95%
    intervals and plots, and ratings of three or more models. Run the same command again to continue.
    """
    require_extra("eval", PACKAGES, "Comparing")
    from gemwright.errors import GemwrightError
    from gemwright.eval.compare.candidates import parse_candidates
    from gemwright.eval.compare.judge import parse_judge
    from gemwright.eval.compare.report import format_duels
    from gemwright.eval.compare.run import Plan
    from gemwright.eval.compare.run import compare as run

    if rubric is not None and judge is None:
        raise GemwrightError("--rubric is for a model that judges; add --judge.")
    text = None if rubric is None else render.read_file(rubric)
    plan = Plan(
        candidates=parse_candidates([render.argument(model) for model in models]),
        prompts=prompts,
        out=out,
        judge=None if judge is None else parse_judge(judge, text),
        max_tokens=max_tokens,
        limit=limit,
    )
    _find_models(plan)
    results = run(plan, _load, _show, lambda address: render.note(f"Judge the answers at {address}"))
    render.clear_status()
    render.write(f"{format_duels(results)}\n{out / 'report.md'}\n")


def _find_models(plan: "Plan") -> None:
    """Find the models of this package before the first of them answers, and download what is missing."""
    from gemwright.cli.loading import find

    for candidate in plan.candidates:
        if isinstance(candidate.model, str):
            find(candidate.model)


def _load(name: str, dtype: str | None) -> "Model":
    from gemwright.cli.loading import load

    return load(name, dtype=dtype, variant=None, verbose=False).model


def _show(title: str, done: int, total: int) -> None:
    line = f"{title}: {done} of {total}"
    if done == total:
        render.note(line)
    else:
        render.status(line[: shutil.get_terminal_size().columns - 1])
