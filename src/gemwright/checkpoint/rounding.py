"""Round weights to 8 or 4 bits: each group of 32 gets the scale with the least squared error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemwright.kernels.panels import GROUP

REFITS = 2
"""Number of times that the best scale is fitted by least squares to the integers it gave."""


@dataclass(frozen=True)
class Grid:
    """The integers of an encoding.

    Attributes:
        lowest: The smallest integer.
        highest: The largest integer.
        reaches: Values to which the search for a scale maps the extreme weight. They include those of plain rounding
            for either sign, so that no group gets a larger error than by it.
    """

    lowest: int
    highest: int
    reaches: tuple[float, ...]


GRIDS = {
    # Multiples of four leave values unchanged that had five or six bits before.
    "Q8_0": Grid(-127, 127, (127, 126, 125, 124, 123, 120, 116, 112)),
    "Q4_0": Grid(-8, 7, (-8, -7.6, -7.2, -8.5, 8, 7.5, 7.1, 6.7)),
}


def round_groups(encoding: str, values: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Return the scales [groups] and integers [groups, 32] whose products are closest to the values.

    Args:
        encoding: A key of `GRIDS`.
        values: [groups, 32]. A group with values that are not finite, or too large for a float16 scale, gets a scale
            that is not finite.
    """
    grid = GRIDS[encoding]
    columns = np.ascontiguousarray(values.T)  # each step then works on long rows
    top, bottom = columns.max(axis=0), columns.min(axis=0)
    extreme = np.where(top > -bottom, top, bottom)
    best = np.zeros(len(values), np.float32)
    least = np.full(len(values), np.inf, np.float32)
    with np.errstate(all="ignore"):
        for reach in grid.reaches:
            _keep_better(
                columns, _round_to_float16((extreme / np.float32(reach)).astype(np.float32)), grid, best, least
            )
        is_finite = np.isfinite(least)
        for _ in range(REFITS):
            _keep_better(
                columns,
                _round_to_float16(_fit_scales(columns, _round_to_integers(columns, best, grid))),
                grid,
                best,
                least,
            )
        numbers = _round_to_integers(columns, best, grid)
        scales = np.where(is_finite, best, np.float32("nan")).astype(np.float16)
        return scales, numbers.astype(np.int8).T.reshape(-1, GROUP)


def _keep_better(
    columns: NDArray[np.float32],
    scales: NDArray[np.float32],
    grid: Grid,
    best: NDArray[np.float32],
    least: NDArray[np.float32],
) -> None:
    """Copy the scales whose error is less than that of the best so far into `best` and `least`."""
    error = _round_to_integers(columns, scales, grid)
    error *= scales
    error -= columns
    error *= error
    loss = error.sum(axis=0)
    better = loss < least
    np.copyto(best, scales, where=better)
    np.copyto(least, loss, where=better)


def _round_to_integers(columns: NDArray[np.float32], scales: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    inverse = 1 / scales
    numbers = columns * np.where(np.isfinite(inverse), inverse, np.float32(0))
    np.rint(numbers, out=numbers)
    return np.clip(numbers, grid.lowest, grid.highest, out=numbers)


def _fit_scales(columns: NDArray[np.float32], numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    squares = np.square(numbers).sum(axis=0)
    return (columns * numbers).sum(axis=0) / np.maximum(squares, 1)


def _round_to_float16(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round scales to float16."""
    return scales.astype(np.float16).astype(np.float32)
