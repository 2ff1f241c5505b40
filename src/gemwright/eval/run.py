"""Run benchmarks with lm-eval, one after another, and keep the score and every sample of each."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.errors import GemwrightError
from gemwright.eval.harness import HarnessModel
from gemwright.eval.intervals import Estimate, estimate_mean, estimate_together
from gemwright.eval.sandbox import UNSAFE
from gemwright.eval.suites import Benchmark

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SAMPLES = "samples"
"""Folder of the samples: a file of JSON lines for each task."""


@dataclass(frozen=True)
class Result:
    """The score of a model on a benchmark.

    Attributes:
        benchmark: The benchmark.
        shots: Number of examples in each prompt.
        metric: lm-eval's metric and filter.
        score: Mean over the items, between 0 and 1 for most metrics.
        of: Number of items that the benchmark has.
    """

    benchmark: Benchmark
    shots: int
    metric: str
    score: Estimate
    of: int

    def published(self, variant: str) -> float | None:
        """Return the published score of a variant, in percent."""
        return self.benchmark.published.get(variant)

    def agrees(self, variant: str) -> bool | None:
        """Return whether the published score lies in the interval, or None if there is none."""
        published = self.published(variant)
        return None if published is None else self.score.low <= published / 100 <= self.score.high

    def document(self) -> dict[str, Any]:
        """Return the result as values of JSON."""
        fields = asdict(self.score) | {"metric": self.metric, "shots": self.shots, "of": self.of}
        return {"benchmark": self.benchmark.title, "task": self.benchmark.task} | fields


@dataclass(frozen=True)
class Settings:
    """How benchmarks run.

    Attributes:
        limit: Maximum number of items of a task, drawn with a seed.
        seed: The seed.
        chat: Whether the chat template wraps the prompts.
        unsafe_code: Whether tasks may run code that the model writes where there is no sandbox.
    """

    limit: int | None = None
    seed: int = 0
    chat: bool = False
    unsafe_code: bool = False


def run_benchmark(
    model: HarnessModel, benchmark: Benchmark, manager: "TaskManager", out: Path, settings: Settings
) -> Result:
    """Run one benchmark, write its samples and return its score.

    Args:
        model: The model.
        benchmark: The benchmark.
        manager: Where lm-eval finds its task.
        out: The folder of the samples.
        settings: How it runs.

    Raises:
        GemwrightError: The task is unknown, or its data cannot be read.
    """
    from lm_eval.evaluator import simple_evaluate

    if settings.unsafe_code:
        os.environ[UNSAFE] = "1"
    tasks = _load(manager, benchmark.task)
    sizes = {name: len(list(task.eval_docs)) for name, task in tasks.items()}
    limit, seed = settings.limit, settings.seed
    drawn = None if limit is None else {name: _draw(size, limit, seed) for name, size in sizes.items()}
    found = simple_evaluate(
        model=model,
        tasks=[benchmark.task],
        num_fewshot=benchmark.shots,
        task_manager=manager,
        samples=drawn,
        bootstrap_iters=0,
        apply_chat_template=settings.chat,
        confirm_run_unsafe_code=settings.unsafe_code,
        random_seed=seed,
    )
    results = cast(Mapping[str, Any], found)
    samples: Mapping[str, list[dict[str, Any]]] = results["samples"]
    for name, records in samples.items():
        _write_samples(out / SAMPLES / f"{name}.jsonl", records)
    records = [record for name in tasks for record in samples[name]]
    metric, chosen = _choose(records, benchmark.metric)
    shots: Mapping[str, int] = results["n-shot"]
    values = [record[metric] for record in chosen]
    name = metric if chosen[0]["filter"] == "none" else f"{metric} ({chosen[0]['filter']})"
    if all(isinstance(value, int | float) for value in values):
        score = estimate_mean([float(value) for value in values])
    else:  # a metric of all items together, such as CIDEr
        score = estimate_together(values, next(iter(tasks.values())).aggregation()[metric], seed)
    return Result(benchmark, max(shots[task] for task in tasks), name, score, sum(sizes.values()))


def _load(manager: "TaskManager", task: str) -> Mapping[str, Any]:
    """Return lm-eval's tasks of a name, which may be a group.

    Raises:
        GemwrightError: There is no such task, or its data cannot be read.
    """
    try:
        return cast(Mapping[str, Any], manager.load([task])["tasks"])
    except KeyError as error:
        raise GemwrightError(f"lm-eval has no task {task!r:.200}; see `lm_eval ls tasks`.") from error
    except GemwrightError:
        raise
    except Exception as error:  # whatever reading data from a hub raises
        raise GemwrightError(
            f"The data of {task} cannot be read ({type(error).__name__}: {error!s:.200}); "
            "check the network, or pass --data FOLDER with the files."
        ) from error


def _draw(size: int, limit: int, seed: int) -> list[int]:
    """Return the indices of `limit` items of a task, in order."""
    return sorted(np.random.default_rng(seed).permutation(size)[:limit].tolist())


def _choose(records: Sequence[Mapping[str, Any]], metric: str) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the records of the first filter that a metric has, and the metric's name.

    Raises:
        GemwrightError: The task has no metric.
    """
    names = [name for name in (metric, "acc", *records[0]["metrics"]) if name in records[0]["metrics"]]
    if not names:
        raise GemwrightError(f"The task has no metric {metric} or acc, only {', '.join(records[0]['metrics'])}.")
    first = records[0]["filter"]
    return names[0], [record for record in records if record["filter"] == first]


def _write_samples(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with replace_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
