"""Train a reward model, and the model itself with DPO, on pairs of answers, and measure both on held-out pairs.

python recipes/preferences.py harmless-base_test.jsonl.gz --out preferences

The data are JSON lines with a chosen and a rejected dialogue: https://github.com/anthropics/hh-rlhf. Pairs of more than
256 tokens are left out. Each of the two runs takes about a quarter of an hour with two cores.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import numpy as np

from gemwright.data.sources import find_files, read_records
from gemwright.eval.intervals import wilson
from gemwright.train.metrics import LINES
from gemwright.train.objectives.objective import Objective
from gemwright.train.objectives.preference import Dpo
from gemwright.train.objectives.reward import Reward
from gemwright.train.recipe import Recipe
from gemwright.train.run import Progress, prepare, train

RECIPES: Mapping[str, tuple[Objective, Recipe]] = {
    "reward": (Reward(), Recipe(learning_rate=3e-4, length=256, batch_size=6, steps=100)),
    "dpo": (Dpo(beta=0.1), Recipe(learning_rate=5e-5, length=256, batch_size=6, steps=40)),
}
HELD_OUT = 600
"""Number of records that are held out, of which less than half are short enough."""
SEED = 0
LABELS = {
    "accuracy": "chosen answer has the higher reward",
    "likelier": "chosen answer is likelier",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train a reward model and DPO on pairs of answers.")
    parser.add_argument("data", type=Path, help="file of HH-RLHF")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--objective", choices=RECIPES, action="append", help="run only this one")
    parser.add_argument("--steps", type=int, help="number of steps")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="number of records to measure on")
    options = parser.parse_args()
    training, test = split(options.data, options.out / "data", options.held_out)
    for name in options.objective or RECIPES:
        objective, recipe = RECIPES[name]
        recipe = replace(recipe, steps=options.steps or recipe.steps)
        run(options.model, training, test, options.out / name, objective, recipe)


def split(data: Path, folder: Path, held_out: int) -> tuple[Path, Path]:
    """Write the records in two files, of which the second has `held_out` random ones."""
    records = [record.fields for record in read_records(find_files(data))]
    order = np.random.default_rng(SEED).permutation(len(records)).tolist()
    parts = {"train.jsonl": sorted(order[held_out:]), "test.jsonl": sorted(order[:held_out])}
    training, test = (
        measure.write_records(folder / name, [records[index] for index in part]) for name, part in parts.items()
    )
    return training, test


def run(model: str, training: Path, test: Path, out: Path, objective: Objective, recipe: Recipe) -> dict[str, Any]:
    """Train, and return the measures of the held-out pairs before and after."""
    prepared = prepare(model, training, out, recipe, held_out=test, objective=objective)
    assert prepared.held_out is not None
    pairs = len(prepared.held_out.documents) // 2

    def report(progress: Progress) -> None:
        if progress.step:
            measure.report(progress)

    print(f"Training {model} with the objective {objective.name} ...", flush=True)
    folder = train(prepared, report, print, evaluate_every=recipe.steps)
    lines = (out / LINES).read_text(encoding="utf-8").splitlines()
    before, after = (describe(json.loads(lines[place]), pairs) for place in (0, -1))
    print(f"\n{objective.name}, {pairs} held-out pairs, with 95% intervals\n{'':40}{'before':>22}{'after':>22}")
    for name in before:
        print(f"{name:40}{show(before[name]):>22}{show(after[name]):>22}")
    results = {"objective": objective.name, "pairs": pairs, "before": before, "after": after}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}\n", flush=True)
    return results


def describe(line: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Return the loss and other measures of held-out pairs, from a line of metrics; shares with their 95% intervals."""
    found: dict[str, Any] = {"loss": line["held_out"]}
    for name, value in line["metrics"].items():
        if name.startswith("held-out "):
            key = name.removeprefix("held-out ")
            found[LABELS.get(key, key)] = [value, *wilson(value * pairs, pairs)] if key in LABELS else value
    return found


def show(value: Any) -> str:
    """Return a measure as text."""
    return "{:.1%} ({:.0%} to {:.0%})".format(*value) if isinstance(value, list) else f"{value:.4f}"


if __name__ == "__main__":
    main()
