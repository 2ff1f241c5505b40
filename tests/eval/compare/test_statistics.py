"""Win rates and ratings against SciPy, scikit-learn, closed forms, a published example and simulations."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial
from sklearn.linear_model import LogisticRegression

from gemwright.eval.compare import statistics
from gemwright.eval.compare.statistics import estimate_rate, estimate_share, fit, has_maximum, rate


@pytest.mark.parametrize(("wins", "losses"), [(0, 5), (5, 0), (1, 1), (13, 7), (260, 240)])
def test_without_ties_the_interval_is_wilsons(wins: int, losses: int):
    expected = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    for found in (estimate_rate([1.0] * wins + [0.0] * losses), estimate_share(wins, wins + losses)):
        assert found is not None
        assert found.value == wins / (wins + losses)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_are_half_wins_and_narrow_the_interval():
    """The published 42.9/30.2/26.9 of 1,466 prompts has the published interval [55.9, 60.1] (Gemma report, Table 5).

    The number of judgements is not published; it is the one that fits. The normal interval from the variance of the
    scores differs by less than 0.0005 at this size.
    """
    wins, ties, losses = 629, 443, 394
    scores = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    found = estimate_rate(scores.tolist())
    assert found is not None
    half = 1.959964 * scores.std() / math.sqrt(len(scores))
    assert found == pytest.approx((scores.mean(), scores.mean() - half, scores.mean() + half), abs=5e-4)
    assert [round(100 * part, 1) for part in found] == [58.0, 55.9, 60.1]


@pytest.mark.parametrize("chances", [(0.5, 0.0, 0.5), (0.3, 0.4, 0.3), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05)])
def test_the_interval_covers_the_truth(chances: tuple[float, float, float]):
    """The chance that the interval of 40 prompts holds the true rate is 95% within 2.5 points, summed exactly."""
    truth, covered = chances[0] + chances[1] / 2, 0.0
    for wins, ties in ((won, even) for won in range(41) for even in range(41 - won)):
        counts = (wins, ties, 40 - wins - ties)
        found = estimate_rate(np.repeat([1.0, 0.5, 0.0], counts).tolist())
        assert found is not None
        covered += multinomial.pmf(counts, 40, chances) * (found.low <= truth <= found.high)
    assert covered == pytest.approx(0.95, abs=0.025)


def test_equal_scores_have_an_interval_and_none_have_no_rate():
    ties = estimate_rate([0.5] * 20)
    assert ties == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)  # Wilson's of 10 in 20
    assert estimate_rate([]) is None
    assert estimate_share(0, 0) is None


def _draw_points(random: np.random.Generator, prompts: int, strengths: np.ndarray) -> np.ndarray:
    points = np.zeros((prompts, len(strengths), len(strengths)))
    for first, second in combinations(range(len(strengths)), 2):
        chance = 1 / (1 + np.exp(strengths[second] - strengths[first]))
        scores = random.choice([0.0, 0.5, 1.0], prompts, p=[(1 - chance) * 0.8, 0.2, chance * 0.8])
        points[:, first, second], points[:, second, first] = scores, 1 - scores
    return points


def test_strengths_are_those_of_logistic_regression():
    """Log-strengths equal scikit-learn's coefficients without a penalty, a tie as half a win, within 1e-5."""
    total = _draw_points(np.random.default_rng(1), 60, np.array([0.0, 0.4, 1.0, -1.0, 0.2])).sum(0)
    models = len(total)
    rows, labels, weights = [], [], []
    for winner, loser in np.argwhere(total > 0):
        for sign in (1, -1):
            rows.append(sign * (np.eye(models)[winner] - np.eye(models)[loser]))
            labels.append(sign)
            weights.append(total[winner, loser])
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    expected = model.fit(np.array(rows), labels, weights).coef_[0]
    np.testing.assert_allclose(fit(total[None])[0], expected - expected.mean(), atol=1e-5)


def test_two_models_have_the_logarithm_of_their_odds():
    found = fit(np.array([[[0.0, 30.0], [10.0, 0.0]]]))[0]
    np.testing.assert_allclose(found, [math.log(3) / 2, -math.log(3) / 2], atol=1e-9)


def test_ratings_of_baseball_teams():
    """American League 1987, Agresti, Categorical Data Analysis (2002), Table 10.10: strengths relative to Baltimore."""
    wins = np.array(
        [
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ],
        float,
    )  # Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore
    found = fit(wins[None])[0]
    np.testing.assert_allclose(found - found[-1], [1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0.0], atol=1e-3)


def test_ratings_without_a_maximum():
    """Ford's condition: whoever won everything has no finite rating, and neither has a group."""
    chain = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], float)
    circle = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], float)
    groups = np.kron(np.array([[1, 1], [0, 1]]), np.ones((2, 2)))
    assert has_maximum(np.stack([chain, circle])).tolist() == [False, True]
    assert not has_maximum(groups[None])[0]
    assert rate(np.repeat(chain[None], 10, 0)) is None


def test_intervals_of_ratings_cover_the_truth():
    """Over 24 simulated comparisons, intervals cover true ratings in at least 84 of 96 cases (91 are expected)."""
    random, strengths = np.random.default_rng(2), np.array([0.6, 0.2, -0.2, -0.6])
    # A tie with chance 0.2 as half a win shrinks the odds; the truth is the fit to the expected points.
    chance = 0.1 + 0.8 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    truth = statistics._to_ratings(fit((chance * (1 - np.eye(4)))[None]))[0]
    covered = 0
    for seed in range(24):
        found = rate(_draw_points(random, 60, strengths), seed)
        assert found is not None
        assert found.left_out == 0
        assert np.mean([one.value for one in found.values]) == pytest.approx(1000)
        covered += sum(one.low <= value <= one.high for one, value in zip(found.values, truth, strict=True))
    assert covered >= 84


def test_unknown_ends_of_intervals():
    """Ends are unknown if more than one resample in forty has no ratings."""
    points = np.zeros((8, 3, 3))
    for first, second in combinations(range(3), 2):
        points[:, first, second] = 1
    points[0, 1, 0], points[0, 0, 1] = 1, 0
    points[1, 2, 1], points[1, 1, 2] = 1, 0
    found = rate(points)
    assert found is not None
    assert found.left_out > 25
    assert all(math.isnan(one.low) and math.isfinite(one.value) for one in found.values)
