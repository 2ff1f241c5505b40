"""The safety suite of `gemwright eval`: it runs, is compared with an earlier report, and fails on a regression."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gemwright.cli import render
from gemwright.cli.screening import load_screening
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from gemwright.eval.harness import HarnessModel
    from gemwright.eval.safety.answers import EvaluatedModel
    from gemwright.eval.safety.report import SafetyReport
    from gemwright.eval.safety.suite import ReplyScorer

LOCK = "safety.lock"
"""A file of every folder of safety evaluations, locked by the process that writes to it."""


def load_scorer(shield: str | None, policy: Path | None, judge: str | None) -> "ReplyScorer | None":
    """Return what scores replies beside the words of refusals: a classifier, or an endpoint `URL#MODEL`.

    Raises:
        GemwrightError: Both are given, an option that belongs to one of them is missing, or as for `load_shield`.
    """
    from gemwright.eval.endpoint import parse_endpoint
    from gemwright.eval.safety.judges import EndpointJudge, PolicyScorer

    screening = load_screening(shield, policy)
    if judge is None:
        return None if screening.shield is None else PolicyScorer(str(shield), screening.shield.score)
    if screening.shield is not None:
        raise GemwrightError("--shield and --judge both score replies; pass one of them.")
    return EndpointJudge(parse_endpoint(judge))


def run(
    model: "HarnessModel",
    data: Path,
    out: Path,
    suites: Sequence[str],
    limit: int | None,
    seed: int,
    scorer: "ReplyScorer | None",
    made_with: Mapping[str, Any],
) -> "SafetyReport":
    """Run safety suites, and write and print their report."""
    from gemwright.eval.safety.report import direction, shown, write_report
    from gemwright.eval.safety.run import run_safety

    report = run_safety(
        cast("EvaluatedModel", model),
        data,
        out,
        suites=suites,
        limit=limit,
        seed=seed,
        scorer=scorer,
        progress=lambda suite, done, total: render.status(f"{suite}: {done:,} of {total:,} ..."),
    )
    report = replace(report, made_with=made_with)
    write_report(report, out)
    for suite in report.suites:
        for finding in suite.findings:
            low, high = (shown(finding, bound) for bound in (finding.low, finding.high))
            value = f"{shown(finding, finding.value)} [{low}, {high}] {direction(finding)}"
            render.write(f"{suite.name:<24} {finding.metric:<28} {value}\n")
    if report.missing:
        render.note(f"Not run: {', '.join(report.missing)}; report.md says why.")
    return report


def read_earlier(folder: Path) -> "SafetyReport":
    """Return the report of an earlier run."""
    from gemwright.eval.safety.report import read_report

    return read_report(folder)


def gate(before: "SafetyReport", after: "SafetyReport", tolerance: float) -> int:
    """Print what became worse than in an earlier report, and return the exit code: 1 on a regression."""
    from gemwright.eval.safety.compare import compare_reports

    regressions = compare_reports(before, after, tolerance)
    for regression in regressions:
        render.write(f"Regression: {regression}\n")
    render.note(f"{len(regressions)} regressions beyond a tolerance of {100 * tolerance:g} points")
    return 1 if regressions else 0
