"""A plot of losses by step, drawn with Pillow."""

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from gemwright.checkpoint.files.atomic import replace_file

SIZE = 960, 600
SCALE = 2
"""The plot is drawn so many times larger, for smooth lines."""
LEFT, TOP, RIGHT, BOTTOM = 84, 48, 24, 64
"""Margins in pixels."""
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
PALE = ("#c6dcee", "#f6caca", "#cbe8cb", "#e2d7ec")
"""Colors of up to four curves, and of their points before they are smoothed."""
LOSS = "loss: nats per labeled token"
"""Title of a plot of losses."""
MANY = 60
"""A curve of more points is also drawn smoothed."""


class Curve(NamedTuple):
    """A curve: its name and the step and loss of each point."""

    name: str
    points: Sequence[tuple[int, float]]


def plot(path: Path, curves: Iterable[Curve], title: str = LOSS) -> None:
    """Write a PNG with some curves, up to four; nothing if they have no points.

    Raises:
        CheckpointError: The file cannot be written.
    """
    drawn = [curve for curve in curves if curve.points]
    if drawn:
        encoded = io.BytesIO()
        _Axes(drawn, title).draw().save(encoded, "png", optimize=True)
        with replace_file(path, len(encoded.getvalue())) as file:
            file.write(encoded.getvalue())


class _Axes:
    def __init__(self, curves: Sequence[Curve], title: str):
        self.curves, self.title = curves, title
        self.last = max(1, *(step for curve in curves for step, _ in curve.points))
        self.low, self.high = _range(curves)
        self.image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(15 * SCALE)

    def place(self, step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (SIZE[0] - LEFT - RIGHT) * step / self.last
        share = (min(loss, self.high) - self.low) / (self.high - self.low)
        return x * SCALE, (SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * share) * SCALE

    def text(self, x: float, y: float, text: str, anchor: str, color: str = "#333333") -> None:
        self.pen.text((x, y), text, fill=color, font=self.font, anchor=anchor)

    def draw(self) -> Image.Image:
        self._draw_grid()
        for index, curve in enumerate(self.curves):
            self._draw_curve(curve, COLORS[index], PALE[index])
        self._draw_legend()
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)

    def smooth(self, curve: Curve) -> list[tuple[int, float]]:
        """Return means over the last thirtieth of many points, up to the end of the axis; a few points as they are."""
        width = max(1, len(curve.points) // 30) if len(curve.points) > MANY else 1
        sums = list(itertools.accumulate((min(loss, self.high) for _, loss in curve.points), initial=0.0))
        begins = [max(0, end - width) for end in range(1, len(sums))]
        means = [(sums[end] - sums[begin]) / (end - begin) for end, begin in enumerate(begins, 1)]
        return [(step, mean) for (step, _), mean in zip(curve.points, means, strict=True)]

    def _draw_grid(self) -> None:
        for loss in _ticks(self.low, self.high, 6):
            (x, y), end = self.place(0, loss), self.place(self.last, loss)
            self.pen.line([(x, y), end], fill="#e4e4e4", width=SCALE)
            self.text(x - 8 * SCALE, y, f"{loss:.4g}", "rm")
        for step in _ticks(0, self.last, 8):
            if step == int(step):
                x, y = self.place(step, self.low)
                self.pen.line([(x, y), (x, y + 5 * SCALE)], fill="#333333", width=SCALE)
                self.text(x, y + 9 * SCALE, f"{int(step):,}", "mt")
        corner, end, top = self.place(0, self.low), self.place(self.last, self.low), self.place(0, self.high)
        self.pen.line([top, corner, end], fill="#333333", width=SCALE)
        self.text((corner[0] + end[0]) / 2, (SIZE[1] - 12) * SCALE, "step", "mb")
        self.text(12 * SCALE, 14 * SCALE, self.title, "lt")

    def _draw_curve(self, curve: Curve, color: str, pale: str) -> None:
        many = len(curve.points) > MANY
        places = [self.place(*point) for point in curve.points]
        self.pen.line(places, fill=pale if many else color, width=(1 if many else 2) * SCALE, joint="curve")
        if many:
            smooth = [self.place(*point) for point in self.smooth(curve)]
            self.pen.line(smooth, fill=color, width=2 * SCALE, joint="curve")
        else:
            radius = 3 * SCALE
            for x, y in places:
                self.pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)

    def _draw_legend(self) -> None:
        x = (SIZE[0] - RIGHT) * SCALE
        for index, curve in reversed(list(enumerate(self.curves))):
            name = f"{curve.name} {self.smooth(curve)[-1][1]:.4g}"
            self.text(x, 14 * SCALE, name, "rt")
            x -= self.pen.textlength(name, font=self.font) + 8 * SCALE
            y = 23 * SCALE
            self.pen.line([(x - 24 * SCALE, y), (x, y)], fill=COLORS[index], width=3 * SCALE)
            x -= 44 * SCALE


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the lowest and the highest loss of the axis; the highest few of many losses do not count."""
    losses = sorted(loss for curve in curves for _, loss in curve.points)
    low, high = losses[0], losses[min(len(losses) - 1, math.ceil(len(losses) * 0.995))]
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers between two, at most `count` + 1."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]
