"""Intervals against scipy and published examples."""

import numpy as np
import pytest
from scipy import stats

from gemwright.eval.intervals import bootstrap, difference, estimate_mean, estimate_together, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (3, 12), (12, 12), (81, 263), (1, 2)])
def test_wilson_equals_scipy(successes: int, n: int):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(successes, n), (expected.low, expected.high), atol=1e-9)


def test_difference_equals_the_published_example():
    """Newcombe 1998, Table II, contrast (a), method 10: 56/70 - 48/80 is 0.2 (0.0524 to 0.3339)."""
    found = difference(48 / 80, wilson(48, 80), 56 / 70, wilson(56, 70))
    np.testing.assert_allclose(found, (0.0524, 0.3339), atol=5e-5)


def test_bootstrap_of_single_items_equals_scipy():
    values = np.random.default_rng(1).exponential(size=80)
    names = np.asarray([str(index) for index in range(80)])
    found = bootstrap(lambda indices: float(values[indices].mean()), names, resamples=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    # Two random estimates of the same interval: its ends vary by about 0.01.
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=0.04)


def test_clusters_are_drawn_as_wholes():
    """Ten copies of each item in a cluster have the interval of the items, not a narrower one."""
    values = np.random.default_rng(3).normal(size=30)
    copies, names = np.repeat(values, 10), np.repeat([f"{index:02}" for index in range(30)], 10)
    found = bootstrap(lambda indices: float(copies[indices].mean()), names, seed=5)
    single = np.asarray([f"{index:02}" for index in range(30)])
    np.testing.assert_allclose(found, bootstrap(lambda indices: float(values[indices].mean()), single, seed=5))


def test_means():
    shares = estimate_mean([1, 0, 1])
    assert (shares.low, shares.high) == wilson(2, 3)
    found = estimate_mean([0.2, 0.5, 0.9, 0.4])
    error = 1.959963984540054 * np.std([0.2, 0.5, 0.9, 0.4], ddof=1) / 2
    np.testing.assert_allclose([found.value, found.low, found.high], [0.5, 0.5 - error, 0.5 + error])


def test_a_statistic_of_all_items():
    random = np.random.default_rng(2)
    items = random.normal(size=400).tolist()
    found = estimate_together(items, np.mean, seed=0)
    error = 1.959963984540054 * np.std(items) / 20
    np.testing.assert_allclose(
        [found.value, found.low, found.high], np.mean(items) + np.array([0, -error, error]), atol=0.03
    )  # three errors of a quantile of 200
