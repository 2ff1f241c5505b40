"""gemwright beside llama.cpp and transformers on the demo weights, in one run on one machine.

Every figure is measured in a process of its own; the engines take turns, so that a slow minute of the machine meets
them all. Prints a table in Markdown: medians of the rounds, with the least and the greatest.

    python bench/generate.py [--rounds 3]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.gguf import open_gguf
from gemwright.checkpoint.locate import DEMO, locate
from gemwright.kernels import packed
from gemwright.variants import VARIANTS

SCRIPT = Path(__file__).with_name("engines.py")
FIGURES = {
    "decode": ("decode, tokens/s", 1.0),
    "prefill": ("prefill of 512, tokens/s", 1.0),
    "cold": ("first start to first token, s", 1.0),
    "warm": ("later start to first token, s", 1.0),
    "peak": ("peak memory, MB", 1e-6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder, gguf = Path(scratch) / "huggingface", locate(DEMO)
        convert(gguf, folder, "huggingface", "float32")
        models = {
            "gemwright": gguf,
            "llama.cpp": gguf,
            "transformers float32": folder,
            "transformers bfloat16": folder,
        }
        results = {name: {figure: [] for figure in FIGURES} for name in models}
        for turn in range(rounds):
            for name, path in models.items():
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                for figure, value in measure(name, path, Path(scratch) / f"cache-{turn}").items():
                    results[name][figure].append(value)
    report(results, gguf)


def measure(name: str, path: Path, cache: Path) -> dict[str, float]:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(SCRIPT), name, str(path)]

    def first_token() -> float:
        start = time.perf_counter()
        with subprocess.Popen(
            [*command, "--first-token"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), f"{name} wrote nothing"
            return time.perf_counter() - start

    figures = {"cold": first_token(), "warm": first_token()}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(f"{name} failed:\n{output.stderr}")
    return figures | json.loads(output.stdout.splitlines()[-1])


def bandwidth() -> float:
    """Bytes per second at which all cores together read memory."""
    blocks = np.ones((os.cpu_count() or 1, 1 << 26), np.float32)

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(np.sum, blocks))
        return blocks.nbytes / (time.perf_counter() - start)

    with ThreadPoolExecutor(len(blocks)) as pool:
        return max(read() for _ in range(10))


def report(results: dict[str, dict[str, list[float]]], gguf: Path) -> None:
    speed = bandwidth()
    parameters = VARIANTS[DEMO].parameters
    stored = sum(info.nbytes for info in open_gguf(gguf).tensors.values())
    bytes_read = {
        "gemwright": stored if packed.use_native() else parameters * 4,
        "llama.cpp": stored,
        "transformers float32": parameters * 4,
        "transformers bfloat16": parameters * 2,
    }
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine()
    )
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"{time.strftime('%Y-%m-%d')}, {cpu}, {os.cpu_count()} cores, {speed / 1e9:.1f} GB/s read; {versions}\n")
    print("| | " + " | ".join(results) + " |")
    print("|---|" + "---|" * len(results))
    for figure, (title, scale) in FIGURES.items():
        cells = [cell([value * scale for value in engine[figure]]) for engine in results.values()]
        print(f"| {title} | " + " | ".join(cells) + " |")
    print("| bytes read a token, MB | " + " | ".join(f"{bytes_read[name] / 1e6:.0f}" for name in results) + " |")
    bounds = {name: statistics.median(engine["decode"]) * bytes_read[name] / speed for name, engine in results.items()}
    print("| of the measured bandwidth | " + " | ".join(f"{bounds[name]:.0%}" for name in results) + " |")


PACKAGES = ("gemwright", "jax", "llama_cpp_python", "transformers", "torch")


def cell(values: list[float]) -> str:
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 10 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
