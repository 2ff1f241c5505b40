"""Prompts with images in the scheduler: as alone, together with others, and cached by their pixels."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

import gemwright
from gemwright.api import Model
from gemwright.generate.prompts import Prompt
from gemwright.generate.sampling import Sampling
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.batching.scheduler import Limits, Scheduler
from tests.serve.driver import run, running
from tests.tiny.hf import write_model

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=["gemma3", "paligemma"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return gemwright.load(write_model(tmp_path_factory.mktemp("model") / request.param, request.param), dtype="float32")


@pytest.fixture(scope="module")
def scheduler(model: Model, quick_compilation: None) -> Iterator[Scheduler]:
    with running(model, Limits(context=256, slots=1, cache_bytes=1 << 22)) as scheduler:
        yield scheduler


def prompt(model: Model, seed: int, text: str = "the cat and the thing") -> Prompt:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    prepared = model.prepare(text, images=[pixels])
    assert isinstance(prepared, Prompt)
    return prepared


def alone(model: Model, given: Prompt, count: int) -> list[int]:
    return [int(step.tokens[0]) for step in model.engine.generate([given], [Sampling()], count)]


def test_images_give_what_they_give_alone(model: Model, scheduler: Scheduler) -> None:
    prompts = [prompt(model, seed) for seed in range(3)]
    results = run(scheduler, [GenerationRequest(given, Sampling(), 7) for given in prompts])
    for given, result in zip(prompts, results, strict=True):
        assert result.tokens == alone(model, given, 7)


def test_the_cache_tells_images_apart(model: Model, scheduler: Scheduler) -> None:
    one, same, other = prompt(model, 10), prompt(model, 10), prompt(model, 11)
    run(scheduler, [GenerationRequest(one, Sampling(), 3)])
    repeated, different = (run(scheduler, [GenerationRequest(given, Sampling(), 3)])[0] for given in (same, other))
    assert repeated.tokens == alone(model, same, 3)
    assert different.tokens == alone(model, other, 3)
    assert repeated.generation.cached_tokens == len(same) - 1
    assert different.generation.cached_tokens == 0


def test_no_image_compiles_a_program(model: Model, scheduler: Scheduler) -> None:
    compiled: list[str] = []
    prompts = [prompt(model, 20, "the"), prompt(model, 21)]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    run(scheduler, [GenerationRequest(given, Sampling(temperature=1.0, top_k=5), 5) for given in prompts])
    assert compiled == []
