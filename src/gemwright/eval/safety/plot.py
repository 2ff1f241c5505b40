"""A forest plot of the headlines: a dot for each suite with its interval."""

from pathlib import Path

from gemwright.eval.safety.report import SafetyReport, SuiteReport, direction

INCHES_PER_SUITE = 0.22
"""Height of a line."""


def draw(report: SafetyReport, file: Path) -> None:
    """Draw a report as SVG or PNG, by the suffix of the file; suites that are not in percent are left out."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    suites = [suite for suite in report.suites if suite.findings[0].percent][::-1]
    figure = Figure(figsize=(8, 1.2 + INCHES_PER_SUITE * len(suites)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    areas = list(dict.fromkeys(suite.area for suite in report.suites))
    for row, suite in enumerate(suites):
        one = suite.findings[0]
        color = f"C{areas.index(suite.area) % 10}"
        axes.plot([100 * one.low, 100 * one.high], [row, row], color=color, linewidth=1.5)
        axes.plot([100 * one.value], [row], "o", color=color, markersize=4)
        if one.better == "nearer":
            axes.plot([100 * one.ideal], [row], "|", color="gray", markersize=8)
    axes.set_yticks(range(len(suites)), [_label(suite) for suite in suites], fontsize=7)
    axes.set_ylim(-0.8, len(suites) - 0.2)
    axes.set_xlabel("percent, with intervals of 95%")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"Safety of {report.model}", fontsize=10)
    figure.savefig(file)


def _label(suite: SuiteReport) -> str:
    one = suite.findings[0]
    return f"{suite.name}: {one.metric} {direction(one)}"
