"""Teach a tiny Gemma to add by trial and reward: supervised tuning first, then GRPO with three seeds.

python recipes/grpo.py --out grpo

The model has 0.8 million parameters and a vocabulary of single characters and bytes. It begins from nothing, is tuned
briefly on sums with their results, and then only sees sums, and for each of its replies whether the number is right.
"""

import argparse
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from sentencepiece import SentencePieceTrainer

import gemwright
from gemwright.checkpoint.create import create
from gemwright.train.objectives.policy import Grpo
from gemwright.train.plot import Curve, plot
from gemwright.train.recipe import Recipe
from gemwright.train.run import Progress, prepare, train

SEEDS = (0, 1, 2)
HELD_OUT = 500
"""Number of sums that are never trained on."""
TUNED, PRACTICED = 2000, 4000
"""Numbers of sums with their results, and of sums alone."""
CHARACTERS = "0123456789+="
VOCABULARY = 4 + 256 + len(CHARACTERS)
"""Number of ids: control tokens, bytes and characters."""
CONFIG = {
    "vocab_size": VOCABULARY,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 384,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "sliding_window": 32,
    "query_pre_attn_scalar": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TUNING = Recipe(method="full", learning_rate=2e-3, length=128, batch_size=4, steps=280)
POLICY = Recipe(method="full", learning_rate=1e-4, schedule="constant", length=16, batch_size=256, steps=200)
OBJECTIVE = Grpo(reward="exact", group=8, max_tokens=5, beta=0.04)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="GRPO on arithmetic.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; continued if it exists")
    parser.add_argument("--steps", type=int, default=POLICY.steps, help="steps of GRPO")
    parser.add_argument("--tuning", type=int, default=TUNING.steps, help="steps of supervised tuning")
    options = parser.parse_args()
    run(options.out, options.steps, options.tuning)


def run(out: Path, steps: int | None, tuning: int | None) -> dict[str, Any]:
    """Tune a model, train it with each seed, and return what was measured."""
    files = write_sums(out / "data")
    start = tune(out, files["tuning"], tuning)
    print(f"Measuring {start} ...", flush=True)
    before = measure_sums(start, files["test"])
    after: list[dict[str, float]] = []
    histories: list[list[dict[str, Any]]] = []
    for seed in SEEDS:
        folder = out / f"seed-{seed}"
        recipe = Recipe(**POLICY.document() | {"steps": steps, "seed": seed})
        prepared = prepare(start, files["practice"], folder, recipe, held_out=0.0, objective=OBJECTIVE)
        result = train(prepared, report)
        after.append(measure_sums(result, files["test"]))
        histories.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    return write_report(out, before, after, histories)


def write_sums(folder: Path) -> dict[str, Path]:
    """Write sums of two numbers of two digits: to be tuned on, to practice and to measure on, no sum in two files."""
    pairs = np.random.default_rng(0).permutation(90 * 90).tolist()
    records = [{"prompt": f"{a}+{b}=", "completion": str(a + b), "answer": str(a + b)} for a, b in map(_digits, pairs)]
    parts = {"test": records[:HELD_OUT], "tuning": records[HELD_OUT : HELD_OUT + TUNED]}
    parts["practice"] = records[HELD_OUT + TUNED : HELD_OUT + TUNED + PRACTICED]
    return {name: measure.write_records(folder / f"{name}.jsonl", part) for name, part in parts.items()}


def _digits(pair: int) -> tuple[int, int]:
    return 10 + pair // 90, 10 + pair % 90


def tune(out: Path, data: Path, steps: int | None) -> Path:
    """Make a model and tune it on sums with their results."""
    base = out / "base"
    if not base.exists():
        tokenizer = out / "data" / "tokenizer.model"
        write_tokenizer(tokenizer)
        config = out / "data" / "config.json"
        config.write_text(json.dumps(CONFIG))
        create(config, str(tokenizer), base)
    recipe = Recipe(**TUNING.document() | {"steps": steps})
    return train(prepare(base, data, out / "tuned", recipe, held_out=0.0), report)


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of the characters of sums, and of bytes for all others."""
    model = io.BytesIO()
    SentencePieceTrainer.train(  # pyright: ignore
        sentence_iterator=iter([CHARACTERS]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        max_sentencepiece_length=1,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def measure_sums(folder: Path, file: Path) -> dict[str, float]:
    """Return the share of the greedy replies to held-out sums that are right."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    model = gemwright.load(folder, dtype="float32")
    prompts = [record["prompt"] for record in records]
    replies = list(_generate(model, prompts))
    right = [reply.strip() == record["answer"] for reply, record in zip(replies, records, strict=True)]
    return {"right": float(np.mean(right))}


def _generate(model: gemwright.Model, prompts: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(prompts), 125):
        part = model.generate(list(prompts[start : start + 125]), max_tokens=OBJECTIVE.max_tokens, temperature=0.0)
        yield from (found.text for found in part)


def report(progress: Progress) -> None:
    """Print some of the steps."""
    if progress.step in (1, progress.steps) or progress.step % 25 == 0:
        others = "".join(f", {name} {progress.metrics[name]:.3f}" for name in ("reward", "kl") if progress.metrics)
        print(f"step {progress.step}/{progress.steps}: loss {progress.loss:.4f}{others}", flush=True)


def write_report(
    out: Path,
    before: Mapping[str, float],
    after: Sequence[Mapping[str, float]],
    histories: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Print a table, and write it as JSON and plots of reward and divergence."""
    rows = []
    for seed, measured, history in zip(SEEDS, after, histories, strict=True):
        lines = [line["metrics"] for line in history if line["step"] > 0]
        first, last = lines[:10], lines[-10:]
        rows.append(
            {
                "seed": seed,
                "right before": before["right"],
                "right after": measured["right"],
                "reward, first 10 steps": float(np.mean([line["reward"] for line in first])),
                "reward, last 10 steps": float(np.mean([line["reward"] for line in last])),
                "KL, last 10 steps": float(np.mean([line["kl"] for line in last])),
                "largest KL": max(line["kl"] for line in lines),
                "largest difference to the engine": max(line["engine_difference"] for line in lines),
            }
        )
    print("\n" + "".join(f"{name:>34}{''.join(f'{row[name]:>12.4g}' for row in rows)}\n" for name in rows[0]))
    titles = {"reward": "share of right replies", "kl": "divergence per token: nats"}
    for name, title in titles.items():
        curves = [
            Curve(f"seed {seed}", [(line["step"], line["metrics"][name]) for line in history if line["step"]])
            for seed, history in zip(SEEDS, histories, strict=True)
        ]
        plot(out / f"{name}.png", curves, title)
    results = {"steps": histories[0][-1]["step"], "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(out / "results.json")
    return results


if __name__ == "__main__":
    main()
