"""Goodput by the formula beside a simulation of failures, and what is known of both."""

import math
import statistics

import pytest

from gemwright.plan.goodput import HOUR, Failures, best_interval, goodput, mean_time_between, simulate

TOLERANCE = 0.002
"""Difference of a share: of the mean of 8 x 2,000 failures, whose standard error is below 0.001."""
CASES = {
    "steps wait": Failures(12 * HOUR, 600, 6),
    "in the background": Failures(12 * HOUR, 600, 5, 60),
    "frequent failures": Failures(HOUR, 300, 20),
    "slow storage": Failures(6 * HOUR, 900, 120),
}


def simulated(failures: Failures, interval: float) -> float:
    return statistics.fmean(simulate(failures, interval, 2000 * failures.between, seed) for seed in range(8))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_formula_is_the_mean_of_simulated_runs(name: str, factor: float):
    failures = CASES[name]
    interval = factor * best_interval(failures)
    assert goodput(failures, interval) == pytest.approx(simulated(failures, interval), abs=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_no_other_interval_is_better(name: str):
    failures = CASES[name]
    best = best_interval(failures)
    assert all(goodput(failures, best) >= goodput(failures, best * factor) for factor in (0.5, 0.9, 1.1, 2))
    young = math.sqrt(2 * failures.pause * failures.between)
    assert best == pytest.approx(young, rel=0.1)  # to first order


def test_without_failures_only_the_pauses_are_lost():
    rare = Failures(1e12, 600, 10)
    assert goodput(rare, 990) == pytest.approx(0.99, rel=1e-6)
    assert simulate(rare, 990, 99_000) == pytest.approx(0.99, rel=1e-6)


def test_failures_scale_with_the_chips():
    chip_hours = 16384 * 54 * 24
    assert mean_time_between(16384, 419, chip_hours) / HOUR == pytest.approx(54 * 24 / 419)
    assert mean_time_between(4096, 419, chip_hours) / HOUR == pytest.approx(4 * 54 * 24 / 419)
