"""Scores with 95% confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Quantile of the standard normal distribution that leaves 2.5% above it."""


@dataclass(frozen=True)
class Estimate:
    """A mean over items and the interval that holds the true mean in 95% of samples.

    Attributes:
        value: The mean.
        low: The lower end of the interval.
        high: Its upper end.
        count: Number of items.
    """

    value: float
    low: float
    high: float
    count: int


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of items with its interval: Wilson's if all are 0 or 1, else that of the normal distribution.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    items = np.asarray(values, np.float64)
    count, mean = len(items), float(items.mean())
    if np.isin(items, (0, 1)).all():
        return wilson(int(items.sum()), count)
    error = Z * float(items.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(mean, mean - error, mean + error, count)


def wilson(successes: int, count: int) -> Estimate:
    """Return the share of successes with Wilson's interval."""
    share = successes / count
    middle = share + Z * Z / (2 * count)
    error = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    scale = 1 + Z * Z / count
    return Estimate(share, max(0.0, (middle - error) / scale), min(1.0, (middle + error) / scale), count)
