"""The limits of a container, from made file systems as docs.kernel.org describes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemwright.runtime import machine

GB = 1_000_000_000
MEMORY_LEFT = 40 * GB // 1024 * 1024


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 40 GB free and 64 cores."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "_affinity", lambda: 64)
    _write(tmp_path / "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {MEMORY_LEFT // 1024} kB\n")
    return tmp_path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _group(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        _write(folder / name, text + "\n")


def test_a_machine_without_limits(root: Path):
    assert (machine.free_memory(), machine.cores()) == (MEMORY_LEFT, 64)
    _write(root / "proc/self/cgroup", "0::/user.slice\n")
    _group(root / "sys/fs/cgroup/user.slice", {"memory.max": "max", "memory.current": "5", "cpu.max": "max 100000"})
    assert (machine.free_memory(), machine.cores()) == (MEMORY_LEFT, 64)


def test_a_container(root: Path):
    """With a namespace of its own, as by Docker and Kubernetes with version 2."""
    _write(root / "proc/self/cgroup", "0::/\n")
    files = {
        "memory.max": str(8 * GB),
        "memory.current": str(3 * GB),
        "memory.stat": f"anon 5\ninactive_file {GB}\nactive_file 7",
        "cpu.max": "250000 100000",
    }
    _group(root / "sys/fs/cgroup", files)
    assert (machine.free_memory(), machine.cores()) == (6 * GB, 3)
    _write(root / "sys/fs/cgroup/memory.current", str(9 * GB))
    _write(root / "sys/fs/cgroup/memory.stat", "")
    _write(root / "sys/fs/cgroup/cpu.max", "50000 100000")
    assert (machine.free_memory(), machine.cores()) == (0, 1)


def test_the_tightest_of_nested_groups_counts(root: Path):
    _write(root / "proc/self/cgroup", "0::/system.slice/my.service\n")
    top = root / "sys/fs/cgroup/system.slice"
    _group(top, {"memory.max": str(4 * GB), "memory.current": str(GB), "cpu.max": "200000 100000"})
    _group(top / "my.service", {"memory.max": "max", "memory.current": str(GB), "cpu.max": "max 100000"})
    assert (machine.free_memory(), machine.cores()) == (3 * GB, 2)


@pytest.mark.parametrize("path", ["", "docker/abc"])
def test_version_1(root: Path, path: str):
    """Inside a container the paths may be the machine's, which do not exist there."""
    _write(root / "proc/self/cgroup", "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    memory = {
        "memory.limit_in_bytes": str(2 * GB),
        "memory.usage_in_bytes": str(GB),
        "memory.stat": "total_inactive_file 5",
    }
    _group(root / "sys/fs/cgroup/memory" / path, memory)
    _group(root / "sys/fs/cgroup/cpu,cpuacct" / path, {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"})
    assert (machine.free_memory(), machine.cores()) == (GB + 5, 4)
    _group(root / "sys/fs/cgroup/cpu,cpuacct" / path, {"cpu.cfs_quota_us": "-1"})
    assert machine.cores() == 64


def test_the_number_of_threads(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(machine.THREADS, raising=False)
    machine.set_threads()
    assert machine.THREADS not in os.environ
    _write(root / "proc/self/cgroup", "0::/\n")
    _group(root / "sys/fs/cgroup", {"cpu.max": "200000 100000"})
    machine.set_threads()
    assert os.environ[machine.THREADS] == "2"
    machine.set_threads(5)
    machine.set_threads()
    assert os.environ[machine.THREADS] == "5"


def test_xla_has_that_many_threads():
    code = (
        "from gemwright.runtime import machine; machine.set_threads(5)\n"
        "import os, jax.numpy as jnp; jnp.ones(3).sum().block_until_ready()\n"
        "names = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "print(sum('XLAEigen' in name for name in names))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(machine.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"
