"""Loss of quality by quantized arithmetic: likelihood of a text with gemwright's native kernels and llama.cpp.

python bench/quality.py TEXT [--tokens 16384]      such as the test part of WikiText-2, raw

All use the demo weights. The reference is gemwright in float32 on the dequantized weights. The text is split into
windows of 512 tokens, each scored separately after a BOS, so that every engine gets the same ids. Prints the mean
negative log-likelihood per token, its difference from the reference, and how often the most likely token is the same.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import models
import numpy as np
from engines import Task, llama_cpp_python
from numpy.typing import NDArray

import gemwright
from gemwright.model import transformer
from gemwright.model.state import empty_state

WINDOW = 512
ROWS = 32
"""Positions whose logits are computed at a time."""

Scores = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Negative log-likelihood of each token of a window, and the most likely token at its position."""
Scorer = Callable[[Sequence[int]], Scores]
"""Scores a window, whose first id is BOS."""


def make_gemwright_scorer(model: gemwright.Model) -> Scorer:
    """Return a scorer that runs the decoder as the engine does: with a cache and the kernels of its weights."""
    config, params = model.engine.config, model.engine.params

    @jax.jit
    def score(params: object, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = empty_state(config, 1, WINDOW, params.embed.dtype)
        hidden, _ = transformer.forward(config, params, ids[None, :-1], state)

        def rows(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, targets = part
            logits = transformer.logits(config, params, hidden)
            likelihood = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            return jax.nn.logsumexp(logits, axis=-1) - likelihood, jnp.argmax(logits, axis=-1)

        parts = hidden.reshape(-1, ROWS, hidden.shape[-1]), ids[1:].reshape(-1, ROWS)
        losses, likeliest = jax.lax.map(rows, parts)
        return losses.ravel(), likeliest.ravel()

    return lambda ids: tuple(map(np.asarray, score(params, jnp.asarray(ids))))


def make_llama_cpp_scorer(path: Path) -> Scorer:
    engine = llama_cpp_python.load(str(path), Task(prompt=WINDOW, tokens=1), len(os.sched_getaffinity(0)))

    def score(ids: Sequence[int]) -> Scores:
        losses, likeliest = [], []
        for start, logits in enumerate(engine.logits(ids[:-1], ROWS)):
            targets = np.asarray(ids[1:])[start * ROWS :][: len(logits)]
            greatest = logits.max(axis=1)
            total = greatest + np.log(np.exp(logits - greatest[:, None]).sum(axis=1))
            losses.append(total - logits[np.arange(len(logits)), targets])
            likeliest.append(logits.argmax(axis=1))
        return np.concatenate(losses), np.concatenate(likeliest)

    return score


def score_windows(name: str, score: Scorer, windows: Sequence[Sequence[int]]) -> Scores:
    """Score all windows in turn."""
    parts = []
    for number, window in enumerate(windows, start=1):
        parts.append(score(window))
        print(f"\r{name}: {number} of {len(windows)} windows", end="", file=sys.stderr)
    print(file=sys.stderr)
    losses, likeliest = zip(*parts, strict=True)
    return np.concatenate(losses), np.concatenate(likeliest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    arguments = parser.parse_args()
    path = models.locate_demo()
    model = gemwright.load(path)
    text = arguments.text.read_text(encoding="utf-8")
    bos, *ids = model.encode(text[: 16 * arguments.tokens])  # longer than English tokens on average
    count = arguments.tokens // WINDOW
    if len(ids) < count * WINDOW or not count:
        raise SystemExit(f"{arguments.text} has {len(ids)} tokens, but {max(count, 1) * WINDOW} are needed.")
    windows = [[bos, *ids[i * WINDOW : (i + 1) * WINDOW]] for i in range(count)]

    found = {"gemwright native": score_windows("gemwright native", make_gemwright_scorer(model), windows)}
    del model
    found["llama.cpp"] = score_windows("llama.cpp", make_llama_cpp_scorer(path), windows)
    exact = gemwright.load(path, dtype="float32")
    reference = score_windows("gemwright float32", make_gemwright_scorer(exact), windows)
    print(f"{count * WINDOW:,} tokens of {arguments.text.name}, windows of {WINDOW}\n")
    print("| | negative log-likelihood | difference from float32 | same most likely token |")
    print("|---|---|---|---|")
    print(f"| gemwright float32 | {reference[0].mean():.4f} | | |")
    for name, (losses, likeliest) in found.items():
        drift = losses.astype(np.float64) - reference[0]
        error = drift.std(ddof=1) / len(drift) ** 0.5
        agreement = np.mean(likeliest == reference[1])
        print(f"| {name} | {losses.mean():.4f} | {drift.mean():+.4f} ± {error:.4f} | {agreement:.2%} |")


if __name__ == "__main__":
    main()
