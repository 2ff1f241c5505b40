"""Run one measurement: print a JSON object, or the first token of a continuation.

python bench/worker.py ENGINE MODEL TASK      time of each step in seconds, and peak memory
python bench/worker.py ENGINE MODEL           the first token after a text

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
"""Token ids of an English text, written by `models.write_prompt`."""


def make_prompts(task: Task) -> list[list[int]]:
    """Return the prompts, the same for every engine: BOS and a part of the text, repeated if too short."""
    text = np.array(json.loads(PROMPT.read_text()))
    parts = np.resize(text, (task.sequences, task.prompt - 1))
    return [[2, *part] for part in parts.tolist()]


def time_steps(engine: Engine, task: Task) -> list[float]:
    """Return the seconds from the prompt until the tokens of each step are known."""
    times: list[float] = []
    start = time.perf_counter()
    engine.write(make_prompts(task), task, lambda _: times.append(time.perf_counter() - start))
    assert len(times) == task.tokens, f"{len(times)} steps instead of {task.tokens}"
    return times


def read_peak_memory() -> int:
    """Return the peak memory of this process in bytes; `getrusage` would include its parent's memory at the fork."""
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
    time_steps(engine, replace(task, tokens=min(task.tokens, 4)))  # compiles, and pages in the weights
    times = time_steps(engine, task)
    print(json.dumps({"times": times, "peak": read_peak_memory()}))


if __name__ == "__main__":
    main()
