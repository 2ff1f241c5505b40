"""Weights rounded to 8 or 4 bits: in each group of 32 the scale that loses least in squared error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemwright.kernels.panels import GROUP

REFITS = 2
"""How often the best scale is fitted to the numbers that it gave, by least squares."""


@dataclass(frozen=True)
class Grid:
    """The whole numbers that an encoding has, and those onto which the search for a scale puts the extreme value.

    Among `reaches` is that of plain rounding, for a value of either sign, so that no group comes out worse.
    """

    lowest: int
    highest: int
    reaches: tuple[float, ...]


GRIDS = {
    # Multiples of four bring values that had five or six bits before through unchanged.
    "Q8_0": Grid(-127, 127, (127, 126, 125, 124, 123, 120, 116, 112)),
    "Q4_0": Grid(-8, 7, (-8, -7.6, -7.2, -8.5, 8, 7.5, 7.1, 6.7)),
}


def round_groups(encoding: str, values: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """The scales [groups] and whole numbers [groups, 32] whose products come closest to the values.

    Args:
        encoding: A key of `GRIDS`.
        values: [groups, 32]. A group that is not finite, or too large for a float16 scale, gets a scale that is not.
    """
    grid = GRIDS[encoding]
    columns = np.ascontiguousarray(values.T)  # so that every step works on long rows
    top, bottom = columns.max(axis=0), columns.min(axis=0)
    extreme = np.where(top > -bottom, top, bottom)
    best = np.zeros(len(values), np.float32)
    least = np.full(len(values), np.inf, np.float32)
    with np.errstate(all="ignore"):
        for reach in grid.reaches:
            _consider(columns, _half((extreme / np.float32(reach)).astype(np.float32)), grid, best, least)
        sound = np.isfinite(least)
        for _ in range(REFITS):
            _consider(columns, _half(_least_squares(columns, _numbers(columns, best, grid))), grid, best, least)
        numbers = _numbers(columns, best, grid)
        scales = np.where(sound, best, np.float32("nan")).astype(np.float16)
        return scales, numbers.astype(np.int8).T.reshape(-1, GROUP)


def _consider(
    columns: NDArray[np.float32],
    scales: NDArray[np.float32],
    grid: Grid,
    best: NDArray[np.float32],
    least: NDArray[np.float32],
) -> None:
    """Take over, in place, the scales that lose less than the best so far."""
    error = _numbers(columns, scales, grid)
    error *= scales
    error -= columns
    error *= error
    lost = error.sum(axis=0)
    better = lost < least
    np.copyto(best, scales, where=better)
    np.copyto(least, lost, where=better)


def _numbers(columns: NDArray[np.float32], scales: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    inverse = 1 / scales
    numbers = columns * np.where(np.isfinite(inverse), inverse, np.float32(0))
    np.rint(numbers, out=numbers)
    return np.clip(numbers, grid.lowest, grid.highest, out=numbers)


def _least_squares(columns: NDArray[np.float32], numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    squares = np.square(numbers).sum(axis=0)
    return (columns * numbers).sum(axis=0) / np.maximum(squares, 1)


def _half(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest scales that a float16 can hold."""
    return scales.astype(np.float16).astype(np.float32)
