"""What a watermark costs and how well it is found: texts of the demo weights with and without it.

python bench/watermark.py TEXT [--prompts 64] [--rounds 9]     such as the test part of WikiText-2

Each prompt, the first 24 tokens of a long line of the file, is continued by 200 tokens with the model's own sampling
parameters, once with a watermark and once without, with the same seed. Every batch has new keys. Prints the mean
negative log-likelihood per token of both under the model without the watermark and the difference with its 95%
interval over the prompts; how many texts of both have a p-value below 1% after 25, 50, 100 and 200 tokens; and the
time per token of single texts, whose rounds with and without alternate.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import gemwright
from gemwright.api import Model
from gemwright.generate.watermark import create_watermark, detect, read_watermark

LENGTHS = (25, 50, 100, 200)
"""Numbers of tokens of the texts in which the watermark is looked for."""
PROMPT = 24
"""Tokens of a prompt."""
BATCH = 8
"""Prompts that run together, with the same keys."""
LEVEL = 0.01
"""P-value below which a text counts as marked."""


def read_prompts(model: Model, path: Path, count: int) -> list[list[int]]:
    """Return the beginnings of long lines, spread over the file, with BOS."""
    lines = [line.strip() for line in path.read_text().splitlines() if len(line) > 400]
    return [model.encode(lines[at * len(lines) // count])[: PROMPT + 1] for at in range(count)]


def measure_texts(model: Model, prompts: Sequence[list[int]], folder: Path) -> None:
    """Print the likelihood of the texts, and how many are found, after every batch."""
    losses: list[tuple[float, float]] = []
    found = {(length, marked): list[bool]() for length in LENGTHS for marked in (True, False)}
    for start in range(0, len(prompts), BATCH):
        batch, file = list(prompts[start : start + BATCH]), folder / f"{start}.json"
        create_watermark(file)
        both = [model.generate(batch, max_tokens=max(LENGTHS), seed=start, watermark=keys) for keys in (file, None)]
        keys = read_watermark(file)
        for prompt, *texts in zip(batch, *both, strict=True):
            if min(len(text.tokens) for text in texts) < min(LENGTHS):
                continue
            scores = [model.score(text.tokens, prompt) for text in texts]
            losses.append(tuple(-statistics.fmean(score.logprobs) for score in scores))  # type: ignore[arg-type]
            for length in LENGTHS:
                for marked, text in zip((True, False), texts, strict=True):
                    if len(text.tokens) >= length:
                        found[length, marked].append(detect(keys, text.tokens[:length]).p_value < LEVEL)
        print_texts(losses, found)


def print_texts(losses: Sequence[tuple[float, float]], found: Mapping[tuple[int, bool], Sequence[bool]]) -> None:
    """Print what has been measured so far."""
    marked, plain = np.array(losses).T
    half = 1.96 * np.std(marked - plain, ddof=1) / np.sqrt(len(plain))
    print(f"\n{len(plain)} pairs; loss per token {marked.mean():.4f} with, {plain.mean():.4f} without")
    print(f"difference: {(marked - plain).mean():+.4f} ± {half:.4f} (95%)")
    for length in LENGTHS:
        rates = (found[length, marked] for marked in (True, False))
        with_, without = (f"{sum(rate)} of {len(rate)}" for rate in rates)
        print(f"{length:4} tokens: p < {LEVEL} in {with_} with, {without} without", flush=True)


def measure_cost(model: Model, prompt: list[int], folder: Path, rounds: int) -> None:
    """Print the time per token with and without a watermark."""
    create_watermark(folder / "cost.json")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for at in range(rounds + 1):  # the first compiles
        for marked in (True, False):
            start = time.perf_counter()
            text = model.generate(
                prompt, max_tokens=max(LENGTHS), seed=at, watermark=folder / "cost.json" if marked else None
            )
            seconds[marked].append((time.perf_counter() - start) / len(text.tokens))
    with_, without = (statistics.median(seconds[marked][1:]) for marked in (True, False))
    ratios = sorted(a / b - 1 for a, b in zip(seconds[True][1:], seconds[False][1:], strict=True))
    print(f"time per token: {1e3 * with_:.2f} ms with, {1e3 * without:.2f} ms without")
    print(
        f"cost: median of {rounds} rounds {statistics.median(ratios):+.1%}, from {ratios[0]:+.1%} to {ratios[-1]:+.1%}"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    model = gemwright.load("gemma-3-270m")
    prompts = read_prompts(model, options.text, options.prompts)
    print(f"{model!r}, {model.defaults}")
    with TemporaryDirectory() as folder:
        measure_texts(model, prompts, Path(folder))
        measure_cost(model, prompts[0], Path(folder), options.rounds)


if __name__ == "__main__":
    main()
