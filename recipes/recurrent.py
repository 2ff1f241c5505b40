"""Pretrain a tiny RecurrentGemma beside a tiny Gemma on the same text, and compare them.

python recipes/recurrent.py prose.txt --out recurrent

Both have about as many parameters and see the same tokens. The table has the loss of text that was held out, the speed
of training, and the bytes of the state from which a text is continued: that of a Gemma grows with the text.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
import nothing
import numpy as np

from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.params import parameter_count
from gemwright.model.state import state_bytes
from gemwright.train.recipe import Recipe
from gemwright.train.run import Progress, prepare, train

MODELS: Mapping[str, Mapping[str, Any]] = {
    "Gemma": {
        "model_type": "gemma",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 8192,
    },
    "RecurrentGemma": {
        "model_type": "recurrent_gemma",
        "hidden_size": 128,
        "intermediate_size": 2 * 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "lru_width": 128,
        "attention_window_size": 64,
    },
}
"""Keys of the configurations; RecurrentGemma counts both branches of an MLP."""
VOCABULARY = 1024
STEPS = 80
LENGTH, BATCH = 256, 8
LONG = 8192
"""Number of tokens of the longer text whose state is counted."""
HELD_OUT = 0.05
"""Share of the paragraphs that are held out."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare a tiny RecurrentGemma and a tiny Gemma.")
    parser.add_argument("prose", type=Path, help="text file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each of the two runs")
    options = parser.parse_args()
    run(options.prose, options.out, options.steps)


def run(prose: Path, out: Path, steps: int) -> dict[str, dict[str, float]]:
    """Train both models, and return the measures."""
    text = prose.read_text(encoding="utf-8")
    vocabulary = nothing.train_vocabulary([text], VOCABULARY, out / "tokenizer.model")
    data = measure.write_records(out / "data.jsonl", [{"text": part} for part in paragraphs(text)])
    recipe = Recipe(
        method="full",
        learning_rate=4e-3,
        length=LENGTH,
        batch_size=BATCH,
        steps=steps,
        packing="concatenate",
    )
    results: dict[str, dict[str, float]] = {}
    for name, config in MODELS.items():
        print(f"\nTraining a {name} ...", flush=True)
        model = nothing.make_model(config, vocabulary, out / f"{name}-start")
        folder = out / name
        train(prepare(model, data, folder, recipe, held_out=HELD_OUT), measure.report, print)
        results[name] = measure_run(model, folder)
    write(out / "results.json", results, steps)
    return results


def paragraphs(text: str, size: int = 2000) -> list[str]:
    """Return a text in parts of about a number of characters, between lines."""
    parts, lines = list[str](), list[str]()
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= size:
            parts.append("".join(lines))
            lines = []
    return [part for part in (*parts, "".join(lines)) if part.strip()]


def measure_run(model: Path, folder: Path) -> dict[str, float]:
    """Return the measures of a run that is finished."""
    config = open_checkpoint(model).config
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [Progress(**line) for line in lines if line["step"]]
    speeds = [step.tokens / step.seconds for step in steps]
    return {
        "parameters": parameter_count(config),
        "tokens of training": sum(step.tokens for step in steps),
        "held-out loss before": lines[0]["held_out"],
        "held-out loss": next(step.held_out for step in reversed(steps) if step.held_out is not None),
        "tokens/s of training (median)": float(np.median(speeds)),
        f"bytes of the state after {LENGTH:,} tokens": state_bytes(config, 1, LENGTH, np.float32),
        f"bytes of the state after {LONG:,} tokens": state_bytes(config, 1, LONG, np.float32),
    }


def write(file: Path, results: Mapping[str, Mapping[str, float]], steps: int) -> None:
    """Print a table of measures, and write it as JSON."""
    print(f"\n{'':40}" + "".join(f"{name:>18}" for name in results))
    for measured in next(iter(results.values())):
        values = [found[measured] for found in results.values()]
        texts = [f"{value:.4f}" if "loss" in measured else f"{value:,.0f}" for value in values]
        print(f"{measured:40}" + "".join(f"{text:>18}" for text in texts))
    file.write_text(json.dumps({**results, "steps": steps}, indent=2) + "\n", encoding="utf-8")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
