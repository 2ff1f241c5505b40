"""Measure a model on conversations that were held out: the loss of the answers, and its own replies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gemwright
from gemwright.data import open_dataset
from gemwright.generate.output import Completion
from gemwright.train.run import Progress

BATCH = 20
"""Number of conversations that run at the same time."""
MAX_TOKENS = 200
"""Maximum number of tokens of a reply."""
TOKENS_PER_SECOND = 75
"""Speed of LoRA on the 270M with two cores, which converts minutes to steps. The steps decide the result."""


def steps_of(minutes: float, tokens: int) -> int:
    """Return the number of steps of so many tokens that fit in a time."""
    return max(1, round(minutes * 60 * TOKENS_PER_SECOND / tokens))


def answer_loss(model: gemwright.Model, file: Path) -> float:
    """Return the mean negative log-likelihood of the tokens of the answers, each with the token that ends it."""
    data = open_dataset(file, model.tokenizer, model.chat_template, max_length=model.engine.config.max_length)
    documents = sorted(data.documents, key=lambda document: len(document.ids))
    losses: list[float] = []
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        scores = model.score([document.ids.tolist() for document in batch])
        for document, score in zip(batch, scores, strict=True):
            losses += [-logprob for logprob in np.array(score.logprobs)[document.learned[1:]]]
    return float(np.mean(losses))


def replies(model: gemwright.Model, prompts: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[Completion]:
    """Return the replies to conversations, of at most `MAX_TOKENS` tokens."""
    order = sorted(range(len(prompts)), key=lambda index: len(str(prompts[index])))
    found: dict[int, Completion] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        completions = model.chat([prompts[index] for index in batch], max_tokens=MAX_TOKENS, **options)
        found |= zip(batch, completions, strict=True)
    return [found[index] for index in range(len(prompts))]


def is_repeating(reply: Completion) -> bool:
    """Return whether a reply reaches the limit and ends with the same tokens three times in a row."""
    ids = reply.tokens
    periods = range(1, len(ids) // 3 + 1)
    return reply.finish_reason == "length" and any(ids[-3 * n : -n] == ids[-2 * n :] for n in periods)


def report(progress: Progress) -> None:
    """Print some of the steps."""
    if progress.step and (progress.step in (1, progress.steps) or progress.step % 10 == 0):
        speed = progress.tokens / progress.seconds
        print(f"step {progress.step}/{progress.steps}: loss {progress.loss:.4f}, {speed:.0f} tokens/s", flush=True)


def write_records(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return file


def write_results(file: Path, before: Mapping[str, float], after: Mapping[str, float], **others: Any) -> None:
    """Print a table of measures, and write it with other results as JSON."""
    print(f"\n{'':44}{'before':>10}{'after':>10}")
    for name in before:
        numbers = [f"{value:.4f}" if "loss" in name else f"{value:.1%}" for value in (before[name], after[name])]
        print(f"{name:44}{numbers[0]:>10}{numbers[1]:>10}")
    results = {"before": dict(before), "after": dict(after), **others}
    file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{file}")
