"""A run on a Ray cluster of this machine, of which workers are killed. Run with `make test-ray`."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gemwright.data.filters.engines import run_locally, run_on_ray
from gemwright.data.filters.recipe import Recipe
from gemwright.data.filters.run import plan, run
from tests.data.filters.corpus import read_output, write_corpus

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # of Ray and its dependencies

SLOW_START = {"RAY_raylet_start_wait_time_s": "60", "RAY_agent_register_timeout_ms": "120000"}
"""Settings of Ray, read when it is imported, for busy machines."""


def find_workers() -> list[int]:
    """Return the processes of Ray that do a task."""
    found = subprocess.run(["pgrep", "-f", "ray::_do_task"], capture_output=True, check=False)
    return [int(number) for number in found.stdout.split()]


def test_killed_workers_are_replaced(tmp_path: Path):
    """Three times, the worker of a task is killed; Ray does the task again, and the output has the same bytes."""
    for name, value in SLOW_START.items():
        os.environ.setdefault(name, value)
    ray = pytest.importorskip("ray")
    corpus = write_corpus(tmp_path / "pages.jsonl", 3000)
    run(plan([corpus], tmp_path / "expected", Recipe(), part_bytes=500_000), run_locally(1), lambda *_: None)
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[3] / "src"), os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(killed) < 3 and time.monotonic() < deadline:
            for process in find_workers()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.5)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        planned = plan([corpus], tmp_path / "out", Recipe(), part_bytes=500_000)
        run(planned, run_on_ray(), lambda *_: None)
    finally:
        killer.join()
        ray.shutdown()
    assert len(set(killed)) == 3
    assert read_output(tmp_path / "out") == read_output(tmp_path / "expected")
