"""Draw docs/architecture.png: python docs/architecture.py. Needs matplotlib, which the extra `dev` installs."""

import itertools
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

Box = tuple[float, float, str, str]
"""Left edge, bottom edge, title and files."""
Point = tuple[float, float]

PROMPT: list[Box] = [
    (0.0, 3.4, "Interface", "cli/\napi.py"),
    (3.6, 3.4, "Tokens", "text/\nimages/"),
    (7.2, 3.4, "Engine", "generate/"),
]
TENSOR: list[Box] = [
    (0.0, 0.0, "File", "checkpoint/files/"),
    (3.6, 0.0, "Names, config", "checkpoint/names/\ncheckpoint/configs/"),
    (7.2, 0.0, "Weights", "checkpoint/load.py\nweights.py"),
]
MODEL: list[Box] = [
    (10.8, 1.7, "Model", "model/"),
    (14.4, 1.7, "Operations", "linear.py ops.py\nkernels/ native/"),
]
LABELS: list[tuple[float, float, str]] = [
    (3.0, 4.15, "text,\nimages"),
    (6.6, 4.15, "ids, soft\ntokens"),
    (9.0, 2.75, "chunks of ids [B, T]"),
    (12.35, 3.75, "hidden states,\ncaches"),
    (3.0, 0.75, "named\ntensors"),
    (6.6, 0.75, "checked\ntensors"),
    (9.0, 1.55, "tree of weight leaves"),
    (13.8, 2.45, "arrays"),
]
WIDTH, HEIGHT = 2.4, 1.2


def main() -> None:
    """Draw the image."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(14, 5), dpi=100)
    axes.set(xlim=(-0.1, 16.9), ylim=(-0.6, 5.2))
    axes.axis("off")
    for boxes, color in ((PROMPT, "#dbe9f6"), (TENSOR, "#fde8d0"), (MODEL, "#e0f0dc")):
        for left, bottom, title, files in boxes:
            shape = FancyBboxPatch(
                (left, bottom), WIDTH, HEIGHT, "round,pad=0.05", facecolor=color, edgecolor="#555555"
            )
            axes.add_patch(shape)
            axes.text(left + WIDTH / 2, bottom + 0.9, title, ha="center", va="center", fontsize=13, weight="bold")
            axes.text(left + WIDTH / 2, bottom + 0.38, files, ha="center", va="center", fontsize=9, family="monospace")
        for (left, bottom, *_), (right, *_) in itertools.pairwise(boxes):
            style = "<|-|>" if boxes is MODEL else "-|>"
            arrow(axes, (left + WIDTH + 0.05, bottom + 0.6), (right - 0.05, bottom + 0.6), style=style)
    arrow(axes, (9.3, 3.33), (11.3, 2.97))
    arrow(axes, (9.3, 1.27), (11.3, 1.63))
    arrow(axes, (12.3, 2.97), (9.68, 4.1), "arc3,rad=0.3")
    for x, y, text in LABELS:
        axes.text(x, y, text, ha="center", va="bottom", fontsize=9)
    axes.text(0.0, 4.9, "A prompt: text in, text out", fontsize=13, color="#2b5c8a")
    axes.text(0.0, -0.5, "A tensor: from the file to the device", fontsize=13, color="#a05a10")
    figure.savefig(Path(__file__).with_name("architecture.png"), bbox_inches="tight")


def arrow(axes: pyplot.Axes, start: Point, end: Point, curve: str = "arc3", style: str = "-|>") -> None:
    """Draw an arrow between two points."""
    properties = {"arrowstyle": style, "color": "#333333", "connectionstyle": curve, "lw": 1.4}
    axes.annotate("", end, start, arrowprops=properties)


if __name__ == "__main__":
    main()
