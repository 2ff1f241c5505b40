"""Plots of the results: win rates of all pairs, and ratings."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.eval.compare.results import Results

WIN_RATES, RATINGS = "win_rates.png", "ratings.png"
WIDTH_INCHES = 8.0
ROW_INCHES = 0.55
"""Height of a row, in inches."""
MAX_NAME = 40
"""Maximum length of a name in a plot, in characters."""
_COLORS = {"wins": "#0d9488", "ties": "#cbd5d1", "losses": "#e0a458"}
_DARK = "#1b1f1e"


def plot(results: Results, folder: Path) -> list[str]:
    """Write the plots that the results have into a folder, and return their names.

    Raises:
        CheckpointError: A file cannot be written.
    """
    names: list[str] = []
    if any(duel.rate for duel in results.duels):
        _save(_draw_win_rates(results), folder / WIN_RATES)
        names.append(WIN_RATES)
    if results.ratings is not None:
        _save(_draw_ratings(results), folder / RATINGS)
        names.append(RATINGS)
    return names


def _axes(rows: Sequence[str]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((WIDTH_INCHES, ROW_INCHES * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), [_shorten(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _shorten(name: str) -> str:
    """Return a name that is safe and short in a plot, where $ would begin a formula."""
    lines = [line if len(line) <= MAX_NAME else f"…{line[1 - MAX_NAME :]}" for line in name.split("\n")]
    return "\n".join(lines).replace("$", r"\$")


def _draw_win_rates(results: Results) -> Any:
    duels = [duel for duel in results.duels if duel.rate is not None]
    figure, axes = _axes([f"{duel.first}\nagainst {duel.second}" for duel in duels])
    for row, duel in enumerate(duels):
        assert duel.rate is not None
        judged, left = duel.wins + duel.ties + duel.losses, 0.0
        for name, count in (("wins", duel.wins), ("ties", duel.ties), ("losses", duel.losses)):
            share = 100 * count / judged
            axes.barh(row, share, 0.5, left, color=_COLORS[name], label=name if row == 0 else None)
            left += share
        rate = (100 * duel.rate.value, 100 * duel.rate.low, 100 * duel.rate.high)
        label = "win rate with its 95% interval" if row == 0 else None
        _draw_estimate(axes, row, rate, _DARK, label)
    axes.axvline(50, color=_DARK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of prompts")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw_ratings(results: Results) -> Any:
    assert results.ratings is not None
    order = sorted(range(len(results.labels)), key=lambda index: -results.ratings.values[index].value)  # pyright: ignore[reportOptionalMemberAccess]
    figure, axes = _axes([results.labels[index] for index in order])
    for row, index in enumerate(order):
        _draw_estimate(axes, row, results.ratings.values[index], _COLORS["wins"])
    axes.set_xlabel("Bradley-Terry rating with its 95% interval")
    axes.grid(axis="x", color=_COLORS["ties"], linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _draw_estimate(
    axes: Any, row: int, estimate: tuple[float, float, float], color: str, label: str | None = None
) -> None:
    value, *ends = estimate
    axes.plot(ends, [row, row], color=color, linewidth=1.6, marker="|", markersize=9)
    axes.plot(value, row, "o", color=color, label=label)


def _save(figure: Any, path: Path) -> None:
    encoded = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may have letters that the font lacks
        figure.savefig(encoded, format="png", dpi=150)
    with replace_file(path, len(encoded.getvalue())) as file:
        file.write(encoded.getvalue())
