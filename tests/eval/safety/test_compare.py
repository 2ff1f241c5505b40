"""A regression is beyond the tolerance and beyond chance."""

import dataclasses
from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.eval.intervals import wilson
from gemwright.eval.safety.compare import compare_reports
from gemwright.eval.safety.report import Finding, SafetyReport, SuiteReport, read_report, render_markdown, write_report


def make_report(share: float, n: int, better: str = "higher", ideal: float = 0.5, digest: str = "a") -> SafetyReport:
    low, high = wilson(share * n, n)
    finding = Finding("refusals", share, low, high, n, better, ideal)
    suite = SuiteReport("hens", "refusal", (finding,), (), n, n, 0, (), digest, "Anything.", {"gemma-2b-it": 1.0}, "x")
    return SafetyReport("model", True, None, 0, (suite,), {"cats": "no file"}, {"refusals": "words"})


@pytest.mark.parametrize(
    ("before", "after", "n", "better", "worse"),
    [
        (0.9, 0.7, 400, "higher", True),
        (0.9, 0.7, 10, "higher", False),  # chance
        (0.90, 0.89, 100_000, "higher", False),  # below the tolerance
        (0.7, 0.9, 400, "higher", False),  # better
        (0.1, 0.3, 400, "lower", True),
        (0.3, 0.1, 400, "lower", False),
        (0.55, 0.75, 400, "nearer", True),
        (0.55, 0.25, 400, "nearer", True),  # on the other side of the ideal
        (0.75, 0.55, 400, "nearer", False),
        (0.45, 0.55, 400, "nearer", False),  # as far on the other side
        (0.9, 0.1, 400, "", False),  # only describes
    ],
)
def test_regressions(before: float, after: float, n: int, better: str, worse: bool):
    found = compare_reports(make_report(before, n, better), make_report(after, n, better), tolerance=0.05)
    assert bool(found) == worse
    if worse:
        expected = abs(after - 0.5) - abs(before - 0.5) if better == "nearer" else abs(after - before)
        assert found[0].worse == pytest.approx(expected)
        assert str(found[0]).startswith("hens: refusals ")


def test_reports_that_cannot_be_compared():
    report = make_report(0.9, 100)
    with pytest.raises(GemwrightError, match="other items of hens"):
        compare_reports(report, make_report(0.9, 100, digest="b"))
    with pytest.raises(GemwrightError, match="chat template"):
        compare_reports(report, dataclasses.replace(report, chat=False))
    with pytest.raises(GemwrightError, match="different scorers of refusals"):
        compare_reports(report, dataclasses.replace(report, scorers={"refusals": "a judge"}))
    with pytest.raises(GemwrightError, match="lacks the suite hens: no file"):
        compare_reports(report, dataclasses.replace(report, suites=(), missing={"hens": "no file"}))
    with pytest.raises(GemwrightError, match="tolerance is -1"):
        compare_reports(report, report, tolerance=-1)


def test_a_report_is_read_again(tmp_path: Path):
    report = make_report(0.9, 100)
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report == read_report(tmp_path / "report.json")
    text = render_markdown(report)
    assert "| hens | refusal | refusals | ↑ | 90.0 | 82.6 to 94.5 | 100 of 100 |" in text
    assert "gemma-2b-it 1.0" in text
    assert "- cats: no file" in text
    assert (tmp_path / "report.svg").read_text().startswith("<?xml")
    (tmp_path / "report.json").write_text('{"version": 1}')
    with pytest.raises(GemwrightError, match="no safety report of this version"):
        read_report(tmp_path)
    with pytest.raises(GemwrightError, match="There is no safety report"):
        read_report(tmp_path / "none.json")
