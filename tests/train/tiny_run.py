"""A tiny model, a little data, and runs on them; as a program, one run: `python -m tests.train.tiny_run OUT [JSON]`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError
from gemwright.runtime import distributed
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective
from gemwright.train.recipe import Recipe
from gemwright.train.run import Run, prepare, train

RECIPE = {"rank": 2, "length": 32, "batch_size": 2, "steps": 8, "learning_rate": 1e-2, "ema": 0.9}
TIMES = ("time", "seconds", "flops", "utilization", "memory", "remaining")
WORDS = ["the", "and", "thing", "in", "ring", "hat", "than", "here", "QED", "man"]


def write_data(path: Path, records: int = 24, first: int = 0) -> Path:
    """Write prompts and completions of different lengths."""
    lines: list[str] = []
    for index in range(first, first + records):
        words = [WORDS[(index * index + 3 * place) % len(WORDS)] for place in range(3 + index % 5)]
        lines.append(json.dumps({"prompt": words[0], "completion": " ".join(words)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare_tiny(
    folder: Path,
    out: Path,
    held_out: Any = 0.2,
    prompts: tuple[str, ...] = (),
    objective: Objective = NEXT_TOKEN,
    **recipe: Any,
) -> Run:
    """Prepare a run on the model and the data in a folder."""
    settings, data = Recipe(**RECIPE | recipe), folder / "train.jsonl"
    return prepare(folder / "model", data, out, settings, held_out=held_out, prompts=prompts, objective=objective)


def result(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the trained weights and the metrics, without those that depend on time."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return (out / "adapter" / "adapter_model.safetensors").read_bytes(), steps


def main() -> None:
    distributed.join()
    folder, out = map(Path, sys.argv[1:3])
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    mesh, save_every = options.pop("mesh", None), options.pop("save_every", 2)
    run = prepare_tiny(folder, out, **options)
    train(run, lambda progress: say(f"step {progress.step}"), say, save_every=save_every, mesh=mesh)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except GemwrightError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(2)  # as the command line does, without waiting for other processes
