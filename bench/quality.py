"""What quantised arithmetic costs: likelihood of a text under gemwright's native kernels and under llama.cpp.

python bench/quality.py TEXT [--tokens 16384]      such as the test part of WikiText-2, raw

All read the demo weights. The reference is gemwright in float32 on the decoded weights. The text is cut into windows of
512 tokens; each is read from BOS on, by itself, so that every engine is given the same ids. Prints the mean negative
log-likelihood of a token, how far it is from the reference's, and how often the likeliest token is the reference's.
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
"""Positions whose logits stand in memory together."""

Judgement = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Of one window: the negative log-likelihood of each token, and the likeliest token in its place."""
Judge = Callable[[Sequence[int]], Judgement]
"""Judges a window, whose first id is BOS."""


def gemwright_judge(model: gemwright.Model) -> Judge:
    """The decoder as the engine runs it: over a cache, with the kernels that its weights call for."""
    config, params = model.engine.config, model.engine.params

    @jax.jit
    def judge(params: object, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
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

    return lambda ids: tuple(map(np.asarray, judge(params, jnp.asarray(ids))))


def llama_cpp_judge(path: Path) -> Judge:
    engine = llama_cpp_python.load(str(path), Task(prompt=WINDOW, tokens=1), len(os.sched_getaffinity(0)))

    def judge(ids: Sequence[int]) -> Judgement:
        losses, likeliest = [], []
        for start, logits in enumerate(engine.logits(ids[:-1], ROWS)):
            targets = np.asarray(ids[1:])[start * ROWS :][: len(logits)]
            greatest = logits.max(axis=1)
            total = greatest + np.log(np.exp(logits - greatest[:, None]).sum(axis=1))
            losses.append(total - logits[np.arange(len(logits)), targets])
            likeliest.append(logits.argmax(axis=1))
        return np.concatenate(losses), np.concatenate(likeliest)

    return judge


def judged(name: str, judge: Judge, windows: Sequence[Sequence[int]]) -> Judgement:
    """The judgement of all windows, one after the other."""
    parts = []
    for number, window in enumerate(windows, start=1):
        parts.append(judge(window))
        print(f"\r{name}: {number} of {len(windows)} windows", end="", file=sys.stderr)
    print(file=sys.stderr)
    losses, likeliest = zip(*parts, strict=True)
    return np.concatenate(losses), np.concatenate(likeliest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    arguments = parser.parse_args()
    path = models.demo_gguf()
    model = gemwright.load(path)
    text = arguments.text.read_text(encoding="utf-8")
    bos, *ids = model.encode(text[: 16 * arguments.tokens])  # no token of English is that long on average
    count = arguments.tokens // WINDOW
    if len(ids) < count * WINDOW or not count:
        raise SystemExit(f"{arguments.text} has {len(ids)} tokens, and {max(count, 1) * WINDOW} are needed.")
    windows = [[bos, *ids[i * WINDOW : (i + 1) * WINDOW]] for i in range(count)]

    found = {"gemwright native": judged("gemwright native", gemwright_judge(model), windows)}
    del model
    found["llama.cpp"] = judged("llama.cpp", llama_cpp_judge(path), windows)
    exact = gemwright.load(path, dtype="float32")
    reference = judged("gemwright float32", gemwright_judge(exact), windows)
    print(f"{count * WINDOW:,} tokens of {arguments.text.name}, windows of {WINDOW}\n")
    print("| | negative log-likelihood | beside float32 | same likeliest token |")
    print("|---|---|---|---|")
    print(f"| gemwright float32 | {reference[0].mean():.4f} | | |")
    for name, (losses, likeliest) in found.items():
        drift = losses.astype(np.float64) - reference[0]
        error = drift.std(ddof=1) / len(drift) ** 0.5
        agreement = np.mean(likeliest == reference[1])
        print(f"| {name} | {losses.mean():.4f} | {drift.mean():+.4f} ± {error:.4f} | {agreement:.2%} |")


if __name__ == "__main__":
    main()
