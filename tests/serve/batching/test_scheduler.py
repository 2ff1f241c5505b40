"""Continuous batching: every request gives what it gives alone, whatever else runs."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from gemwright.api import Model
from gemwright.errors import RequestError
from gemwright.generate.sampling import Sampling
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.batching.scheduler import Limits, Scheduler
from gemwright.serve.structured.grammar import from_choices
from tests.helpers import random_ids
from tests.serve.driver import finish, run, running

pytestmark = pytest.mark.usefixtures("quick_compilation")
LIMITS = Limits(context=256, slots=4, cache_bytes=1 << 22)
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0, top_k=8, seed=5),
    Sampling(temperature=0.9, top_p=0.9, seed=7),
    Sampling(temperature=1.0, top_k=8, repetition_penalty=1.3, frequency_penalty=0.5, seed=9),
]


@pytest.fixture(scope="module")
def scheduler(tiny_model: Model, quick_compilation: None) -> Iterator[Scheduler]:
    with running(tiny_model, LIMITS) as scheduler:
        yield scheduler


def prompt(model: Model, length: int, seed: int = 0) -> list[int]:
    return random_ids(model.engine.vocabulary, length, seed=seed).tolist()


def alone(model: Model, ids: list[int], sampling: Sampling, count: int) -> list[int]:
    """Return the tokens of one prompt by the engine, without a scheduler."""
    return [int(step.tokens[0]) for step in model.engine.generate([ids], [sampling], count)]


def test_requests_together_give_what_they_give_alone(tiny_model: Model, scheduler: Scheduler) -> None:
    cases = [
        (prompt(tiny_model, length, seed=length), SAMPLINGS[index % 4], 6 + 5 * (index % 3))
        for index, length in enumerate((1, 2, 20, 33, 150, 7, 90, 12, 40, 5))
    ]
    results = run(scheduler, [GenerationRequest(ids, sampling, count) for ids, sampling, count in cases])
    for (ids, sampling, count), result in zip(cases, results, strict=True):
        assert result.tokens == alone(tiny_model, ids, sampling, count)
        assert result.finish_reason == "length"
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_nothing_compiles_after_the_warm_up(tiny_model: Model, scheduler: Scheduler) -> None:
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    requests = [
        GenerationRequest(prompt(tiny_model, 3 + 9 * index, seed=100 + index), SAMPLINGS[index % 4], 4 + index)
        for index in range(12)
    ]
    requests[3] = replace(requests[3], top_logprobs=3, prompt_logprobs=True)
    requests[4] = replace(requests[4], logit_bias={3: -100.0}, min_tokens=3, stop_ids=(1,))
    run(scheduler, requests)
    run(scheduler, requests[:1])
    assert compiled == []


def test_the_second_turn_prefills_only_what_is_new(tiny_model: Model, scheduler: Scheduler) -> None:
    first = prompt(tiny_model, 100, seed=1)
    answer = run(scheduler, [GenerationRequest(first, Sampling(), 9)])[0].tokens
    second = [*first, *answer, *prompt(tiny_model, 11, seed=2)]
    result = run(scheduler, [GenerationRequest(second, Sampling(), 9)])[0]
    assert result.generation.cached_tokens == len(first) + len(answer) - 1
    assert result.tokens == alone(tiny_model, second, Sampling(), 9)


def test_the_same_prompt_again_is_not_prefilled(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 60, seed=3)
    one, two = (run(scheduler, [GenerationRequest(ids, Sampling(), 5)])[0] for _ in range(2))
    assert (one.generation.cached_tokens, two.generation.cached_tokens) == (0, 59)
    assert one.tokens == two.tokens == alone(tiny_model, ids, Sampling(), 5)


def test_a_shared_beginning_is_cached_from_the_third_prompt_on(tiny_model: Model, scheduler: Scheduler) -> None:
    shared = prompt(tiny_model, 140, seed=4)
    prompts = [[*shared, *prompt(tiny_model, 20 + index, seed=5 + index)] for index in range(3)]
    results = [run(scheduler, [GenerationRequest(ids, Sampling(), 4)])[0] for ids in prompts]
    assert results[2].generation.cached_tokens >= 140
    for ids, result in zip(prompts, results, strict=True):
        assert result.tokens == alone(tiny_model, ids, Sampling(), 4)


def test_prefixes_are_not_shared_with_another_salt(tiny_model: Model, scheduler: Scheduler) -> None:
    request = GenerationRequest(prompt(tiny_model, 50, seed=20), Sampling(), 3)
    run(scheduler, [request])
    assert run(scheduler, [replace(request, cache_salt="other")])[0].generation.cached_tokens == 0
    assert run(scheduler, [request])[0].generation.cached_tokens == 49


def test_log_probabilities_are_those_of_the_engine(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 70, seed=6)
    request = GenerationRequest(ids, Sampling(), 6, top_logprobs=4, prompt_logprobs=True)
    result = run(scheduler, [request])[0]
    scores = tiny_model.engine.score([[*ids, *result.tokens]])[0]
    found = [*result.generation.prompt_logprobs, *result.logprobs]
    assert [each.token for each in found] == [*ids, *result.tokens]
    assert found[0].logprob is None
    np.testing.assert_allclose([each.logprob for each in found[1:]], scores, atol=2e-5)
    for each in result.logprobs:
        assert each.top[0] == (each.token, each.logprob)
        assert len(each.top) == 4


def test_a_prompt_can_be_scored_without_a_continuation(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 9, seed=6)
    result = run(scheduler, [GenerationRequest(ids, Sampling(), 0, top_logprobs=1, prompt_logprobs=True)])[0]
    assert (result.tokens, result.finish_reason, len(result.generation.prompt_logprobs)) == ([], "length", 9)


def test_a_bias_and_a_minimum_length_hold(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 12, seed=8)
    free = alone(tiny_model, ids, Sampling(), 12)
    banned = GenerationRequest(ids, Sampling(), 12, logit_bias={free[0]: -100.0})
    stopped = GenerationRequest(ids, Sampling(), 12, stop_ids=(free[0], free[3]))
    longer = replace(stopped, min_tokens=5)
    one, two, three = run(scheduler, [banned, stopped, longer])
    assert free[0] not in one.tokens
    assert (two.tokens, two.finish_reason, two.stop) == ([], "stop", free[0])
    assert len(three.tokens) >= 5
    assert not {free[0], free[3]} & set(three.tokens[:5])


def test_stop_strings_end_a_text_and_free_its_slot(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 12, seed=11)
    free = run(scheduler, [GenerationRequest(ids, Sampling(temperature=1.0, top_k=8, seed=3), 60)])[0]
    stop = free.text[len(free.text) // 2 :][:3]
    request = GenerationRequest(ids, Sampling(temperature=1.0, top_k=8, seed=3), 60, stop_strings=(stop,))
    result = run(scheduler, [request])[0]
    assert result.text == free.text[: free.text.index(stop)]
    assert (result.finish_reason, result.stop) == ("stop", stop)
    assert scheduler.running == 0


def test_cancelled_requests_leave_and_the_others_stay_right(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = [prompt(tiny_model, 30, seed=30 + index) for index in range(12)]

    async def both() -> list[list[int]]:
        generations = [scheduler.submit(GenerationRequest(each, Sampling(), 40)) for each in ids]
        afters = [None if index % 2 else index // 2 for index in range(12)]
        return [each.tokens for each in await asyncio.gather(*map(finish, generations, afters))]

    tokens = asyncio.run(both())
    for index in range(1, 12, 2):
        assert tokens[index] == alone(tiny_model, ids[index], Sampling(), 40)
    deadline = time.monotonic() + 10
    while (scheduler.running or scheduler.waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_what_does_not_fit_is_refused(tiny_model: Model, scheduler: Scheduler) -> None:
    async def submit(ids: list[int], count: int = 1) -> None:
        scheduler.submit(GenerationRequest(ids, Sampling(), count))

    for ids, message in (
        ([], "empty"),
        (prompt(tiny_model, 256), "256 tokens and the context 256"),
        ([tiny_model.engine.vocabulary], "Token ids must be between"),
    ):
        with pytest.raises(RequestError, match=message):
            asyncio.run(submit(ids))


def test_a_full_queue_is_refused_with_a_time_to_retry(tiny_model: Model) -> None:
    scheduler = Scheduler(tiny_model, replace(LIMITS, waiting=2))

    async def submit() -> None:
        for _ in range(3):
            scheduler.submit(GenerationRequest([2, 3], Sampling(), 1))

    with pytest.raises(RequestError, match="queue is full") as caught:
        asyncio.run(submit())
    assert (caught.value.status, caught.value.retry_after) == (429, 2)


def test_a_grammar_is_followed_beside_other_requests(tiny_model: Model, scheduler: Scheduler) -> None:
    ids = prompt(tiny_model, 12, seed=40)
    choice = GenerationRequest(ids, Sampling(), 40, stop_ids=(1,), grammar=from_choices(["the cat", "the thing"]))
    sampled = replace(choice, sampling=Sampling(temperature=1.5, seed=3))
    results = run(scheduler, [choice, sampled, GenerationRequest(ids, Sampling(), 20)])
    assert {results[0].text, results[1].text} <= {"the cat", "the thing"}
    assert [result.finish_reason for result in results] == ["stop", "stop", "length"]
    assert results[2].tokens == alone(tiny_model, ids, Sampling(), 20)
