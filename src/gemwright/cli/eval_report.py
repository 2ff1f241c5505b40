"""The output of `gemwright eval`: what runs, how far it is, and the scores."""

import time
from typing import TYPE_CHECKING

from gemwright.cli import render
from gemwright.cli.tune_report import format_seconds

if TYPE_CHECKING:
    from gemwright.eval.plan import Plan
    from gemwright.eval.run import Result

MIN_SECONDS = 30.0
"""Least time between two lines of progress that stay, in seconds."""


def print_plan(plan: "Plan") -> None:
    """Print which benchmarks run, and which have no data."""
    render.note(f"Benchmarks: {', '.join(benchmark.title for benchmark in plan.benchmarks)}")
    if plan.missing:
        render.note(f"No files for: {', '.join(benchmark.title for benchmark in plan.missing)}")


def print_result(result: "Result", variant: str) -> None:
    """Print the score of a benchmark beside the published one."""
    score, published = result.score, result.published(variant)
    items = f"{score.count:,} items" if score.count == result.of else f"{score.count:,} of {result.of:,} items"
    line = f"{result.benchmark.title:<20} {result.metric}, {result.shots} shots, {items}: {100 * score.value:.1f} "
    line += f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    if published is not None:
        line += f", published {published:g}, {'within' if result.agrees(variant) else 'outside'} the interval"
    render.write(f"{line}\n")


class ProgressLine:
    """Reports of requests on standard error: a live line on a terminal, and some lines that stay."""

    def __init__(self) -> None:
        self._title = ""
        self._start = self._last = time.monotonic()
        self._done = 0

    def begin(self, title: str) -> None:
        """Begin a benchmark."""
        self._title, self._done = title, -1
        render.status(f"{title}: preparing ...")

    def __call__(self, kind: str, done: int, total: int) -> None:
        """Report how many requests are answered."""
        now = time.monotonic()
        if self._done < 0:  # what a run before has answered costs nothing
            self._start, self._last, self._done = now, now, done
        line = f"{self._title}: {done:,} of {total:,} {kind}"
        if done > self._done and now > self._start:
            rate = (done - self._done) / (now - self._start)
            line += f", {rate:.1f} a second, {format_seconds((total - done) / rate)} left"
        render.status(line)
        if now - self._last >= MIN_SECONDS and done < total:
            self._last = now
            render.note(line)
