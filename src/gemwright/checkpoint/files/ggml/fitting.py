"""Fit the scales and minima of ggml's encodings to values, by weighted least squares.

A group is the values of a sub-block, or of a block without any, in a column: x and its weights w are
`[width, blocks, groups]`, so that each step works on long rows. Losses and gains are sums of `w * error**2`.

Source: ggml-org/llama.cpp ggml/src/ggml-quants.c (`make_qx_quants`, `make_qkx2_quants`: the search for a scale). The
integer scales of a block are refined here too, which llama.cpp does not do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""A float32 array."""

REFITS = 4
"""Number of times that the scale of a block without sub-blocks is refitted."""
ROUNDS = 2
"""Number of times that the integer scales of a block are refined."""


@dataclass(frozen=True)
class Levels:
    """The numbers q that an encoding can store.

    Attributes:
        lowest: The smallest.
        highest: The largest.
        values: All, ascending, if they are not all integers of the range.
    """

    lowest: int
    highest: int
    values: NDArray[np.int8] | None = None

    def round(self, x: Floats) -> Floats:
        """Return the nearest levels, in place unless there are `values`."""
        if self.values is not None:
            return _nearest(self.values).take((np.floor(2 * x.clip(-128, 127)) + 256).astype(np.int16))
        return np.clip(np.rint(x, out=x), self.lowest, self.highest, out=x)


def _nearest(values: NDArray[np.int8]) -> Floats:
    """Return the nearest level of each half-integer interval from -128 to 128: levels meet at multiples of 1/2."""
    centers = np.arange(-512, 512, 2)[:, None] / 4 + 1 / 4
    return values[np.abs(centers - values).argmin(axis=1)].astype(np.float32)


def inverse(x: Floats) -> Floats:
    """Return 1 / x, or 0 if x is zero or so small that 1 / x is infinite."""
    result = 1 / x
    return np.where(np.isfinite(result), result, np.float32(0))


def half(x: Floats) -> Floats:
    """Round to float16."""
    return x.astype(np.float16).astype(np.float32)


def extreme(x: Floats, axis: int) -> Floats:
    """Return the value of the largest magnitude along an axis."""
    top, bottom = x.max(axis=axis), x.min(axis=axis)
    return np.where(top > -bottom, top, bottom)


def dot(*factors: Floats) -> Floats:
    """Sum a product over the values of each group: `[blocks, groups]`."""
    return np.einsum(",".join(["ibg"] * len(factors)) + "->bg", *factors)


def keep_better(better: NDArray[Any], *pairs: tuple[Floats, Floats]) -> None:
    """Copy the second array of each pair into the first where `better`."""
    for best, candidate in pairs:
        np.copyto(best, candidate, where=better)


def fit_scales(x: Floats, w: Floats, levels: Levels, reaches: Sequence[float]) -> Floats:
    """Return the scale of each group, `[blocks, groups]`.

    Args:
        x: Values.
        w: Weights.
        levels: The levels.
        reaches: Levels to which the search maps the extreme value of a group.
    """
    top, weighted = extreme(x, 0), w * x
    best = top / np.float32(reaches[0])
    most = np.full_like(best, -np.inf)
    for reach in reaches:
        q = levels.round(x * (inverse(top) * np.float32(reach)))
        product, square = dot(weighted, q), dot(w, q, q)
        scale = product * inverse(square)
        gain = product * scale
        keep_better(gain > most, (best, scale), (most, gain))
    return best


def scale_loss(x: Floats, w: Floats, levels: Levels, scale: Floats) -> Floats:
    """Return the loss of each group with a scale."""
    error = levels.round(x * inverse(scale))
    error *= scale
    error -= x
    return dot(w, error, error)


def refine_scales(x: Floats, w: Floats, levels: Levels, scales: Floats) -> Floats:
    """Return better scales in float16, by requantizing and refitting."""
    best = half(scales)
    least = scale_loss(x, w, levels, best)
    for _ in range(REFITS):
        q = levels.round(x * inverse(best))
        scale = half(dot(w, x, q) * inverse(dot(w, q, q)))
        loss = scale_loss(x, w, levels, scale)
        keep_better(loss < least, (best, scale), (least, loss))
    return best


def fit_integer_scales(
    x: Floats, w: Floats, levels: Levels, scales: Floats, limits: tuple[int, int]
) -> tuple[Floats, Floats]:
    """Round the scales of a block's groups to integers times a common scale in float16.

    Args:
        x: Values.
        w: Weights.
        levels: The levels.
        scales: The scales to round, `[blocks, groups]`.
        limits: Range of the integers.

    Returns:
        The common scales `[blocks, 1]` and the integers `[blocks, groups]`.
    """
    d = half(extreme(scales, 1)[:, None] / np.float32(limits[0]))
    steps = np.clip(np.rint(scales * inverse(d)), *limits)
    least = scale_loss(x, w, levels, d * steps)
    for _ in range(ROUNDS):
        first = steps.copy()
        for change in (-1, 1):
            step = np.clip(first + np.float32(change), *limits)
            loss = scale_loss(x, w, levels, d * step)
            keep_better(loss < least, (steps, step), (least, loss))
        q = levels.round(x * inverse(d * steps))
        product, square = dot(w, x, q) * steps, dot(w, q, q) * steps * steps
        fitted = half(product.sum(1, keepdims=True) * inverse(square.sum(1, keepdims=True)))
        loss = scale_loss(x, w, levels, fitted * steps)
        better = loss.sum(1, keepdims=True) < least.sum(1, keepdims=True)
        keep_better(better, (d, fitted), (least, loss))
    return d, steps


