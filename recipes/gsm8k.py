"""Tune the 270M to solve word problems step by step, and measure it before and after.

python recipes/gsm8k.py train.jsonl --out gsm8k

The data are JSON lines with a question and an answer that ends with `#### number`:
https://github.com/openai/grade-school-math. The training takes less than half an hour with two cores.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
import numpy as np

import gemwright
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

RECIPE = Recipe(learning_rate=1e-3, length=512, batch_size=2)
MINUTES = 20.0
HELD_OUT = 200
SEED = 0
FINAL = re.compile(r"####\s*(-?[\d,]*\.?\d+)\s*$")
"""The number at the end of an answer."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Tune a model on GSM8K.")
    parser.add_argument("data", type=Path, help="train.jsonl of GSM8K")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the training on two cores")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="number of records to measure on")
    options = parser.parse_args()
    steps = measure.steps_of(options.minutes, RECIPE.batch_size * RECIPE.length)
    run(options.model, options.data, options.out, steps, options.held_out)


def run(model: str, data: Path, out: Path, steps: int, held_out: int = HELD_OUT) -> dict[str, Any]:
    """Tune a model for a number of steps, and return the measures before and after."""
    training, test = split(data, out / "data", held_out)
    questions = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    print(f"Measuring {model} on {held_out} records ...", flush=True)
    before = measure_answers(gemwright.load(model), test, questions)
    recipe = Recipe(**RECIPE.document() | {"steps": steps})
    adapter = train(prepare(model, training, out / "run", recipe, held_out=0.0), measure.report)
    print(f"Measuring {adapter} ...", flush=True)
    after = measure_answers(gemwright.load(adapter), test, questions)
    measure.write_results(adapter.parent / "results.json", before, after, steps=steps)
    return {"before": before, "after": after}


def split(data: Path, folder: Path, held_out: int) -> tuple[Path, Path]:
    """Write the records in two files, of which the second has `held_out` random ones."""
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
    order = np.random.default_rng(SEED).permutation(len(records)).tolist()
    parts = {"test.jsonl": sorted(order[:held_out]), "train.jsonl": sorted(order[held_out:])}
    test, training = (
        measure.write_records(folder / name, [records[index] for index in part]) for name, part in parts.items()
    )
    return training, test


def measure_answers(model: gemwright.Model, file: Path, records: list[Mapping[str, str]]) -> dict[str, float]:
    """Return the loss of the answers, and the shares of greedy replies with a final number and with the right one."""
    prompts = [[{"role": "user", "content": record["question"]}] for record in records]
    answers = measure.replies(model, prompts, temperature=0.0)
    found = [final_number(reply.text) if reply.finish_reason == "stop" else None for reply in answers]
    wanted = [final_number(record["answer"]) for record in records]
    right = [number is not None and number == target for number, target in zip(found, wanted, strict=True)]
    return {
        "loss of the answers (nats per token)": measure.answer_loss(model, file),
        "replies that end with #### number": float(np.mean([number is not None for number in found])),
        "replies with the right number": float(np.mean(right)),
    }


def final_number(text: str) -> float | None:
    """Return the number after the last `####`; None if the text does not end with it."""
    match = FINAL.search(text)
    return float(match[1].replace(",", "")) if match else None


if __name__ == "__main__":
    main()
