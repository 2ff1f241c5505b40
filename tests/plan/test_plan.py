"""Plans: bytes by published parameter counts, published throughput as a bound, the compiler's numbers, errors."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from gemwright.cli.app import app
from gemwright.errors import GemwrightError
from gemwright.plan.compile import compile_job, find_devices
from gemwright.plan.estimate import estimate, times
from gemwright.plan.fit import changes, find_change, fits
from gemwright.plan.hardware import parse_machine
from gemwright.plan.job import Job, make_job
from gemwright.sharding import make_mesh
from gemwright.variants import VARIANTS

CLOSE = 0.15
"""Largest relative difference of an estimate from the compiler's memory."""


def _job(model: str, kind: str, machine: str, **options: Any) -> Job:
    given = {"batch": None, "length": None, "mesh": None} | options
    return make_job(kind, VARIANTS[model].config, parse_machine(machine), **given)


@pytest.mark.parametrize("model", ["gemma-2b", "gemma-2-9b", "gemma-3-1b", "recurrentgemma-2b"])
def test_weights_and_optimizer_are_those_of_the_published_parameters(model: str):
    text = VARIANTS[model].parameters
    single = estimate(_job(model, "train", "h200")).memory
    assert single["weights"] == pytest.approx(4 * text, rel=0.001)
    assert single["optimizer"] == 2 * single["weights"]
    divided = estimate(_job(model, "train", "v5e:4x4")).memory
    assert divided["weights"] == pytest.approx(single["weights"] / 16, rel=0.02)  # vectors are not divided
    assert estimate(_job(model, "generate", "h100")).memory["weights"] == pytest.approx(2 * text, rel=0.001)


def test_operations_are_six_a_parameter_and_token_and_the_forward_pass_again():
    job = _job("gemma-7b", "train", "v5e:16x16", length=128)
    needs, count = estimate(job), VARIANTS["gemma-7b"].parameters
    assert needs.flops * 256 * needs.useful == pytest.approx(6 * count * needs.tokens, rel=0.01)
    assert 0.74 < needs.useful < 0.8


def test_published_throughput_is_below_the_roofline():
    """PaliGemma 3B trained at 5,189 tokens/s a device on 256 v5e, 55% of its peak (arXiv:2407.07726)."""
    job = _job("paligemma-3b-224", "train", "v5e:16x16", batch=32 * 256, length=384)
    needs = estimate(job)
    assert needs.tokens / sum(times(job, needs).values()) / 256 > 5189
    share = 5189 * 256 * needs.flops / needs.tokens / job.machine.chip.flops
    assert share == pytest.approx(0.55, abs=0.02)  # with the operations that are computed twice


def test_a_model_that_is_trained_with_images_has_its_tower():
    text, both = (estimate(_job(model, "train", "h200", length=256)) for model in ("gemma-2b", "paligemma-3b-224"))
    whole = VARIANTS["paligemma-3b-224"].parameters
    assert both.memory["weights"] == pytest.approx(4 * whole, rel=0.001)
    assert both.flops > text.flops


def test_pretraining_is_training():
    assert estimate(_job("gemma-2b", "pretrain", "v5e:4x4")) == estimate(_job("gemma-2b", "train", "v5e:4x4"))


@pytest.mark.parametrize(
    ("model", "kind", "machine", "length"),
    [
        ("gemma-7b", "train", "v5e:2x2", 2048),
        ("gemma-7b", "train", "v5e:4x4", 8192),
        ("gemma-2-27b", "train", "v5e:8x8", 2048),
        ("gemma-2-27b", "tune", "v5e:4x4", 8192),
        ("gemma-3-27b", "serve", "h100", 32768),
        ("gemma-3-27b", "generate", "l4", 2048),
    ],
)
def test_the_named_change_fits(model: str, kind: str, machine: str, length: int):
    job = _job(model, kind, machine, length=length)
    assert not fits(job)
    words, changed = next((words, changed) for words, changed in changes(job) if fits(changed))
    assert find_change(job) == words
    again = make_job(
        changed.kind, changed.config, changed.machine, changed.batch, changed.length, _mesh_text(changed.sizes)
    )
    assert estimate(again).total <= 0.95 * changed.machine.chip.memory


