"""Scores in the two forms that the hub reads: `model-index` in a card, and `.eval_results/*.yaml`.

Source: huggingface_hub 2.4 `repocard_data.py` and `_eval_results.py`; huggingface.co/docs/hub/eval-results.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gemwright.release.publishing.records import Benchmarks, Score

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

FOLDER = ".eval_results"
DATASETS = {
    "agieval": "hails/agieval",
    "arc": "allenai/ai2_arc",
    "bbh": "lukaemon/bbh",
    "boolq": "google/boolq",
    "commonsense_qa": "tau/commonsense_qa",
    "drop": "ucinlp/drop",
    "gpqa": "Idavidrein/gpqa",
    "gsm8k": "openai/gsm8k",
    "hellaswag": "Rowan/hellaswag",
    "humaneval": "openai/openai_humaneval",
    "ifeval": "google/IFEval",
    "lambada": "EleutherAI/lambada_openai",
    "mbpp": "google-research-datasets/mbpp",
    "mgsm": "juletxara/mgsm",
    "minerva_math": "EleutherAI/hendrycks_math",
    "minerva_math500": "HuggingFaceH4/MATH-500",
    "mmlu": "cais/mmlu",
    "mmlu_pro": "TIGER-Lab/MMLU-Pro",
    "nq_open": "google-research-datasets/nq_open",
    "openbookqa": "allenai/openbookqa",
    "piqa": "ybisk/piqa",
    "siqa": "allenai/social_i_qa",
    "social_iqa": "allenai/social_i_qa",
    "triviaqa": "mandarjoshi/trivia_qa",
    "truthfulqa": "truthfulqa/truthful_qa",
    "winogrande": "allenai/winogrande",
}
"""Data sets on the hub, by the beginning of lm-eval's name of a task."""


def find_dataset(task: str) -> str | None:
    """Return the data set of a task on the hub, or None."""
    starts = [start for start in DATASETS if re.match(rf"{start}(?![a-z0-9])", task.removeprefix("gemwright_"))]
    return DATASETS[max(starts, key=len)] if starts else None


def to_eval_results(benchmarks: Sequence[Benchmarks], task_type: str) -> "list[EvalResult]":
    """Return the scores of a model for the `model-index` of its card, in percent."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task_type,
            dataset_type=find_dataset(score.task) or score.task,
            dataset_name=score.benchmark,
            metric_type=score.metric.partition(",")[0].partition(" ")[0],
            metric_value=percent(score.value),
            metric_name=f"{score.metric}, {score.shots}-shot",
        )
        for run in benchmarks
        for score in run.scores
    ]


def to_entries(benchmarks: Sequence[Benchmarks]) -> "Iterator[tuple[str, EvalResultEntry]]":
    """Yield the name of a file and the entry of each score whose data set is on the hub."""
    from huggingface_hub import EvalResultEntry

    for run in benchmarks:
        for score in run.scores:
            if (dataset := find_dataset(score.task)) is not None:
                entry = EvalResultEntry(
                    dataset_id=dataset,
                    task_id=score.task.removeprefix("gemwright_"),
                    value=percent(score.value),
                    date=day(run.source.written),
                    notes=_describe(score, run),
                )
                name = re.sub(r"[^\w-]+", "-", f"{score.task}-{score.metric}-{score.shots}-shot").strip("-")
                yield f"{name}.yaml", entry


def write_results(folder: Path, benchmarks: Sequence[Benchmarks]) -> None:
    """Write a file for each score whose data set is on the hub."""
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    for name, entry in to_entries(benchmarks):
        (folder / FOLDER).mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        (folder / FOLDER / name).write_text(text, encoding="utf-8")


def _describe(score: Score, run: Benchmarks) -> str:
    items = f"{score.count:,}" if score.count == score.of else f"{score.count:,} of {score.of:,}"
    chat = ", in the chat template" if run.tested.chat else ""
    interval = f"{percent(score.low):.1f} to {percent(score.high):.1f}"
    return f"{score.shots}-shot, {score.metric}{chat}, {items} items, 95% interval {interval}"


def percent(share: float) -> float:
    """Return a share in percent, to two decimals."""
    return round(100 * share, 2)


def day(seconds: float) -> str:
    """Return the day of a time in seconds since 1970, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
