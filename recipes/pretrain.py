"""Pretrain a tiny Gemma from nothing on prose and Python, with and without fill-in-the-middle, and compare them.

python recipes/pretrain.py prose.txt --out pretrain

The Python is the standard library of the interpreter. The vocabulary has 2,048 tokens: with Gemma's 262,144, the head
would be all there is. The model trains in two stages, of which the second has more Python. Then statements of functions
that were held out are predicted: from what is before them alone, and from what is before and after them.
"""

import argparse
import ast
import itertools
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure
import nothing
import numpy as np

import gemwright
from gemwright.data.code import read_source_files
from gemwright.data.infill import Order, Parts, encode
from gemwright.data.python_code import find_statements
from gemwright.text.tokenizer import Tokenizer
from gemwright.train.description import prepare_described, read_description
from gemwright.train.run import train

CONFIG = {
    "model_type": "gemma3_text",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 512,
}
VOCABULARY = 2048
"""Number of tokens."""
STEPS = 150
LENGTH, BATCH = 256, 8
SEED = 0
FILES, HELD_OUT_FILES = 200, 40
"""Number of files of the library that are trained on, and of others that are held out."""
GAPS = 200
"""Number of statements that are predicted."""
SMALLEST = 20
"""Least number of characters of such a statement; the function around it fits in a sequence."""
RUN = """model = "{model}"
out = "{out}"
held_out = 0.003

[recipe]
method = "full"
learning_rate = 4e-3
length = {length}
batch_size = {batch}
steps = {steps}

[[data]]
name = "prose"
path = "{prose}"
epochs = 10

[[data]]
name = "python"
path = "{python}"
infill = {infill}
repository = true
epochs = 10

[[stages]]
share = 0.7
weights = {{ prose = 0.4, python = 0.6 }}

[[stages]]
share = 0.3
weights = {{ prose = 0.1, python = 0.9 }}
"""


class Gap(NamedTuple):
    """A statement to predict: the path of its file, and the function around it in three parts."""

    path: str
    parts: Parts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tiny Gemma with and without fill-in-the-middle.")
    parser.add_argument("prose", type=Path, help="text file, or file of JSON lines with texts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")), help="folder of Python")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each of the two runs")
    parser.add_argument("--gaps", type=int, default=GAPS, help="number of statements to predict")
    options = parser.parse_args()
    run(options.prose, options.out, options.library, options.steps, options.gaps)


def run(prose: Path, out: Path, library: Path, steps: int, gaps: int = GAPS) -> dict[str, Any]:
    """Train both models, and return the measures."""
    training, held_out = split(library)
    python = measure.write_records(out / "data" / "python.jsonl", training)
    texts = [*(record["text"] for record in training), prose.read_text(encoding="utf-8")]
    vocabulary = nothing.train_vocabulary(texts, VOCABULARY, out / "tokenizer.model")
    start = nothing.make_model(CONFIG, vocabulary, out / "start", SEED)
    models: dict[str, gemwright.Model] = {}
    for name, infill in (("fill-in-the-middle", 0.8), ("left-to-right", 0.0)):
        print(f"\nTraining with {infill:.0%} fill-in-the-middle ...", flush=True)
        file = out / f"{name}.toml"
        file.write_text(
            RUN.format(
                model=start,
                out=out / name,
                prose=prose,
                python=python,
                infill=infill,
                length=LENGTH,
                batch=BATCH,
                steps=steps,
            ),
            encoding="utf-8",
        )
        prepared = prepare_described(read_description(file))
        result = train(prepared, measure.report, print)
        print(*(f"share of {name}: {share:.2%}" for name, share in prepared.batches.shares(0, steps).items()), sep="\n")
        models[name] = gemwright.load(result)
    wanted = find_gaps(held_out, models["left-to-right"].tokenizer, gaps)
    print(f"\nPredicting {len(wanted)} statements of {len(held_out)} files that were held out ...", flush=True)
    results = measure_gaps(models, wanted)
    write(out / "results.json", results, steps)
    return results