def _mesh_text(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


@pytest.mark.parametrize(
    ("text", "chips", "slices"),
    [("h100", 1, 1), ("h100:8", 8, 1), ("v5e:16x16", 256, 1), ("v5e:16x16x4", 1024, 4), ("v5p:8x8x8", 512, 1)],
)
def test_machines(text: str, chips: int, slices: int):
    machine = parse_machine(text)
    assert (machine.chips, machine.slices) == (chips, slices)


@pytest.mark.parametrize("text", ["", "v9", "h100:0", "v5e:4x", "v5e:4xq", "this:2", "h100:-1", "v5e:16x16x16x"])
def test_machines_that_are_not_valid(text: str):
    with pytest.raises(GemwrightError):
        parse_machine(text)


def test_a_job_that_does_not_fit_names_the_nearest_change():
    job = _job("gemma-7b", "train", "v5e:2x2")
    assert not fits(job)
    assert find_change(job) == "LoRA, the job tune"
    large = _job("gemma-3-270m", "train", "h100", batch=1024, length=2048)
    assert find_change(large) == "a batch of 256"
    assert find_change(_job("gemma-3-27b", "generate", "l4")) in ("NVIDIA A100 80GB SXM (--on a100)", "4 chips")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--job fly", "The job 'fly' is not known; use one of generate, serve, tune, train, pretrain."),
        ("--on h100:8 --job train --mesh fsdp=4", "The mesh fsdp=4 has 4 parts and the machine 8 chips"),
        ("--on h100:8 --job train --batch 12", "A batch of 12 sequences cannot be divided into 8 parts"),
        ("--on h100 --length 9000", "length 9,000 is not between 1 and the model's 8,192 tokens."),
        ("--on h100 --compile", "can be compiled only on it"),
        ("--on h100 --tokens 1e9", "--tokens is the budget of a training"),
    ],
)
def test_wrong_input_is_one_sentence(options: str, sentence: str):
    result = CliRunner().invoke(app, ["plan", "gemma-2b", *options.split()])
    assert sentence in str(result.exception)


def test_the_command_line_prints_the_plan_and_json():
    arguments = ["plan", "gemma-7b", "--job", "train", "--on", "v5e:16x16", "--tokens", "6e12"]
    printed = CliRunner().invoke(app, arguments).stdout
    assert "256 x TPU v5e (fsdp=256)" in printed
    assert "It fits into" in printed
    document = json.loads(CliRunner().invoke(app, [*arguments[:-2], "--json"]).stdout)
    assert document["chips"] == 256
    assert document["fits"]
    assert document["memory_bytes"]["optimizer"] == 2 * document["memory_bytes"]["weights"]


@pytest.mark.parametrize(
    ("kind", "method"),
    [("generate", {}), *((kind, {"batch": 4, "length": 256}) for kind in ("tune", "train"))],
)
@pytest.mark.slow
def test_estimates_are_near_the_compilers_numbers(kind: str, method: dict[str, Any]):
    job = _job("gemma-3-270m", kind, "this", **method)
    assert estimate(job).total == pytest.approx(compile_job(job).total, rel=CLOSE)


@pytest.mark.peer
def test_a_step_is_compiled_for_a_slice_that_is_not_there():
    pytest.importorskip("libtpu")
    job = _job("gemma-3-270m", "generate", "v5e:2x2", batch=4)
    needs, found = estimate(job), compile_job(job)
    assert needs.memory["weights"] < found.total < job.machine.chip.memory
    assert found.flops == pytest.approx(needs.flops, rel=CLOSE)


@pytest.mark.peer
def test_meshes_of_slices_and_of_axes_that_share_one_of_the_slice():
    pytest.importorskip("libtpu")
    for machine, mesh in (("v5e:4x4x2", "slice=2,fsdp=16"), ("v5p:4x4x8", "fsdp=64,tensor=2")):
        job = _job("gemma-3-270m", "train", machine, mesh=mesh)
        found = make_mesh(job.mesh, find_devices(job.machine))
        assert len({device.id for device in found.devices.flat}) == job.machine.chips
    with pytest.raises(GemwrightError, match="give slice=2 in the mesh"):
        make_mesh({"fsdp": 32}, find_devices(parse_machine("v5e:4x4x2")))
    with pytest.raises(GemwrightError, match="makes 8 devices of the 4 chips"):
        find_devices(parse_machine("v4:2x2x1"))
