"""Launchers: which environment makes processes join each other, and that they do."""

import os
import socket
import subprocess
import sys

import pytest

from gemwright.errors import GemwrightError
from gemwright.runtime import distributed

PROGRAM = """
import jax
from gemwright.runtime import distributed

distributed.join()
print(jax.process_index(), jax.process_count(), distributed.largest(10 + jax.process_index()))
"""
NAMES = ("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "KUBERNETES_")
SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
# One host in each of two slices. JAX_FORCE_TPU_INIT makes JAX look for TPU slices without a TPU.
SLICES = {
    "JAX_FORCE_TPU_INIT": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "2",
}


def find_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(launcher: str, index: int, port: str) -> dict[str, str]:
    """Return the environment that a launcher gives one of two processes."""
    port_of_jax = {"JAX_COORDINATOR_PORT": port}
    return {
        "variables": {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",  # JAX must not ask Kubernetes
        },
        "slurm": {**SLURM, **port_of_jax, "SLURM_NTASKS": "2", "SLURM_PROCID": str(index)},
        "slices": {**SLICES, **port_of_jax, "MEGASCALE_SLICE_ID": str(index)},
    }[launcher]


@pytest.mark.parametrize("launcher", ["variables", "slurm", "slices"])
def test_two_processes_join(launcher: str):
    port = find_port()
    given = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**given, "JAX_PLATFORMS": "cpu", **launch(launcher, index, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for index, process in enumerate(processes):
        printed, errors = process.communicate(timeout=120)
        assert printed.splitlines()[-1:] == [f"{index} 2 11"], errors


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, {"local_device_ids": ()}),
        ({"SLURM_NTASKS": "16", "SLURM_STEP_NUM_NODES": "2"}, {}),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "JAX_LOCAL_DEVICE_IDS": "0,1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "run-0-0.run,run-0-1.run"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "run-0-0.run", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_a_process_is_alone_unless_its_launcher_started_more(
    given: dict[str, str], expected: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in os.environ if name.startswith(NAMES)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert distributed.find_launcher() == expected


@pytest.mark.parametrize("given", [{"JAX_NUM_PROCESSES": "2"}, {"SLURM_NTASKS": "many"}])
def test_an_environment_that_is_not_valid_is_refused(given: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GemwrightError, match="cannot join each other"):
        distributed.join()


@pytest.mark.peer
def test_a_mesh_keeps_the_axes_of_a_slice_in_it(monkeypatch: pytest.MonkeyPatch):
    """Devices of two slices that are not there, described by TPU's own compiler."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    from gemwright import sharding

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
    assert sharding.default_sizes(devices) == {"slice": 2, "fsdp": 16}
    for sizes in ({"slice": 2, "fsdp": 16}, {"slice": 2, "data": 4, "tensor": 4}):
        mesh = sharding.make_mesh(sizes, devices)
        assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(GemwrightError, match="give slice=2 in the mesh"):
        sharding.make_mesh({"fsdp": 32}, devices)
