"""`gemwright verify`: compare a checkpoint with its published definition, or what was written with its source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax

if TYPE_CHECKING:
    from gemwright.release.verify.report import Report


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Path of a checkpoint, an adapter or an export, or a local name.")
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="What MODEL was made of. Default: the published definition of the model."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model of an adapter that does not name it.")
    ] = None,
    variant: o.VariantOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Compare a model with its definition or its source.

    The exit code is 1 if a check fails, and 2 if a file cannot be read.
    """
    render.status(f"Verifying {Path(model).name} ...")
    import_jax()
    from gemwright.cli.loading import Bar, find, warn_without_kernels
    from gemwright.release.verify.checkpoint import verify_checkpoint
    from gemwright.release.verify.source import verify_against

    path = find(model, may_download=False)
    with Bar(f"Reading {Path(model).name}") as bar:
        if against is None:
            warn_without_kernels()
            report = verify_checkpoint(path, variant, bar)
        else:
            source = find(against, may_download=False)
            named = None if base is None else find(base, may_download=False)
            report = verify_against(path, source, variant, named, bar, render.status)
    if as_json:
        render.write_json(report.to_json())
    else:
        _print(report)
    if not report.passed:
        raise typer.Exit(1)


def _print(report: "Report") -> None:
    width = max(len(check.name) for check in report.checks)
    rows = [(f"{check.result:<8}{check.name:<{width}}", check.detail) for check in report.checks]
    render.facts(rows, render.out())
    render.write(f"\n{report.path} {report.summary}\n")