def split(library: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the files of the library as records, and those that are held out."""
    records = [
        {"repository": "python", "path": file.path, "text": file.text}
        for file in read_source_files([library])
        if not {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"} & {*Path(file.path).parts}
    ]
    random.Random(SEED).shuffle(records)
    return records[HELD_OUT_FILES : HELD_OUT_FILES + FILES], records[:HELD_OUT_FILES]


def find_gaps(files: Sequence[dict[str, str]], tokenizer: Tokenizer, count: int) -> list[Gap]:
    """Return random statements of functions, each with the function around it."""
    found = [gap for file in files for gap in _gaps(file)]
    random.Random(SEED).shuffle(found)
    fitting = (gap for gap in found if len(encode(tokenizer, gap.parts, "PSM", gap.path)) < LENGTH)
    return list(itertools.islice(fitting, count))


def _gaps(file: dict[str, str]) -> Iterator[Gap]:
    lines = file["text"].splitlines(keepends=True)
    for function in find_statements(file["text"]):
        if not isinstance(function, ast.FunctionDef):
            continue
        end = function.end_lineno or function.lineno
        inside = [one for one in function.body if one.lineno > function.lineno and (one.end_lineno or end) < end]
        for statement in inside[1:]:
            first, last = statement.lineno - 1, statement.end_lineno or end
            before, after = "".join(lines[function.lineno - 1 : first]), "".join(lines[last:end])
            middle = "".join(lines[first:last])
            if len(middle) >= SMALLEST:
                yield Gap(file["path"], Parts(before, middle, after))


def measure_gaps(models: dict[str, gemwright.Model], gaps: Sequence[Gap]) -> dict[str, dict[str, float]]:
    """Return the loss of the statements and how many are predicted exactly, for each model and prompt."""
    both, plain = models["fill-in-the-middle"], models["left-to-right"]
    return {
        "before and after (PSM)": measure_prompts(both, gaps, "PSM"),
        "before and after (SPM)": measure_prompts(both, gaps, "SPM"),
        "before": measure_prompts(both, gaps, None),
        "before, trained without": measure_prompts(plain, gaps, None),
    }


def measure_prompts(model: gemwright.Model, gaps: Sequence[Gap], order: Order | None) -> dict[str, float]:
    """Return the mean loss per token of the statements, and the share that greedy continuations begin with."""
    tokenizer = model.tokenizer
    middles = [tokenizer.encode(gap.parts.middle) for gap in gaps]
    prompts: list[list[int]] = []
    for gap in gaps:
        before, _, after = gap.parts
        ids = tokenizer.encode(f"{gap.path}\n{before}")
        if order is not None:
            ids = encode(tokenizer, Parts(before, "", after), order, gap.path)
        prompts.append([tokenizer.bos_id, *ids])
    losses: list[float] = []
    right = 0
    order_of = sorted(range(len(gaps)), key=lambda index: len(prompts[index]) + len(middles[index]))
    for start in range(0, len(order_of), measure.BATCH):
        batch = order_of[start : start + measure.BATCH]
        scores = model.score([prompts[index] + middles[index] for index in batch])
        most = max(len(middles[index]) for index in batch) + 4
        replies = model.generate([prompts[index] for index in batch], max_tokens=most, temperature=0.0)
        for index, score, reply in zip(batch, scores, replies, strict=True):
            losses += [-logprob for logprob in score.logprobs[-len(middles[index]) :]]
            right += tokenizer.decode(reply.tokens).startswith(gaps[index].parts.middle.rstrip("\n"))
    return {"loss": float(np.mean(losses)), "exact": right / len(gaps)}


def write(file: Path, results: dict[str, dict[str, float]], steps: int) -> None:
    """Print a table of measures, and write it as JSON."""
    print(f"\n{'the model sees what is':32}{'loss per token':>16}{'exact':>10}")
    for name, found in results.items():
        print(f"{name:32}{found['loss']:>16.4f}{found['exact']:>10.1%}")
    file.write_text(json.dumps({**results, "steps": steps}, indent=2) + "\n", encoding="utf-8")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
