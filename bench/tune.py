"""Compare tuning with transformers and PEFT on this machine's CPU, in one run.

Every figure is measured in its own process, and the trainers alternate. Prints a table in Markdown with the medians of
the rounds.

    python bench/tune.py [--rounds 3] [--steps 5] [--only PART]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import models
from trainers import Task

HERE = Path(__file__).parent
SHAPES = ((4, 256), (1, 1024))
PARTS = {
    "lora": [("peft", "lora", "float32"), ("peft", "lora", "bfloat16"), ("gemwright", "lora", "float32"),
             ("gemwright", "lora", "bfloat16"), ("gemwright", "lora", "stored")],
    "full": [("peft", "full", "float32"), ("gemwright", "full", "float32"), ("gemwright", "full", "bfloat16")],
}  # fmt: skip
"""Trainer, method and dtype of the weights of each row; a full `bfloat16` run has float32 masters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    found: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.json"
        for turn in range(arguments.rounds):
            for part in [arguments.only] if arguments.only else PARTS:
                for sequences, length in SHAPES if part == "lora" else SHAPES[:1]:
                    rows.write_text(json.dumps(make_rows(length)))
                    for trainer, method, base in PARTS[part]:
                        threads = len(os.sched_getaffinity(0))
                        path = find_model(trainer, base)
                        task = Task(trainer, method, base, sequences, length, arguments.steps, path, threads)
                        result = measure(task, rows)
                        key = (f"{method}, {sequences} x {length}", f"{trainer}, {base}")
                        for name in ("rate", "peak", "whole", "first"):
                            found[key][name].append(result[name])
                        found[key]["loss"].append(result["losses"][0])
                        print(f"round {turn + 1}, {', '.join(key)}: {result['rate']:.0f} tokens/s", file=sys.stderr)
    show(found)


def find_model(trainer: str, base: str) -> str:
    stored = trainer == "gemwright" and base == "stored"
    return str(models.locate_demo() if stored else models.make_demo_folder())


def make_rows(length: int) -> list[list[int]]:
    """Return rows of tokens of the license, each with one token more than `length`."""
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(open_checkpoint(models.locate_demo()).vocabulary())
    ids = tokenizer.encode((HERE.parent / "LICENSE").read_text())
    ids = list(ids) * (1 + 16 * (length + 1) // len(ids))
    return [ids[start : start + length + 1] for start in range(0, len(ids) - length, length + 1)]


def measure(task: Task, rows: Path) -> dict[str, float | list[float]]:
    command = (sys.executable, HERE / "trainers.py", json.dumps(asdict(task)), rows)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(f"{task} failed ({output.returncode}):\n{output.stderr}")
    return json.loads(output.stdout.splitlines()[-1])


def show(found: dict[tuple[str, ...], dict[str, list[float]]]) -> None:
    print("| | trainer, weights | tokens/s | peak MB | whole process MB | first step s | first loss |")
    print("|---|---|---|---|---|---|---|")
    for (title, trainer), values in found.items():
        rate = values["rate"]
        spread = f" ({min(rate):.0f} to {max(rate):.0f})" if len(rate) > 1 else ""
        peak, whole, first, loss = (statistics.median(values[name]) for name in ("peak", "whole", "first", "loss"))
        print(
            f"| {title} | {trainer} | {statistics.median(rate):.0f}{spread} | {peak:.0f} | {whole:.0f} | {first:.0f} | "
            f"{loss:.5f} |"
        )


if __name__ == "__main__":
    main()
