"""Runs in processes of their own that signals end: the run then continues and ends as one that was not stopped."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.train.tiny_run import result, write_data

ROOT = Path(__file__).parents[2]
RUN = """{"held_out": 0, "steps": 40, "ema": null}"""
TIMEOUT = 300


@contextmanager
def started(folder: Path, out: Path, options: str = RUN) -> Iterator[subprocess.Popen[str]]:
    """Start a run in a process of its own."""
    command = [sys.executable, "-m", "tests.train.tiny_run", str(folder), str(out), options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(folder: Path, out: Path, options: str = RUN) -> str:
    """Run to the end and return what is printed."""
    with started(folder, out, options) as process:
        printed, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return printed


def await_line(process: subprocess.Popen[str], pattern: str) -> str:
    """Read the output of a process up to a line that matches."""
    assert process.stdout is not None
    line = next((line for line in process.stdout if re.match(pattern, line)), "")
    assert line, process.communicate()[1]
    return line


@pytest.fixture(scope="module")
def expected(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("expected") / "out"
    finish(tiny, out)
    return out


def test_a_run_that_signals_end_continues_to_the_same_bytes(tiny: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(tiny, out) as process:  # Ctrl-C ends it after a step
        await_line(process, "step 3$")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode in (130, -signal.SIGINT)  # Python's own exit after KeyboardInterrupt
    stopped = re.search(r"Stopped after step (\d+) of 40, which is saved; run the same command again", printed)
    assert stopped is not None, printed
    with started(tiny, out) as process:  # as SIGTERM does
        await_line(process, f"Continuing after step {stopped[1]} of 40.$")
        await_line(process, "step ")
        for _ in range(2):  # as `timeout` sends it
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 143
    with started(tiny, out) as process:  # the system ends it anywhere
        await_line(process, "step ")
        time.sleep(random.Random(1).uniform(0, 0.1))
        process.kill()
    assert "damaged" not in finish(tiny, out)
    assert result(out) == result(expected)


def kill_and_finish(folder: Path, out: Path, kills: int, seconds: float, options: str = RUN) -> None:
    """Kill a run at random moments up to some seconds after a step, those of saves included, and then finish it."""
    moments = random.Random(0)
    for kill in range(kills):
        with started(folder, out, options) as process:
            if kill % 4 != 3:  # else at any moment, mostly while it starts
                for _ in range(moments.randint(1, 6)):
                    await_line(process, "step ")
                time.sleep(moments.uniform(0, seconds))
            else:
                time.sleep(moments.uniform(0, 8))
            os.kill(process.pid, signal.SIGKILL)
    finish(folder, out, options)


@pytest.mark.slow
def test_a_run_killed_at_20_moments_ends_with_the_same_bytes(tiny: Path, expected: Path, tmp_path: Path) -> None:
    kill_and_finish(tiny, tmp_path / "out", int(os.environ.get("KILLS", "20")), 0.1)
    assert result(tmp_path / "out") == result(expected)


@pytest.mark.slow
def test_a_killed_run_of_the_270m_ends_with_the_same_bytes(joined_demo: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.gguf").symlink_to(joined_demo)
    write_data(tmp_path / "train.jsonl")
    kills = int(os.environ.get("KILLS", "2"))
    options = json.dumps({"held_out": 0, "steps": 8 + 6 * kills, "ema": None, "learning_rate": 1e-4})
    finish(tmp_path, tmp_path / "expected", options)
    kill_and_finish(tmp_path, tmp_path / "out", kills, 3.0, options)
    assert result(tmp_path / "out") == result(tmp_path / "expected")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_leaves_whole_checkpoints(tiny: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(tiny, out) as process:
        await_line(process, "step 5$")
        process.send_signal(signal.SIGINT)
        await_line(process, "Stopping after this step")
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT)
        assert process.returncode in (130, -signal.SIGINT)
    assert "damaged" not in finish(tiny, out)
    assert result(out) == result(expected)