def fit_affine(x: Floats, w: Floats, highest: int, reaches: Sequence[float], negative: bool) -> tuple[Floats, Floats]:
    """Return the scale and minimum m of each group for values `scale * q - m` with q from 0.

    Args:
        x: Values.
        w: Weights.
        highest: The largest q.
        reaches: Numbers of steps into which the search divides the range of a group.
        negative: Whether m may be negative.
    """
    low, high = x.min(axis=0), x.max(axis=0)
    if not negative:
        low = np.minimum(low, 0)
    shifted, span = x - low, high - low
    weighted = w * x
    total, total_x = w.sum(axis=0), weighted.sum(axis=0)
    best, minimum = span / np.float32(reaches[0]), -low
    most = np.full_like(best, -np.inf)
    for reach in reaches:
        q = np.clip(np.rint(shifted * (inverse(span) * np.float32(reach))), 0, highest)
        sums = total, dot(w, q), dot(w, q, q), total_x, dot(weighted, q)
        scale, m = _solve_affine(*sums, negative)
        gain = _affine_gain(*sums, scale, m)
        keep_better(gain > most, (best, scale), (minimum, m), (most, gain))
    return best, minimum


def _solve_affine(total: Floats, q: Floats, qq: Floats, x: Floats, qx: Floats, negative: bool) -> tuple[Floats, Floats]:
    """Solve for the scale and minimum that minimize the loss, given the weighted sums of 1, q, q * q, x and q * x."""
    over = inverse(total * qq - q * q)
    scale = (total * qx - x * q) * over
    m = (q * qx - qq * x) * over
    flat = over == 0
    scale, m = np.where(flat, 0, scale), np.where(flat, -x * inverse(total), m)
    if not negative:
        scale, m = np.where(m < 0, qx * inverse(qq), scale), np.maximum(m, 0)
    return scale, m


def _affine_gain(total: Floats, q: Floats, qq: Floats, x: Floats, qx: Floats, scale: Floats, m: Floats) -> Floats:
    """Return by how much the loss is less than that of zeros."""
    return 2 * (scale * qx - m * x) - scale * scale * qq + 2 * scale * m * q - m * m * total


def affine_levels(x: Floats, highest: int, scale: Floats, m: Floats) -> Floats:
    """Return the nearest q."""
    q = (x + m) * inverse(scale)
    return np.clip(np.rint(q, out=q), 0, highest, out=q)


def affine_loss(x: Floats, w: Floats, highest: int, scale: Floats, m: Floats) -> Floats:
    """Return the loss of each group with a scale and a minimum."""
    error = affine_levels(x, highest, scale, m)
    error *= scale
    error -= m
    error -= x
    return dot(w, error, error)


def refine_affine(x: Floats, w: Floats, highest: int, scale: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Return better scales and minima in float16, by requantizing and refitting."""
    best, minimum = half(scale), half(m)
    least = affine_loss(x, w, highest, best, minimum)
    for _ in range(REFITS):
        q = affine_levels(x, highest, best, minimum)
        fitted = _solve_affine(w.sum(axis=0), dot(w, q), dot(w, q, q), dot(w, x), dot(w, x, q), True)
        scale, m = half(fitted[0]), half(fitted[1])
        loss = affine_loss(x, w, highest, scale, m)
        keep_better(loss < least, (best, scale), (minimum, m), (least, loss))
    return best, minimum


def fit_integer_affine(
    x: Floats, w: Floats, highest: int, scales: Floats, minima: Floats, limit: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Round the scales and minima of a block's groups to integers times common scales in float16.

    Args:
        x: Values.
        w: Weights.
        highest: The largest q.
        scales: The scales to round, `[blocks, groups]`.
        minima: The minima to round, none negative.
        limit: The largest integer.

    Returns:
        The common scales of the scales and of the minima, `[blocks, 1]`, and the integers, `[blocks, groups]`.
    """
    d = half(scales.max(axis=1, keepdims=True) / np.float32(limit))
    dmin = half(minima.max(axis=1, keepdims=True) / np.float32(limit))
    steps = np.clip(np.rint(scales * inverse(d)), 0, limit)
    offsets = np.clip(np.rint(minima * inverse(dmin)), 0, limit)
    least = affine_loss(x, w, highest, d * steps, dmin * offsets)
    for _ in range(ROUNDS):
        first, second = steps.copy(), offsets.copy()
        for change, move in _NEIGHBORS:
            step, offset = np.clip(first + change, 0, limit), np.clip(second + move, 0, limit)
            loss = affine_loss(x, w, highest, d * step, dmin * offset)
            keep_better(loss < least, (steps, step), (offsets, offset), (least, loss))
        q = affine_levels(x, highest, d * steps, dmin * offsets)
        fitted, fitted_min = _fit_common(x, w, q, steps, offsets)
        loss = affine_loss(x, w, highest, fitted * steps, fitted_min * offsets)
        better = loss.sum(1, keepdims=True) < least.sum(1, keepdims=True)
        keep_better(better, (d, fitted), (dmin, fitted_min), (least, loss))
    return d, dmin, steps, offsets


_NEIGHBORS = [(np.float32(a), np.float32(b)) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]


def _fit_common(x: Floats, w: Floats, q: Floats, steps: Floats, offsets: Floats) -> tuple[Floats, Floats]:
    """Fit the common scales of a block, `[blocks, 1]` each, to its integers."""
    sums = (
        w.sum(axis=0) * offsets * offsets, dot(w, q) * steps * offsets, dot(w, q, q) * steps * steps,
        dot(w, x) * offsets, dot(w, x, q) * steps,
    )  # fmt: skip
    fitted = _solve_affine(*[s.sum(axis=1, keepdims=True) for s in sums], negative=False)
    return half(np.maximum(fitted[0], 0)), half(fitted[1])
