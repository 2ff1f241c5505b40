"""Training divided among simulated devices and among processes gives the numbers of one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gemwright import sharding
from gemwright.errors import GemwrightError
from tests.documents import ROOT
from tests.train.cases import cases

LOSS, GRADIENT = 1e-6, 1e-5
"""Relative tolerances of float32 sums in another order."""
TIMEOUT = 300
OPTIONS = ("--method", "full", "--batch-size", "8", "--length", "32", "--learning-rate", "3e-3", "--held-out", "0")


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


def _tune(tiny: Path, out: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    """Start `gemwright tune` in a process of its own."""
    command = [sys.executable, "-m", "gemwright", "tune", tiny / "model", tiny / "train.jsonl", "--out", out]
    return subprocess.Popen(
        [*command, *OPTIONS, *options], env=_environment(**variables), stderr=subprocess.PIPE, text=True
    )


def _tune_in_two(tiny: Path, out: Path, *options: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [_tune(tiny, out, *options, JAX_PROCESS_ID=str(index), **variables) for index in range(2)]


def _metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _count_lines(out: Path) -> int:
    return (out / "metrics.jsonl").read_text().count("\n")


def test_two_processes_of_which_one_is_killed_continue_as_one_with_four_devices(tiny: Path, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    steps = ("--steps", "100")
    first, second = _tune_in_two(tiny, out, *steps)
    try:
        while not (out / "checkpoints" / "50").is_dir() or _count_lines(out) < 55:  # saved, and in later steps
            assert first.poll() is None, first.stderr and first.stderr.read()
            time.sleep(0.02)
        second.kill()
        errors = first.communicate(timeout=TIMEOUT)[1]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    # It may be done, or wait at a checkpoint, where JAX itself ends it.
    assert first.returncode in (0, 2, -signal.SIGABRT)
    if first.returncode == 2:
        assert "Another process of the run has ended; start all of them again" in errors.splitlines()[-1]
    for folder, variables in ((out, {"XLA_FLAGS": _devices(4)}), (whole, {})):
        with _tune(tiny, folder, *steps, **variables) as process:
            errors = process.communicate(timeout=TIMEOUT)[1]
            assert process.returncode == 0, errors
    found, expected = ([line["loss"] for line in _metrics(folder)] for folder in (out, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
