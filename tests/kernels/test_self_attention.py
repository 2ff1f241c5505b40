"""Attention without a cache, by jax.numpy and by the TPU's kernel in interpret mode, against its plain definition."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import sharding
from gemwright.errors import GemwrightError
from gemwright.kernels import attention, choice
from tests.documents import ROOT
from tests.kernels.self_attention_cases import FORWARD, GRADIENT, Case, differences

CASES = {
    "grouped": Case(),
    "narrow window, capped": Case(length=384, heads=2, kv_heads=1, window=100, cap=5.0),
    "wide window": Case(heads=2, window=200, packed=False),
}
LONG = {
    "blocks of 512": Case(length=1024, window=512, cap=50.0),
    "blocks of 512, a wide window": Case(length=1536, window=700, width=256),
    "every head has a key": Case(length=512, kv_heads=4),
}


def _gradient(function: Any) -> Any:
    """Return a function of queries, keys, values and the cotangent."""

    def gradient(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        return jax.vjp(function, q, k, v)[1](cotangent)

    return gradient


def _temporaries(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


def _cases() -> list[Any]:
    slow = [pytest.param(case, marks=pytest.mark.slow, id=name) for name, case in LONG.items()]
    return [pytest.param(case, id=name) for name, case in CASES.items()] + slow


@pytest.mark.parametrize("impl", ["auto", "pallas"])
@pytest.mark.parametrize("case", _cases())
def test_results_and_gradients_are_those_of_the_definition(case: Case, impl: choice.Impl):
    mixed, gradient = differences(case.run(case.attend, impl), case.run(case.define))
    assert mixed < FORWARD
    assert gradient < GRADIENT


@pytest.mark.parametrize("width", [128, 16])  # with the backward pass, and with JAX's own
def test_the_scores_of_some_queries_at_a_time_are_in_memory(width: int, monkeypatch: pytest.MonkeyPatch):
    case = Case(length=1024, heads=4, batch=1, width=width)
    expected = case.run(case.define)
    monkeypatch.setattr(attention, "SCORES", 1 << 17)
    mixed, gradient = differences(case.run(case.attend), expected)
    assert mixed < FORWARD
    assert gradient < GRADIENT

    def measure(function: Any) -> int:
        return _temporaries(jax.jit(_gradient(function)).lower(*case.draw()).compile())

    scores = case.heads * case.length**2 * 4
    assert measure(case.define) > scores
    assert measure(case.attend) < scores


def test_every_device_of_a_mesh_attends_by_itself():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.kernels.self_attention_mesh"]
    found = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout
    for mesh, mixed, gradient in json.loads(found):
        assert mixed < FORWARD, mesh
        assert gradient < GRADIENT, mesh


def _export(platform: str, case: Case) -> str:
    return jax.export.export(jax.jit(_gradient(case.attend)), platforms=[platform])(*case.draw()).mlir_module()


def test_programs_for_tpus_have_the_kernel_unless_the_reference_is_requested():
    case = CASES["grouped"]
    assert _export("tpu", case).count("tpu_custom_call") == 3  # forward, of queries, and of keys and values
    assert "custom_call" not in _export("cuda", case)
    with choice.use("reference"):
        assert "tpu_custom_call" not in _export("tpu", case)


@pytest.mark.parametrize(
    ("case", "obstacle"),
    [
        (Case(length=200), "the length 200 is not a multiple of 128"),
        (Case(width=64), "the head width 64 is not a multiple of 128"),
    ],
)
def test_inputs_that_the_kernel_does_not_take_go_to_the_reference(case: Case, obstacle: str):
    assert "tpu_custom_call" not in _export("tpu", case)
    with choice.use("pallas"), pytest.raises(GemwrightError, match=f"cannot run in Pallas: {obstacle}"):
        case.attend(*case.draw()[:3])


def test_the_kernel_runs_on_tpus_and_interpreted_on_cpus_only():
    with choice.use("pallas"), pytest.raises(GemwrightError, match="in Pallas on cuda, only on a TPU or CPU"):
        _export("cuda", CASES["grouped"])


@pytest.mark.peer
@pytest.mark.parametrize(
    ("window", "cap", "dtype", "topology", "mesh"),
    [
        (4096, 50.0, "bfloat16", "v5e:2x2", "fsdp=4"),  # Gemma 2
        (None, 50.0, "float32", "v5e:2x2", "fsdp=4"),
        (512, None, "bfloat16", "v5e:2x2", "fsdp=2,sequence=2"),  # Gemma 3
        (None, None, "bfloat16", "v6e:2x2", "fsdp=2,tensor=2"),
        (4096, 50.0, "float32", "v6e:2x2", "fsdp=2,sequence=2"),
    ],
)
def test_it_compiles_for_tpus_without_an_array_of_all_scores(
    window: int | None, cap: float | None, dtype: str, topology: str, mesh: str
):
    from jax.experimental import topologies

    pytest.importorskip("libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor a chip that another process may hold
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    case = Case(length=8192, heads=8, kv_heads=4, width=256, window=window, cap=cap, batch=4)
    with sharding.use(sharding.make_mesh(sharding.parse_mesh(mesh), devices)):
        names = ("batch", "length", "heads", None)
        shapes = [(4, 8192, heads, 256) for heads in (8, 4, 4, 8)]
        arguments = [jax.ShapeDtypeStruct(s, jnp.dtype(dtype), sharding=sharding.sharding_of(names, s)) for s in shapes]
        compiled: Any = jax.jit(_gradient(case.attend)).lower(*arguments).compile()
    scores = np.prod(shapes[0]) // 4 // 256 * 8192 * 4  # bytes of a device's, in float32
    assert _temporaries(compiled) < scores // 4
    assert "tpu_custom_call" in compiled.as_text()
