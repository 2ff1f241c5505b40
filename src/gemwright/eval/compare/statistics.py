"""Win rates with intervals, and Bradley-Terry ratings of many models.

A pair is scored 1, 1/2 or 0 for its first answer, so that ties are split evenly, as in the reports of Gemma.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemwright.eval.intervals import wilson

CONFIDENCE = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 1000
"""Number of resamples of the prompts for the intervals of ratings."""
POINTS_PER_DECADE = 400
"""Difference of two ratings at which the odds of winning are 10 to 1, as in chess."""
MEAN_RATING = 1000
"""Mean of the ratings of all models."""
_STEPS = 100
_TOLERANCE = 1e-10


class Estimate(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


def estimate_rate(scores: Sequence[float]) -> Estimate | None:
    """Return the mean of scores between 0 and 1, one for each prompt, with its 95% interval; None without scores.

    The interval is Wilson's, with the number of prompts divided by the design effect: the variance of the scores over
    that of as many wins and losses with the same mean. Without ties it is exactly Wilson's. Ties make it narrower, as
    they vary less. Where all scores are equal, the effect is taken as 1, so the interval never vanishes.

    Source: Wilson, Journal of the American Statistical Association 22 (1927); Kott and Carr, Journal of Official
    Statistics 13 (1997), for the effective number.
    """
    if not scores:
        return None
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    effect = variance / (mean * (1 - mean)) if variance else 1.0
    return _wilson(mean, len(scores) / effect)


def estimate_share(count: int, total: int) -> Estimate | None:
    """Return a share with Wilson's 95% interval; None of nothing."""
    return _wilson(count / total, total) if total else None


def _wilson(mean: float, count: float) -> Estimate:
    low, high = wilson(mean * count, count)
    return Estimate(mean, min(mean, low), max(mean, high))  # rounding may exceed the mean


class Ratings(NamedTuple):
    """Bradley-Terry ratings.

    Attributes:
        values: The rating of each model with its interval. Without an interval, both ends are NaN.
        left_out: Number of resamples that have no maximum of the likelihood.
    """

    values: list[Estimate]
    left_out: int


def rate(points: np.ndarray, seed: int = 0) -> Ratings | None:
    """Return the ratings of models, with 95% intervals from resampled prompts.

    All pairs of a prompt are resampled together, as they share its answers. Resamples in which some models won
    everything against the rest have no finite ratings and are left out; if they are more than one in forty, the ends of
    the intervals are not known.

    Args:
        points: Points of the model of each row against that of each column [prompts, models, models].
        seed: Seed of the resamples.

    Returns:
        None if the likelihood has no maximum: no model, or group of models, may have won or lost everything.

    Source: Bradley and Terry, Biometrika 39 (1952); Ford, American Mathematical Monthly 64 (1957), for the condition.
    """
    total = points.sum(0)
    if not has_maximum(total[None])[0]:
        return None
    values = _to_ratings(fit(total[None]))[0]
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(points), np.full(len(points), 1 / len(points)), RESAMPLES)
    resampled = np.tensordot(counts.astype(float), points, 1)
    kept = resampled[has_maximum(resampled)]
    left_out = RESAMPLES - len(kept)
    tail = (1 - CONFIDENCE) / 2
    if left_out > tail * RESAMPLES:
        ends = np.full((2, len(values)), np.nan)
    else:
        ends = np.quantile(_to_ratings(fit(kept)), (tail, 1 - tail), axis=0)
    return Ratings([Estimate(*map(float, row)) for row in np.stack([values, *ends], 1)], left_out)


def has_maximum(points: np.ndarray) -> np.ndarray:
    """Return whether the likelihood of each matrix of points [..., models, models] has a maximum.

    It has one if every model is reached from every other over models that the one before took points from.
    """
    models = points.shape[-1]
    reached = (points > 0) | np.eye(models, dtype=bool)
    for _ in range(max(1, models - 1).bit_length()):
        reached = reached.astype(float) @ reached > 0
    return np.asarray(reached.all((-2, -1)))


def fit(points: np.ndarray) -> np.ndarray:
    """Return the log-strengths [batch, models] with mean 0 that maximize the likelihood of points.

    Newton's method, with steps of at most 1 in any log-strength.

    Args:
        points: Points of the model of each row against that of each column [batch, models, models]; see `has_maximum`.
    """
    batch, models, _ = points.shape
    games = points + points.swapaxes(1, 2)
    strengths = np.zeros((batch, models))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
        gradient = (points - games * chance).sum(2)
        curvature = games * chance * (1 - chance)
        # The likelihood does not depend on the sum of the log-strengths; adding 1 to all entries keeps it at 0.
        hessian = curvature.sum(2)[:, :, None] * np.eye(models) - curvature + 1
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        strengths += step / np.maximum(1, np.abs(step).max(1, keepdims=True))
        if np.abs(step).max(initial=0) < _TOLERANCE:
            break
    return strengths - strengths.mean(1, keepdims=True)


def _to_ratings(strengths: np.ndarray) -> np.ndarray:
    return MEAN_RATING + POINTS_PER_DECADE / math.log(10) * strengths
