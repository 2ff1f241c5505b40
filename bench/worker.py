"""One measurement in a process of its own: prints a JSON object, or the first token of a text.

python bench/worker.py ENGINE MODEL TASK      the seconds until each step was known, and the peak of memory
python bench/worker.py ENGINE MODEL           the first token behind a text

TASK is a JSON object with the fields of `engines.Task`.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import engines
import numpy as np
from engines import Engine, Task

TEXT = "Once upon a time"
PROMPT = Path(__file__).parent / ".cache" / "prompt.json"
"""Ids of an English text, which `models.write_prompt` makes."""


def prompts(task: Task) -> list[list[int]]:
    """The same text for every engine: BOS, then a part of it for each row, from the start again where it ends."""
    text = np.array(json.loads(PROMPT.read_text()))
    parts = np.resize(text, (task.rows, task.prompt - 1))
    return [[2, *part] for part in parts.tolist()]


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
    timeline(engine, replace(task, tokens=min(task.tokens, 4)))  # compiles, and touches the weights
    times = timeline(engine, task)
    print(json.dumps({"times": times, "peak": peak_memory()}))


if __name__ == "__main__":
    main()
