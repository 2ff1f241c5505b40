"""Compare two reports, and find what became worse."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemwright.errors import GemwrightError
from gemwright.eval.intervals import Interval, difference
from gemwright.eval.safety.report import Finding, SafetyReport, shown

TOLERANCE = 0.02
"""Worsening that is no regression, as a share; in nats for differences of likelihood."""


@dataclass(frozen=True)
class Regression:
    """A metric that became worse by more than the tolerance, beyond what chance explains.

    Attributes:
        suite, metric: Its name.
        before, after: The two findings.
        worse: The worsening: how far the metric moved in the bad direction.
        interval: Interval of 95% of the worsening.
    """

    suite: str
    metric: str
    before: Finding
    after: Finding
    worse: float
    interval: Interval

    def __str__(self) -> str:
        """One line without a text of the sets."""
        low, high = (shown(self.before, bound) for bound in self.interval)
        return (
            f"{self.suite}: {self.metric} {shown(self.before, self.before.value)} -> "
            f"{shown(self.after, self.after.value)}, worse by {shown(self.before, self.worse)} ({low} to {high})"
        )


def compare_reports(before: SafetyReport, after: SafetyReport, tolerance: float = TOLERANCE) -> list[Regression]:
    """Return the metrics that became worse.

    A regression exceeds the tolerance, and the interval of its difference excludes no change. The two reports count as
    independent samples; as they asked the same items, the true interval is narrower, so that small regressions can stay
    unnoticed. With many metrics, about one in forty that did not change passes the second condition by chance, so that
    a gate needs the tolerance.

    Raises:
        GemwrightError: The reports did not ask the same items in the same way, or the later lacks a suite.
    """
    if not 0 <= tolerance < 1:
        raise GemwrightError(f"The tolerance is {tolerance}; it is a share from 0 to below 1.")
    if before.chat != after.chat:
        raise GemwrightError("One report used a chat template and the other did not; compare models of one kind.")
    # A scorer is the same if its name is; how well it agrees is a description.
    for name in sorted(before.scorers.keys() | after.scorers.keys()):
        one, other = before.scorers.get(name), after.scorers.get(name)
        if one != other:
            raise GemwrightError(f"The reports have different scorers of {name} ({one}, {other}); use the same one.")
    later = {suite.name: suite for suite in after.suites}
    found: list[Regression] = []
    for suite in before.suites:
        other = later.get(suite.name)
        if other is None:
            reason = after.missing.get(suite.name, "it was not asked for")
            raise GemwrightError(f"The later report lacks the suite {suite.name}: {reason}; run it on the same data.")
        if suite.digest != other.digest:
            raise GemwrightError(f"The reports asked other items of {suite.name}; use the same data, limit and seed.")
        found += _compare_findings(suite.name, suite.findings, {one.metric: one for one in other.findings}, tolerance)
    return found


def _compare_findings(
    suite: str, before: Sequence[Finding], after: dict[str, Finding], tolerance: float
) -> list[Regression]:
    found: list[Regression] = []
    for one in before:
        if not one.better:
            continue
        other = after.get(one.metric)
        if other is None:  # undefined for its answers, as is the share of right answers that change if none is right
            continue
        worse, interval = _worsening(one, other)
        if worse > tolerance and interval[0] > 0:
            found.append(Regression(suite, one.metric, one, other, worse, interval))
    return found


def _worsening(before: Finding, after: Finding) -> tuple[float, Interval]:
    """Return how much worse a metric became, with the interval."""
    (first, first_interval), (second, second_interval) = _badness(before), _badness(after)
    return second - first, difference(first, first_interval, second, second_interval)


def _badness(finding: Finding) -> tuple[float, Interval]:
    """Return a value that is higher when the metric is worse, with its interval."""
    value, low, high = finding.value, finding.low, finding.high
    if finding.better == "lower":
        return value, (low, high)
    if finding.better == "higher":
        return -value, (-high, -low)
    ends = abs(low - finding.ideal), abs(high - finding.ideal)
    inside = low <= finding.ideal <= high
    return abs(value - finding.ideal), (0.0 if inside else min(ends), max(ends))
