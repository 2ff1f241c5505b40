"""Generation divided among simulated devices gives the numbers of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemwright.checkpoint.demo import DEMO
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.quantize import quantize
from gemwright.errors import GemwrightError
from gemwright.loading import load
from tests.documents import ROOT
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.config import make_config
from tests.tiny.gguf import write_tiny_gguf

LOGPROBS = 1e-5
"""Largest difference of a log-probability: float32 sums in another order."""
ROUNDED = 0.02
"""The same with activations of 8 bits and a bfloat16 cache, where a sum in another order may round otherwise."""


def _run(name: str, *meshes: str) -> Any:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-m", "tests.generate.mesh_program", name, *meshes]
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def _slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["gemma2", *_slow("gemma", "gemma3", "recurrentgemma", "paligemma")])
def test_text_on_eight_devices_is_that_of_one(name: str):
    for mesh, found in _run(name, "tensor=8" if name != "gemma2" else "data=2,tensor=4", "fsdp=2,tensor=4").items():
        assert found["same"], mesh
        assert found["logprobs"] < LOGPROBS, mesh
        assert found["image"] < LOGPROBS, mesh
        assert found["weights"] < 0.4, mesh
        assert found["state"] < 1 or name == "gemma3", mesh  # one key head, and four sequences


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "precision", "tolerance"), [(8, "stored", ROUNDED), (4, "float32", LOGPROBS)])
def test_packed_weights_are_divided(bits: Any, precision: str, tolerance: float, tmp_path: Path):
    quantize(write_tiny_gguf(tmp_path / "tiny.gguf", max_length=256), tmp_path / "packed", bits)
    (found,) = _run(f"file:{tmp_path / 'packed'}:{precision}", "tensor=4").values()
    assert "DividedTensor" in found["leaves"]
    assert found["same"]
    assert found["logprobs"] < tolerance
    assert found["products"] == 0.0 or (precision == "float32" and found["products"] < LOGPROBS)
    assert found["weights"] < 0.3


@pytest.mark.slow
def test_an_adapter_is_divided(tmp_path: Path):
    model = write_tiny_gguf(tmp_path / "tiny.gguf", max_length=256)
    adapter = write_tiny_adapter(tmp_path / "adapter", make_config(256), str(model))
    (found,) = _run(f"file:{model}:float32:{adapter}", "data=4,tensor=2").values()
    assert "LoraTensor" in found["leaves"]
    assert found["same"]
    assert found["logprobs"] < LOGPROBS


@pytest.mark.slow
def test_the_demo_on_eight_devices_has_the_loss_of_one():
    one, eight = _run(f"score:{locate(DEMO)}", "tensor=8")
    assert abs(one - eight) < ROUNDED
    assert one < 4


def test_a_mesh_of_more_devices_than_there_are_is_refused(tmp_path: Path):
    with pytest.raises(GemwrightError, match="The mesh tensor=64 has 64 devices, and there are"):
        load(write_tiny_gguf(tmp_path / "tiny.gguf"), mesh="tensor=64")
