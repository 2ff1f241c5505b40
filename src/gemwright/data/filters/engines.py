"""Run the tasks of a stage: in processes of this machine, or on a Ray cluster.

A stage is a function of the number of a task, so other engines run it, too; `Stage.__call__` takes the arguments that
datatrove's executors pass.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.errors import GemwrightError
from gemwright.runtime.child import follow_parent

MAX_RETRIES = 5
"""Times that Ray runs a task again if its worker or machine dies."""


@dataclass(frozen=True)
class Stage:
    """Tasks that do not depend on each other.

    Attributes:
        name: What they do.
        tasks: Their number.
        work: Does a task by its number, and returns its results as JSON.
        folder: Folder of a file for each task that is done.
    """

    name: str
    tasks: int
    work: Callable[[int], dict[str, Any]]
    folder: Path

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do a task, unless it is done."""
        if not self.result(rank).exists():
            found = json.dumps(self.work(rank)).encode()
            with replace_file(self.result(rank)) as file:
                file.write(found)

    def result(self, task: int) -> Path:
        """Return the file of a task's results, which exists once it is done."""
        return self.folder / f"{task:05d}.json"

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield the results of all tasks, in order."""
        for task in range(self.tasks):
            yield json.loads(self.result(task).read_bytes())


Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of its tasks that are done, and the number of all."""
Engine = Callable[[Stage, Progress], None]
"""Does the tasks of a stage."""


def run_locally(workers: int) -> Engine:
    """Return an engine of processes of this machine; of this process alone, if `workers` is 1."""

    def run(stage: Stage, progress: Progress) -> None:
        left = _list_unfinished(stage, progress)
        if workers == 1 or len(left) <= 1:
            for done, task in enumerate(left, stage.tasks - len(left) + 1):
                stage(None, task)
                progress(stage.name, done, stage.tasks)
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(left)), context, follow_parent)
        try:
            pending = [pool.submit(stage, None, task) for task in left]
            for done, future in enumerate(as_completed(pending), stage.tasks - len(left) + 1):
                future.result()
                progress(stage.name, done, stage.tasks)
            pool.shutdown()
        except BrokenProcessPool as error:
            raise GemwrightError(
                f"A worker of the stage {stage.name} was killed, perhaps for want of memory; "
                "run the same command to continue, with fewer --workers if it happens again."
            ) from error
        finally:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)

    return run


def _list_unfinished(stage: Stage, progress: Progress) -> list[int]:
    left = [task for task in range(stage.tasks) if not stage.result(task).exists()]
    progress(stage.name, stage.tasks - len(left), stage.tasks)
    return left


def run_on_ray(address: str | None = None) -> Engine:
    """Return an engine of the workers of a Ray cluster, all of which must see the folders of input and output.

    Args:
        address: Address of the cluster; None takes that of `RAY_ADDRESS`, or starts one on this machine.
    """
    import ray  # pyright: ignore[reportMissingImports]

    if not ray.is_initialized():
        ray.init(address, log_to_driver=False)
    do = ray.remote(max_retries=MAX_RETRIES)(_do_task)

    def run(stage: Stage, progress: Progress) -> None:
        left = _list_unfinished(stage, progress)
        pending: list[Any] = [do.remote(stage, task) for task in left]
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
            progress(stage.name, stage.tasks - len(pending), stage.tasks)

    return run


def _do_task(stage: Stage, task: int) -> None:
    stage(None, task)
