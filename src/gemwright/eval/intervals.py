"""Intervals of 95% for shares and means, for statistics of clustered items, and for the difference of two estimates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""
RESAMPLES = 1000
"""Number of bootstrap samples."""

Interval = tuple[float, float]


def wilson(successes: float, n: float) -> Interval:
    """Return Wilson's score interval of a share.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if n <= 0:
        return 0.0, 1.0
    share = successes / n
    center = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # Rounding may leave the ends a little inside 0 and 1.
    return 0.0 if successes <= 0 else max(0.0, center - half), 1.0 if successes >= n else min(1.0, center + half)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: NDArray[np.str_],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of a statistic of items, whose clusters are drawn with replacement.

    Args:
        statistic: Its value for the items of given indices.
        clusters: The cluster of each item.
        resamples: Number of samples.
        seed: Seed of the samples.

    Source: Efron and Tibshirani 1993, chapter 13; Cameron, Gelbach and Miller 2008 for clusters.
    """
    _, inverse = np.unique(clusters, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    random = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(resamples):
        drawn = random.integers(0, len(members), len(members))
        found.append(statistic(np.concatenate([members[index] for index in drawn])))
    values = np.asarray(found)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def difference(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Interval:
    """Return the interval of `second - first` from the intervals of two independent estimates.

    For two of Wilson's intervals this is Newcombe's hybrid score interval.

    Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10; Zou and Donner 2008 for other estimates.
    """
    gap = second - first
    down = sqrt((second - second_interval[0]) ** 2 + (first_interval[1] - first) ** 2)
    up = sqrt((second_interval[1] - second) ** 2 + (first - first_interval[0]) ** 2)
    return gap - down, gap + up


@dataclass(frozen=True)
class Estimate:
    """A statistic of items with its interval.

    Attributes:
        value: The statistic.
        low: The lower end of the interval.
        high: Its upper end.
        count: Number of items.
    """

    value: float
    low: float
    high: float
    count: int


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of items with its interval: Wilson's if all are 0 or 1, else that of the normal distribution."""
    items = np.asarray(values, np.float64)
    count, mean = len(items), float(items.mean())
    if np.isin(items, (0, 1)).all():
        return Estimate(mean, *wilson(float(items.sum()), count), count)
    error = Z * float(items.std(ddof=1)) / sqrt(count) if count > 1 else inf
    return Estimate(mean, mean - error, mean + error, count)


def estimate_together(items: Sequence[Any], aggregate: Callable[[list[Any]], float], seed: int) -> Estimate:
    """Return a statistic of all items together, such as CIDEr, with its bootstrap interval."""

    def statistic(indices: NDArray[np.intp]) -> float:
        return float(aggregate([items[index] for index in indices]))

    interval = bootstrap(statistic, np.arange(len(items)).astype(str), resamples=200, seed=seed)
    return Estimate(float(aggregate(list(items))), *interval, len(items))
