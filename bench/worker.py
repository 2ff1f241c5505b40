"""One measurement in a process of its own: prints a JSON object, or the first token of a text.

python bench/worker.py ENGINE MODEL TASK      the seconds until each step was known, and the peak of memory
python bench/worker.py ENGINE MODEL           the first token behind a text

TASK is a JSON object with the fields of `engines.Task`.
"""

import json
import os
import sys
import time

import engines
import numpy as np
from engines import Engine, Task

TEXT = "Once upon a time"


def prompts(task: Task) -> list[list[int]]:
    """Ids drawn by chance, the same for every engine: BOS, then pieces that are words or parts of them."""
    random = np.random.default_rng(0)
    return [[2, *row] for row in random.integers(1000, 200_000, (task.rows, task.prompt - 1)).tolist()]


def timeline(engine: Engine, task: Task) -> list[float]:
    """Seconds from the prompt until each step's tokens were known."""
    times: list[float] = []
    start = time.perf_counter()
    engine.write(prompts(task), task, lambda _: times.append(time.perf_counter() - start))
    assert len(times) == task.tokens, f"{len(times)} steps instead of {task.tokens}"
    return times


def peak_memory() -> int:
    """Bytes that this process held at most; `getrusage` would count what held its parent when it was forked."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    name, path, *rest = sys.argv[1:]
    threads = len(os.sched_getaffinity(0))
    if not rest:
        task = Task(prompt=32, tokens=1)
        engine = engines.load(name, path, task, threads)
        engine.write([engine.encode(TEXT)], task, lambda ids: print(engine.decode(ids[0]), flush=True))
        return
    task = Task(**json.loads(rest[0]))
    engine = engines.load(name, path, task, threads)
    if task.tokens == 1:
        timeline(engine, task)  # compiles, and touches the weights; decoding is timed from its first token on
    times = timeline(engine, task)
    print(json.dumps({"times": times, "peak": peak_memory()}))


if __name__ == "__main__":
    main()
