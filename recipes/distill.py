"""Distill a small Gemma 3 from a larger one, and compare it with one that learns the same tokens without a teacher.

python recipes/distill.py text.txt --out distilled

The text is any prose in files: a vocabulary, a teacher and the students are trained on it from nothing, apart from
paragraphs that are held out.
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import measure
import numpy as np
import sentencepiece

from gemwright.checkpoint.create import create
from gemwright.train.objectives.distill import Distill
from gemwright.train.objectives.objective import NEXT_TOKEN, Objective
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

TOKENS = 512
"""Size of the vocabulary: a larger one would make the head all there is."""
STUDENT = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2}
TEACHER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3}
SHAPE = {
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 32,
    "max_position_embeddings": 256,
}
RECIPE = Recipe(method="full", learning_rate=5e-3, length=64, batch_size=16, warmup=0.1)
STEPS, TEACHER_STEPS = 100, 300
SEEDS = (0, 1, 2)
HELD_OUT = 0.03
SAMPLES = 256
MIN_PARAGRAPH = 100
"""Characters of the shortest paragraph; shorter ones are headings."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare distillation with training from scratch.")
    parser.add_argument("data", type=Path, nargs="+", help="text files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a student")
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS, help="steps of the teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    run(options.data, options.out, options.steps, options.teacher_steps, options.seeds)


def run(
    data: Sequence[Path],
    out: Path,
    steps: int = STEPS,
    teacher_steps: int = TEACHER_STEPS,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, list[float]]:
    """Train the teacher and the students, and return the held-out losses of each kind of student, one for each seed."""
    training, held_out = split(data, out / "data")
    tokenizer = train_vocabulary(training, out / "tokenizer.model")
    runs = Runs(training, held_out, tokenizer, out)
    teacher, teacher_loss = runs.train("teacher", TEACHER, 0, teacher_steps)
    objectives: dict[str, Objective] = {
        "from scratch": NEXT_TOKEN,
        "distilled": Distill(str(teacher)),
        f"distilled, {SAMPLES} draws": Distill(str(teacher), samples=SAMPLES),
    }
    losses = {
        name: [runs.train(f"{name} {seed}", STUDENT, seed, steps, objective)[1] for seed in seeds]
        for name, objective in objectives.items()
    }
    tokens = RECIPE.batch_size * RECIPE.length * steps
    print_table(losses, teacher_loss, tokens)
    results = {"tokens": tokens, "seeds": list(seeds), "teacher": teacher_loss, "losses": losses}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return losses


class Runs:
    """The runs on some data, in a folder each.

    Args:
        training: The training data.
        held_out: The held-out data.
        tokenizer: The tokenizer's file.
        out: The folder of the results.
    """

    def __init__(self, training: Path, held_out: Path, tokenizer: Path, out: Path):
        self._training, self._held_out, self._tokenizer, self._out = training, held_out, tokenizer, out

    def train(
        self, name: str, size: Mapping[str, int], seed: int, steps: int, objective: Objective = NEXT_TOKEN
    ) -> tuple[Path, float]:
        """Train a model of a size from nothing, and return it with the held-out loss of its next tokens."""
        print(f"\n{name}", flush=True)
        start = self._make(size, seed)
        recipe = Recipe(**RECIPE.document() | {"steps": steps, "seed": seed})
        folder = self._out / name.replace(",", "").replace(" ", "-")
        prepared = prepare(start, self._training, folder, recipe, held_out=self._held_out, objective=objective)
        model = train(prepared, measure.report, evaluate_every=steps)
        last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        return model, last["metrics"].get("held-out next-token loss", last["held_out"])

    def _make(self, size: Mapping[str, int], seed: int) -> Path:
        folder = self._out / f"start-{size['hidden_size']}-{seed}"
        if not folder.exists():
            config = self._out / f"{folder.name}.json"
            config.write_text(json.dumps({**SHAPE, **size, "vocab_size": TOKENS}), encoding="utf-8")
            create(config, str(self._tokenizer), folder, seed)
        return folder


def split(data: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """Write the paragraphs of texts as records, and some of them apart."""
    lines = (line.strip() for file in data for line in file.read_text(encoding="utf-8").splitlines())
    records = [{"text": line} for line in lines if len(line) >= MIN_PARAGRAPH]
    apart = np.random.default_rng(0).random(len(records)) < HELD_OUT
    parts = ("training", False), ("held-out", True)
    training, held_out = (
        measure.write_records(
            folder / f"{name}.jsonl", [record for record, held in zip(records, apart, strict=True) if held == wanted]
        )
        for name, wanted in parts
    )
    return training, held_out


def train_vocabulary(file: Path, path: Path) -> Path:
    """Train a SentencePiece vocabulary like Gemma's: BPE with bytes, digits apart, and nothing normalized."""
    if path.exists():
        return path
    texts = (json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines())
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=written,
        model_type="bpe",
        vocab_size=TOKENS,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return path


def print_table(losses: Mapping[str, Sequence[float]], teacher: float, tokens: int) -> None:
    """Print the losses of each kind of student, their mean and their standard deviation."""
    print(f"\nheld-out loss (nats per token) after {tokens:,} tokens; the teacher has {teacher:.4f}\n")
    for name, values in losses.items():
        each = "".join(f"{value:10.4f}" for value in values)
        deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        print(f"{name:24}{each}   mean {np.mean(values):.4f}{deviation}")


if __name__ == "__main__":
    main()
