"""Training divided among simulated devices and among processes gives the numbers of one device."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gemwright import sharding
from gemwright.errors import GemwrightError
from gemwright.train.run import train
from tests.documents import ROOT
from tests.train.cases import cases
from tests.train.tiny_run import prepare_tiny

LOSS, GRADIENT = 1e-6, 1e-5
"""Relative tolerances of float32 sums in another order."""
TIMEOUT = 300
RUN = {"method": "full", "batch_size": 8, "learning_rate": 3e-3, "held_out": 0, "ema": None, "steps": 80}


def _environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", **variables}


def _devices(count: int) -> str:
    return f"--xla_force_host_platform_device_count={count}"


@pytest.mark.parametrize("name", cases("gemma2"))
def test_gradients_on_eight_devices_equal_those_on_one(name: str):
    meshes = ["fsdp=8", "slice=2,fsdp=2,tensor=2", "data=2,sequence=4"]
    command = [sys.executable, "-m", "tests.train.mesh_program", name, *(meshes if name == "gemma3" else meshes[1:])]
    environment = _environment(XLA_FLAGS=_devices(8), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    found = json.loads(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)
    for mesh, (loss, gradient, held) in found.items():
        assert loss < LOSS, mesh
        assert gradient < GRADIENT, mesh
        assert held < 0.4, mesh


def test_axes_that_do_not_divide_an_array_leave_it_whole():
    sizes = {"slice": 1, "data": 2, "fsdp": 4, "sequence": 1, "tensor": 2}
    divide = sharding.divide
    assert divide(("batch", "length"), (8, 60), sizes) == P(("data", "fsdp"), None)
    assert divide(("batch", "length"), (6, 60), sizes) == P("data", None)
    assert divide(("repeats", "hidden", "embed"), (3, 48, 24), sizes) == P(None, "tensor", "fsdp")
    assert divide(("repeats", "heads", "head_dim", "embed"), (3, 3, 8, 30), sizes) == P(None, None, None, None)


@pytest.mark.parametrize("text", ["", "fsdp", "fsdp=0", "fsdp=-2", "rows=2", "fsdp=2,fsdp=2", "fsdp=2;data=2"])
def test_a_mesh_that_is_not_valid_is_named(text: str):
    with pytest.raises(GemwrightError, match="is not valid at"):
        sharding.parse_mesh(text)
    with pytest.raises(GemwrightError, match="has 3 devices, and there are 1"):
        sharding.make_mesh({"fsdp": 3})


def _start(tiny: Path, out: Path, mesh: str | None, **variables: str) -> subprocess.Popen[str]:
    """Start a run that trains all weights, in a process of its own."""
    options = json.dumps({**RUN, "save_every": 40, "mesh": mesh})
    command = [sys.executable, "-m", "tests.train.tiny_run", str(tiny), str(out), options]
    environment = _environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1", **variables)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def _start_several(count: int, tiny: Path, out: Path, mesh: str | None = None) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [_start(tiny, out, mesh, JAX_PROCESS_ID=str(index), **variables) for index in range(count)]


def _finish(processes: list[subprocess.Popen[str]]) -> str:
    """Wait for the processes and return what the first prints."""
    printed: list[str] = []
    for process in processes:
        output, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        printed.append(output)
    return printed[0]


def _kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def _losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run with one device, which is not stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(prepare_tiny(tiny, out, **RUN))
    return _losses(out)


def _lose_one(processes: list[subprocess.Popen[str]], out: Path) -> None:
    """Kill the last process in a step after the first checkpoint."""
    first, last = processes[0], processes[-1]
    try:
        assert first.stdout is not None
        saved = (out / "checkpoints" / "40").is_dir
        assert any(line.startswith("step") and saved() for line in first.stdout), first.communicate()[1]
        last.kill()
        errors = first.communicate(timeout=TIMEOUT)[1]
    finally:
        _kill(processes)
    # It notices, or waits at a checkpoint, where JAX itself ends it.
    assert first.returncode in (2, -signal.SIGABRT)
    if first.returncode == 2:
        assert "Another process of the run has ended; start all of them again" in errors.splitlines()[-1]


def test_two_processes_of_which_one_is_killed_continue_as_one_with_four_devices(
    tiny: Path, tmp_path: Path, whole: list[float]
):
    _lose_one(_start_several(2, tiny, tmp_path), tmp_path)
    printed = _finish([_start(tiny, tmp_path, "fsdp=2,tensor=2", XLA_FLAGS=_devices(4))])
    assert re.search(r"Continuing after step 40 of 80", printed)
    np.testing.assert_allclose(_losses(tmp_path), whole, rtol=1e-4)


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_are_started_again(tiny: Path, tmp_path: Path, whole: list[float]):
    _lose_one(_start_several(4, tiny, tmp_path, "fsdp=4"), tmp_path)
    printed = _finish(_start_several(4, tiny, tmp_path, "data=2,tensor=2"))
    assert re.search(r"Continuing after step 40 of 80", printed)
    np.testing.assert_allclose(_losses(tmp_path), whole, rtol=1e-4)
