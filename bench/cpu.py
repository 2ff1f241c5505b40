"""Compare gemwright with llama.cpp and transformers on this machine's CPU, in one run.

Every figure is measured in its own process, limited to the figure's number of cores. The engines alternate, so that a
slow minute of the machine affects all of them, and the machine itself is measured between figures. Prints tables in
Markdown, with the median, minimum and maximum of the rounds, and draws docs/decode-context.png.

    python bench/cpu.py [--rounds 3] [--only PART] [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import models
import report
from engines import MODULES, Task
from report import Figure, Found, Machine

HERE = Path(__file__).parent
MACHINE = (sys.executable, HERE.parent / "native" / "machine.py")
CORES = sorted(os.sched_getaffinity(0))
SINGLE = tuple(name for name in MODULES if MODULES[name][0] != "openvino" or models.OPENVINO.exists())
"""Engines that decode one sequence."""
SEVERAL = tuple(name for name in SINGLE if MODULES[name][0] != "openvino")
BOTH = ("gemwright", "llama.cpp")
CONTEXTS = (128, 512, 2048, 8192)


def list_figures(quick: bool) -> list[Figure]:
    """Return all figures in order; `quick` shortens prompts and texts, to check that everything runs."""

    def task(prompt: int, tokens: int, sequences: int = 1, sampled: bool = False) -> Task:
        return (
            Task(prompt // 16, min(tokens, 3), sequences, sampled)
            if quick
            else Task(prompt, tokens, sequences, sampled)
        )

    def prefill(prompt: int) -> tuple[str, Task]:
        return f"prefill of {prompt}, tokens/s", task(prompt, 1)

    decode, all_cores = ("decode, tokens/s", task(128, 128)), len(CORES)
    return [
        Figure("start", "to the first token, s", None, SINGLE, "demo", all_cores),
        Figure("decode", *decode, SINGLE, "demo", all_cores),
        Figure("decode", "decode, sampled, tokens/s", task(128, 128, sampled=True), SINGLE, "demo", all_cores),
        Figure("eight", "eight sequences together, tokens/s", task(32, 64, sequences=8), SEVERAL, "demo", all_cores),
        Figure("prefill", *prefill(512), SINGLE, "demo", all_cores),
        Figure("prefill", *prefill(2048), SINGLE, "demo", all_cores),
        Figure("single", *decode, SINGLE, "demo", 1),
        Figure("single", *prefill(512), SINGLE, "demo", 1),
        Figure("large", *decode, BOTH, "large", all_cores),
        Figure("large", *prefill(512), BOTH, "large", all_cores),
        *(Figure("context", f"{past:,}", task(past, 32), BOTH, "demo", all_cores) for past in CONTEXTS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="PART", choices=sorted({figure.part for figure in list_figures(False)}))
    parser.add_argument("--quick", action="store_true", help="check that everything runs; the numbers are meaningless")
    arguments = parser.parse_args()
    chosen = [figure for figure in list_figures(arguments.quick) if arguments.only in (None, figure.part)]
    paths = {
        (figure.model, engine): locate_model(figure.model, engine) for figure in chosen for engine in figure.engines
    }
    models.write_prompt()
    found: Found = defaultdict(list)
    machine: Machine = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(arguments.rounds):
            for figure in chosen:
                machine[figure.threads].append(json.loads(run(figure.threads, *MACHINE)))
                for engine in figure.engines:
                    start = time.perf_counter()
                    cache = Path(scratch) / (f"start-{turn}" if figure.task is None else "kept")
                    for name, value in measure(figure, engine, paths[figure.model, engine], cache).items():
                        found[figure, engine, name].append(value)
                    print(
                        f"round {turn + 1} of {arguments.rounds}, {figure.part}, {figure.title}, {engine}: "
                        f"{time.perf_counter() - start:.0f} s",
                        file=sys.stderr,
                    )
    report.show(chosen, found, machine, arguments.quick)


def locate_model(name: str, engine: str) -> Path:
    if name == "large":
        return models.make_large_gguf()
    paths = {"huggingface": models.make_demo_folder, "openvino": lambda: models.OPENVINO / "model"}
    return paths.get(MODULES[engine][0], models.locate_demo)()


def measure(figure: Figure, engine: str, path: Path, cache: Path) -> dict[str, float]:
    """Run one measurement and return its numbers by name; compiled programs are cached in `cache`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have compiled bytecode
    python = models.OPENVINO / "venv" / "bin" / "python" if MODULES[engine][0] == "openvino" else sys.executable
    command = (python, HERE / "worker.py", engine, path)
    if figure.task is None:
        return {
            name: time_first_token(figure.threads, *command, environment=environment)
            for name in ("first start", "later start")
        }
    output = run(figure.threads, *command, json.dumps(asdict(figure.task)), environment=environment)
    result = json.loads(output.splitlines()[-1])
    first, last = result["times"][0], result["times"][-1]
    if figure.task.tokens == 1:
        return {"rate": figure.task.prompt / first}
    return {"rate": figure.task.sequences * (figure.task.tokens - 1) / (last - first), "peak": result["peak"]}


def run(threads: int, *command: Path | str, environment: dict[str, str] | None = None) -> str:
    """Run a program on a number of cores and return its output."""
    with limit_cores(threads):
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed ({output.returncode}):\n{output.stderr}")
    return output.stdout


def time_first_token(threads: int, *command: Path | str, environment: dict[str, str]) -> float:
    """Return the seconds from the start of a program until it writes its first line."""
    start = time.perf_counter()
    with (
        limit_cores(threads),
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
    ):
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{' '.join(map(str, command))} wrote nothing.")
        return time.perf_counter() - start


@contextmanager
def limit_cores(count: int) -> Iterator[None]:
    """Limit this process and its children to a number of cores."""
    os.sched_setaffinity(0, CORES[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


if __name__ == "__main__":
    main()
