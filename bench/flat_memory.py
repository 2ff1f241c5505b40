"""Time and memory per generated token: RecurrentGemma against a model of the same size with global attention.

python bench/flat_memory.py      prints a table and draws docs/flat-memory.png

Both models have random weights, the same width and depth and, within 0.1%, the same number of parameters. They generate
the same number of tokens one at a time, each in its own process, through the engine of `gemwright generate`. The
capacity of a cache is 1,024, 4,096 or 16,384 tokens, so growth comes in steps.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

TOKENS = 16_384
WINDOW = 512
"""Tokens per point of the curve, of which the fastest block counts, to exclude other load on the machine."""
BLOCK = 64
"""Tokens over which time is averaged: several decode calls, each of which returns up to 8 tokens at once."""
CHART = Path(__file__).parent.parent / "docs" / "flat-memory.png"
LABELS = {"griffin": "RecurrentGemma's layers", "attention": "global attention in every layer"}
COLORS = {"griffin": "#0b7a75", "attention": "#c8553d"}


def make_config(kind: str) -> Any:
    """Return a model of three layers with RecurrentGemma's pattern, proportions and window, or with attention only."""
    from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, pattern

    width, heads, depth = 512, 8, 3
    local = Attention(heads, 1, width // heads, width // heads, Rope(fraction=0.5), window=2049, out_bias=True)
    attend = replace(local, window=None)
    mixers = (Recurrent(width, heads), Recurrent(width, heads), local) if kind == "griffin" else (attend,)
    # An attention block has fewer weights than a recurrent one; a wider MLP makes up for it.
    hidden = 3 * width if kind == "griffin" else 3 * width + 114
    layers = pattern(depth, *(Layer(mixer, Mlp(hidden, bias=True)) for mixer in mixers))
    return Config(width, vocab=8192, layers=layers, max_length=2**31 - 1 if kind == "griffin" else 2 * TOKENS)


def measure(kind: str) -> None:
    """Generate, and print a JSON object per window: tokens, milliseconds per token, bytes of state and process."""
    import jax

    from gemwright.generate.buckets import capacity
    from gemwright.generate.engine import Engine
    from gemwright.generate.sampling import Sampling
    from gemwright.model.params import init, parameter_count
    from gemwright.model.state import state_bytes

    model = make_config(kind)
    print(json.dumps({"parameters": parameter_count(model)}), flush=True)
    engine = Engine(model, init(model, jax.random.key(0)), model.vocab)
    steps = engine.generate([[2]], [Sampling(temperature=0.0)], TOKENS)
    times = [time.perf_counter()]
    for count, _ in enumerate(steps, start=1):
        if count % BLOCK == 0:
            times.append(time.perf_counter())
        if count % WINDOW:
            continue
        room = capacity(count, model.max_length)
        row = {
            "tokens": count,
            "milliseconds": 1e3
            * min(after - before for before, after in pairwise(times[-1 - WINDOW // BLOCK :]))
            / BLOCK,
            "state": state_bytes(model, 1, room, "float32"),
            "resident": read_resident_bytes(),
            "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        print(json.dumps(row), flush=True)


def read_resident_bytes() -> int:
    """Return the read_resident_bytes memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_curves() -> dict[str, list[dict[str, float]]]:
    """Measure both models; the first record of each has its number of parameters."""
    found = {}
    for kind in LABELS:
        command = [sys.executable, __file__, kind]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found[kind] = [json.loads(line) for line in lines]
    return found


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
    for kind, (head, *rows) in found.items():
        print(f"\n{LABELS[kind]}, {head['parameters'] / 1e6:.1f}M parameters")
        print("  tokens   ms/token   state MB   process MB   peak MB")
        shown = [row for row in rows if row["tokens"] & (row["tokens"] - 1) == 0]  # powers of two
        for row in shown:
            print(
                f"  {row['tokens']:6d}   {row['milliseconds']:8.2f}"
                f"   {row['state'] / 1e6:8.2f}   {row['resident'] / 1e6:10.0f}   {row['peak'] / 1e6:7.0f}"
            )


def draw(found: dict[str, list[dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, key, scale, title in (
        (left, "milliseconds", 1.0, "Time per token, ms"),
        (right, "state", 1e-6, "State, MB"),
    ):
        for kind, (_, *rows) in found.items():
            tokens, values = [row["tokens"] for row in rows], [scale * row[key] for row in rows]
            axes.plot(tokens, values, color=COLORS[kind], linewidth=2, drawstyle="steps-pre", label=LABELS[kind])
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("tokens generated")
        axes.set_xlim(0, TOKENS)
        axes.set_ylim(0, None)
        axes.set_xticks(range(0, TOKENS + 1, 4096), [f"{n:,}" for n in range(0, TOKENS + 1, 4096)])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(CHART, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        found = measure_curves()
        print_table(found)
        draw(found)
