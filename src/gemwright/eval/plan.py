"""Choose benchmarks and the place of their data: the hub, or the files of a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lm_eval.tasks import TaskManager

from gemwright.errors import GemwrightError
from gemwright.eval import benchmarks, code_tasks, ifeval, vision_tasks
from gemwright.eval.definitions import DEFINITIONS
from gemwright.eval.local import find_tasks, write_tasks
from gemwright.eval.suites import SUITES, Benchmark

TASKS = "tasks"
"""Folder of the definitions and records of tasks that files serve."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        benchmarks: The benchmarks.
        manager: Where lm-eval finds their tasks.
        missing: Benchmarks of the suite for which there are no files.
    """

    benchmarks: tuple[Benchmark, ...]
    manager: TaskManager
    missing: tuple[Benchmark, ...] = ()


def make_plan(suite: str | None, tasks: Sequence[str] | None, data: Path | None, out: Path, shots: int | None) -> Plan:
    """Choose benchmarks.

    Args:
        suite: A key of `SUITES`, or None for tasks alone.
        tasks: Names of lm-eval's tasks, or of benchmarks of the suite; all of the suite unless given.
        data: A folder of data files, or None for the hub.
        out: The folder of results, in which the tasks of files are written.
        shots: Number of examples in each prompt; the suite's, or the task's, unless given.

    Raises:
        GemwrightError: A benchmark is unknown, or the folder has the data of none.
    """
    chosen = tuple(_choose(suite, tasks))
    if shots is not None:
        chosen = tuple(replace(benchmark, shots=shots) for benchmark in chosen)
    if data is None:
        return Plan(chosen, TaskManager(include_path=str(DEFINITIONS)))
    if not data.is_dir():
        raise GemwrightError(f"{data} is not a folder; pass the folder of the data files.")
    tables = (*benchmarks.TASKS, *code_tasks.TASKS, *ifeval.TASKS, *vision_tasks.TASKS)
    found = {task.local.task: task for task in find_tasks(data, tables, benchmarks.FINDERS)}
    served = [(benchmark, _served(benchmark.task, list(found))) for benchmark in chosen]
    runnable = tuple(benchmark for benchmark, names in served if names)
    if not runnable:
        names = ", ".join(benchmark.title for benchmark in chosen)
        raise GemwrightError(f"{data} has no files for {names}; docs/eval.md lists the files that serve each task.")
    needed = [found[name] for name in dict.fromkeys(name for _, names in served for name in names)]
    write_tasks(needed, out / TASKS)
    for benchmark, names in served:
        if names and names != [benchmark.task]:
            _write_group(out / TASKS, benchmark.task, names)
    manager = TaskManager(include_path=str(out / TASKS), include_defaults=False)
    return Plan(runnable, manager, tuple(benchmark for benchmark, names in served if not names))


def _choose(suite: str | None, tasks: Sequence[str] | None) -> Iterator[Benchmark]:
    listed = () if suite is None else SUITES[suite]
    if tasks is None:
        yield from listed
        return
    for name in tasks:
        own = [one for one in listed if name.lower() in (one.title.lower(), one.task)]
        if suite is not None and not own:
            titles = ", ".join(one.title for one in listed)
            raise GemwrightError(f"The suite {suite} has no benchmark {name!r:.100}; it has {titles}.")
        yield own[0] if own else Benchmark(name, name, "acc_norm", None, {})


def _served(task: str, found: Sequence[str]) -> list[str]:
    """Return the tasks of files that serve a task, or the members of a group such as `mmlu` or `bbh`."""
    if task in found:
        return [task]
    prefix = {"mmlu": "mmlu_", "bbh": "bbh_cot_fewshot_", "mgsm_direct": "mgsm_direct_"}.get(task)
    return [] if prefix is None else [name for name in found if name.startswith(prefix)]


def _write_group(folder: Path, group: str, tasks: Sequence[str]) -> None:
    lines = [f"group: {group}", "task:", *(f"  - {task}" for task in tasks)]
    (folder / f"{group}.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")
