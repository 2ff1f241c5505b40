"""Print the tables of the benchmark in Markdown, and draw its chart."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import models
from engines import Task, llama_cpp_python

from gemwright.checkpoint.demo import DEMO
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.kernels.native import instruction_set, native_enabled
from gemwright.variants import VARIANTS

PACKAGES = ("gemwright", "jax", "llama_cpp_python", "transformers", "torch", "numpy")
CHART = Path(__file__).parent.parent / "docs" / "decode-context.png"
SPLIT = ("gemwright", "Q8_0")
COLORS = {"gemwright": "#0b7a75", "llama.cpp": "#c8553d"}


@dataclass(frozen=True)
class Figure:
    """A row of a table, or a point of the curve.

    Attributes:
        part: Name of its part of the benchmark, for `--only`.
        title: Title of the row.
        task: Text to generate; None for the time from the command to the first token.
        engines: Engines to measure.
        model: "demo" or "large".
        threads: Number of cores of the engine.
    """

    part: str
    title: str
    task: Task | None
    engines: tuple[str, ...]
    model: str
    threads: int


Found: TypeAlias = dict[tuple[Figure, str, str], list[float]]
"""Results of every round by figure, engine and name of the number."""
Machine: TypeAlias = dict[int, list[dict[str, float]]]
"""Peak rates of the machine between figures, by number of cores."""


def show(figures: Sequence[Figure], found: Found, machine: Machine, quick: bool) -> None:
    """Print every table that has figures, and draw the curve unless the run is quick."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine()
    )
    print(f"{time.strftime('%Y-%m-%d')}, {cpu}, {os.cpu_count()} cores; ", end="")
    print(", ".join(f"{package.replace('_', '-')} {version(package)}" for package in PACKAGES))
    if native_enabled():
        print(f"gemwright's native kernels use {instruction_set()}.")
    if not llama_cpp_python.repacks():
        print("llama.cpp was compiled with AMX, so it could not repack weights; `make bench` compiles it without.")
    show_machine(machine)
    curve = [figure for figure in figures if figure.part == "context"]
    for model, title in (("demo", "Gemma 3 270M, Q4_K_M"), ("large", "Gemma 2 2B's shapes, random weights, Q4_0")):
        for threads in sorted(machine, reverse=True):
            rows = [f for f in figures if (f.model, f.threads) == (model, threads) and f not in curve]
            if rows:
                print(f"\n### {title}, {_format_cores(threads)}\n")
                show_table(rows, found, statistics.median(probe["read"] for probe in machine[threads]))
    if curve:
        print("\n### Decoding by length of the context, tokens/s\n")
        show_table(curve, found, None)
        if not quick:
            draw(curve, found)


def show_machine(machine: Machine) -> None:
    print("\n### The machine, measured between figures\n")
    print("| | " + " | ".join(map(_format_cores, machine)) + " |")
    print("|---|" + "---|" * len(machine))
    for name, title in (
        ("read", "read, GB/s"),
        ("float32", "numpy's float32 product, GFLOP/s"),
        ("int8", "8-bit multiply-and-add, Gop/s"),
    ):
        cells = [format_cell([probe[name] / 1e9 for probe in probes]) for probes in machine.values()]
        print(f"| {title} | " + " | ".join(cells) + " |")


def show_table(figures: Sequence[Figure], found: Found, read: float | None) -> None:
    """Print one row per figure; with the bandwidth `read`, also memory and the share of it that decoding uses."""
    engines = figures[0].engines
    print("| | " + " | ".join(engines) + " |")
    print("|---|" + "---|" * len(engines))
    for figure in figures:
        for name in ("first start", "later start", "rate"):
            if (figure, engines[0], name) in found:
                title = figure.title if name == "rate" else f"{name} {figure.title}"
                cells = [
                    format_cell(found[figure, engine, name]) if engine in figure.engines else "" for engine in engines
                ]
                print(f"| {title} | " + " | ".join(cells) + " |")
    decode = next((figure for figure in figures if (figure, engines[0], "peak") in found), None)
    if read is None or decode is None:
        return
    peaks = [format_cell([value / 1e6 for value in found[decode, engine, "peak"]]) for engine in engines]
    sizes = {engine: count_bytes_read(decode.model, engine) for engine in engines}
    shares = [statistics.median(found[decode, engine, "rate"]) * sizes[engine] / read for engine in engines]
    print("| peak memory, MB | " + " | ".join(peaks) + " |")
    print("| weights read per token, MB | " + " | ".join(f"{size / 1e6:.0f}" for size in sizes.values()) + " |")
    print("| share of the measured bandwidth | " + " | ".join(f"{share:.0%}" for share in shares) + " |")


def count_bytes_read(model: str, engine: str) -> int:
    """Return the bytes of weights read per token, including the whole embedding, which is also the head."""
    if engine == "OpenVINO 8-bit":
        return (models.OPENVINO / "model" / "openvino_model.bin").stat().st_size
    name, path = (DEMO, models.locate_demo()) if model == "demo" else (models.LARGE, models.make_large_gguf())
    parameters = VARIANTS[name].parameters
    if engine == "transformers bfloat16":
        return 2 * parameters
    if engine == "transformers float32" or (engine == "gemwright" and not native_enabled()):
        return 4 * parameters
    tensors = open_gguf(path).tensors
    head = tensors["token_embd.weight"]
    stored = sum(info.nbytes for info in tensors.values())
    # Of a Q8_0 head gemwright reads five of eight bits, and a float32 per row, to find the largest logits.
    return stored - head.nbytes * 12 // 34 + 4 * head.shape[0] if (engine, head.encoding) == SPLIT else stored


def draw(figures: Sequence[Figure], found: Found) -> None:
    """Draw tokens per second against the length of the context, with the range of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokens = [figure.task.prompt for figure in figures if figure.task is not None]
    chart, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for engine in figures[0].engines:
        rates = [found[figure, engine, "rate"] for figure in figures]
        axes.plot(tokens, [statistics.median(r) for r in rates], "o-", color=COLORS[engine], label=engine)
        axes.fill_between(tokens, [min(r) for r in rates], [max(r) for r in rates], color=COLORS[engine], alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.set_xlabel("tokens of context")
    axes.set_title("Decoding, tokens per second", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    chart.savefig(CHART, dpi=150)


def format_cell(values: Sequence[float]) -> str:
    """Format the median, minimum and maximum."""
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 10 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _format_cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
