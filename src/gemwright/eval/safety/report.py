"""The report of a run: Markdown, JSON and a plot, without any text of the sets or of the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError

VERSION = 1
"""Version of the JSON form."""
MARKDOWN, JSON, PLOT = "report.md", "report.json", "report.svg"
"""Files of a report."""


@dataclass(frozen=True)
class Finding:
    """A metric of a suite with its interval of 95% and its number of items; a share is between 0 and 1."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    better: str
    ideal: float = 0.0
    percent: bool = True


@dataclass(frozen=True)
class GroupFinding:
    """The headline of a suite in a part of its items."""

    group: str
    value: float
    n: int


@dataclass(frozen=True)
class SuiteReport:
    """What a suite found.

    Attributes:
        name, area: As in the table of suites.
        findings: Its metrics; the first one is the headline.
        groups: The headline in parts of the items.
        items: Number of items that were asked.
        available: Number of items in the files.
        left_out: Number of drawn items that do not fit in the model's context.
        skipped: Files that are not in the form of the set.
        digest: Hash of what was asked.
        cannot_say: What must not be concluded.
        published: Scores of the reports in percent, by variant.
        protocol: How those were measured.
    """

    name: str
    area: str
    findings: tuple[Finding, ...]
    groups: tuple[GroupFinding, ...]
    items: int
    available: int
    left_out: int
    skipped: tuple[str, ...]
    digest: str
    cannot_say: str
    published: Mapping[str, float] = field(default_factory=dict[str, float])
    protocol: str = ""


@dataclass(frozen=True)
class SafetyReport:
    """The suites of a model.

    Attributes:
        model: Its name.
        chat: Whether prompts were messages in its chat template, or else plain text.
        limit: Maximum number of items of a suite, or None.
        seed: Seed of the items.
        suites: The suites that ran.
        missing: Why others did not run.
        scorers: What scored the replies.
        made_with: What the replies depend on; see `gemwright.eval.made_with`.
    """

    model: str
    chat: bool
    limit: int | None
    seed: int
    suites: tuple[SuiteReport, ...]
    missing: Mapping[str, str]
    scorers: Mapping[str, Any]
    made_with: Mapping[str, Any] = field(default_factory=dict[str, Any])


def write_report(report: SafetyReport, out: Path) -> None:
    """Write a report into a folder as Markdown, JSON and an SVG plot."""
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"version": VERSION, **asdict(report)}, indent=1, ensure_ascii=False) + "\n"
    for name, text in ((JSON, content), (MARKDOWN, render_markdown(report))):
        beside = out / f"{name}.part"
        beside.write_text(text, encoding="utf-8")
        beside.replace(out / name)
    from gemwright.eval.safety.plot import draw

    draw(report, out / PLOT)


def read_report(file: Path) -> SafetyReport:
    """Return a report from its JSON file, or from the folder that holds it.

    Raises:
        GemwrightError: The file does not exist or is no report of this version.
    """
    file = file / JSON if file.is_dir() else file
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value.pop("version") != VERSION:
            raise KeyError
        suites = tuple(
            SuiteReport(
                **one
                | {
                    "findings": tuple(Finding(**finding) for finding in one["findings"]),
                    "groups": tuple(GroupFinding(**group) for group in one["groups"]),
                    "skipped": tuple(one["skipped"]),
                }
            )
            for one in value["suites"]
        )
        return SafetyReport(**value | {"suites": suites})
    except OSError:
        raise GemwrightError(f"There is no safety report {file}; run the safety suite with --out first.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GemwrightError(f"{file} is no safety report of this version; run the safety suite again.") from None


ARROWS = {"higher": "↑", "lower": "↓", "nearer": "→", "": ""}
"""Marks of the better direction."""


def shown(finding: Finding, value: float) -> str:
    """Return a value of a finding as it is shown."""
    return f"{100 * value:.1f}" if finding.percent else f"{value:.2f}"


def direction(finding: Finding) -> str:
    """Return the better direction of a finding."""
    mark = ARROWS[finding.better]
    return f"{mark} {shown(finding, finding.ideal)}" if finding.better == "nearer" else mark


def render_markdown(report: SafetyReport) -> str:
    """Return a report as Markdown."""
    asked = "messages in its chat template" if report.chat else "plain text, which it continues"
    drawn = f"at most {report.limit} items of each, drawn with seed {report.seed}" if report.limit else "all items"
    lines = [
        f"# Safety of {report.model}",
        "",
        f"{len(report.suites)} suites, {drawn}. Prompts are {asked}; likelihoods are those of plain text.",
        "Values in percent unless they are differences in nats, with intervals of 95%: Wilson's for shares, else a",
        "bootstrap over sources. ↑ higher is better, ↓ lower, → nearer to the number.",
        "",
        *(f"- {name}: {_describe(value)}" for name, value in report.scorers.items()),
        "",
        "| suite | area | metric | | value | 95% | items |",
        "|---|---|---|---|---|---|---|",
    ]
    for suite in report.suites:
        for number, one in enumerate(suite.findings):
            name, area = (suite.name, suite.area) if number == 0 else ("", "")
            interval = f"{shown(one, one.low)} to {shown(one, one.high)}"
            count = f"{one.n} of {suite.available}" if number == 0 else f"{one.n}"
            cells = (name, area, one.metric, direction(one), shown(one, one.value), interval, count)
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What each suite cannot say", ""]
    lines += [f"- **{suite.name}**: {suite.cannot_say}{_left_out(suite)}" for suite in report.suites]
    lines += _render_published(report.suites) + _render_groups(report.suites)
    if report.missing:
        lines += ["", "## Not run", "", *(f"- {name}: {reason}" for name, reason in report.missing.items())]
    return "\n".join(lines) + "\n"


def _describe(value: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, Mapping) else str(value)


def _left_out(suite: SuiteReport) -> str:
    unfit = f" {suite.left_out} items did not fit in the context." if suite.left_out else ""
    return unfit + (f" Files in another form: {', '.join(suite.skipped)}." if suite.skipped else "")


def _render_published(suites: Sequence[SuiteReport]) -> list[str]:
    compared = [suite for suite in suites if suite.published]
    if not compared:
        return []
    lines = ["", "## Published scores", "", "| suite | here | published | protocol |", "|---|---|---|---|"]
    for suite in compared:
        one = suite.findings[0]
        scores = ", ".join(f"{variant} {score}" for variant, score in suite.published.items())
        lines.append(f"| {suite.name} | {shown(one, one.value)} | {scores} | {suite.protocol} |")
    return lines


def _render_groups(suites: Sequence[SuiteReport]) -> list[str]:
    grouped = [suite for suite in suites if suite.groups]
    if not grouped:
        return []
    lines = ["", "## Parts of the suites", "", "Headline metric by part, with the number of items.", ""]
    for suite in grouped:
        parts = ", ".join(f"{one.group} {shown(suite.findings[0], one.value)} ({one.n})" for one in suite.groups)
        lines.append(f"- **{suite.name}**: {parts}")
    return lines
