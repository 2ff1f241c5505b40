"""Chosen scales are never worse than plain rounding, and close to the best."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.rounding import GRIDS, round_groups

RANDOM = np.random.default_rng(0)
KINDS = {
    "normal": RANDOM.normal(size=(2000, 32), scale=0.02),
    "heavy tails": RANDOM.standard_t(3, size=(2000, 32)),
    "even": RANDOM.uniform(-1, 1, size=(2000, 32)),
    "one side": RANDOM.uniform(0, 1, size=(2000, 32)),
    "both ends alike": np.sign(RANDOM.normal(size=(2000, 32))) * RANDOM.choice([0.3, 1.0], size=(2000, 32)),
    "tiny": RANDOM.normal(size=(2000, 32), scale=1e-6),  # the scales are subnormal in float16
}
encodings = pytest.mark.parametrize("encoding", GRIDS)


def lost(encoding: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared error of each group."""
    scales, numbers = round_groups(encoding, values)
    grid = GRIDS[encoding]
    assert (scales.dtype, numbers.dtype, numbers.shape) == (np.float16, np.int8, values.shape)
    assert grid.lowest <= numbers.min() <= numbers.max() <= grid.highest
    return np.square(scales.astype(np.float64)[:, None] * numbers - values).sum(axis=1)


def lost_plainly(encoding: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    decoded = np.empty_like(values)
    ggml.decode(encoding, ggml.encode(encoding, values), decoded)
    return np.square(decoded.astype(np.float64) - values).sum(axis=1)


@pytest.mark.parametrize("kind", KINDS)
@encodings
def test_no_group_has_a_larger_error_than_by_plain_rounding(encoding: str, kind: str) -> None:
    values = KINDS[kind].astype(np.float32)
    ours, plain = lost(encoding, values), lost_plainly(encoding, values)
    assert np.all(ours <= plain * (1 + 1e-5))  # float32 sums of the same squares
    assert ours.sum() < (1 if kind == "tiny" else 0.95) * plain.sum()


@encodings
def test_the_scale_is_close_to_the_best(encoding: str) -> None:
    """Against every float16 scale in reach with its nearest integers: at most 3% more error in all (8 bits: 10%)."""
    values = KINDS["normal"][:200].astype(np.float32)
    grid, extreme = GRIDS[encoding], np.abs(values).max(axis=1)
    best = np.full(len(values), np.inf)
    for steps in np.linspace(grid.highest * 0.75, grid.highest * 1.5, 3000):
        for sign in (1, -1):
            scale = (sign * extreme / steps).astype(np.float16).astype(np.float64)[:, None]
            numbers = np.clip(np.rint(values / scale), grid.lowest, grid.highest)
            best = np.minimum(best, np.square(numbers * scale - values).sum(axis=1))
    assert lost(encoding, values).sum() < (1.03 if encoding == "Q4_0" else 1.10) * best.sum()


@encodings
def test_values_on_a_grid_of_the_same_bits_are_unchanged(encoding: str) -> None:
    grid = GRIDS[encoding]
    numbers = RANDOM.integers(grid.lowest, grid.highest + 1, (500, 32))
    numbers[:, 0] = grid.lowest
    scales = RANDOM.uniform(0.001, 1, (500, 1)).astype(np.float16)
    values = (numbers * scales.astype(np.float32)).astype(np.float32)
    assert lost(encoding, values).max() == 0


def test_zeros_stay_zero() -> None:
    for encoding in GRIDS:
        scales, numbers = round_groups(encoding, np.zeros((3, 32), np.float32))
        assert not scales.any()
        assert not numbers.any()


@encodings
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e8])
def test_a_group_that_cannot_be_rounded_has_no_finite_scale(encoding: str, value: float) -> None:
    values = np.ones((3, 32), np.float32)
    values[1, 5] = value
    scales, _ = round_groups(encoding, values)
    assert np.isfinite(scales).tolist() == [True, False, True]
