"""The other APIs before a real scheduler: what they return is what the model writes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

import gemwright
from gemwright.serve.app import create_app
from gemwright.serve.batching.scheduler import Limits, Scheduler
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.settings import Settings

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def client(tiny: gemwright.Model) -> Iterator[TestClient]:
    scheduler = Scheduler(tiny, Limits(context=256, slots=2, cache_bytes=1 << 22))
    scheduler.start()
    served = ServedModel("tiny", replace(tiny, tuned=True), scheduler)
    registry = ModelRegistry([ModelSource("tiny", lambda: served, (), served)])
    with TestClient(create_app(registry, Settings())) as client:
        yield client
    scheduler.stop()


def test_texts_are_those_of_the_model(client: TestClient, tiny: gemwright.Model):
    expected = tiny.generate("the cat and the", max_tokens=8, temperature=0.0)
    fields = {"prompt": "the cat and the", "n_predict": 8, "temperature": 0}
    body = client.post("/completion", json={**fields, "return_tokens": True}).json()
    assert (body["content"], body["tokens"]) == (expected.text, expected.tokens)
    options = {"num_predict": 8, "temperature": 0}
    raw = {"model": "tiny", "prompt": "the cat and the", "raw": True, "stream": False, "options": options}
    assert client.post("/api/generate", json=raw).json()["response"] == expected.text
    middle = tiny.infill("the ", " cat", max_tokens=8)
    gap = {"input_prefix": "the ", "input_suffix": " cat", "n_predict": 8}
    assert client.post("/infill", json=gap).json()["content"] == middle.text
    messages = [{"role": "user", "content": "the cat"}]
    answer = tiny.chat(messages, max_tokens=8, temperature=0.0)
    message = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": messages}
    body = client.post("/v1/messages", json=message).json()
    assert (body["content"][0]["text"], body["stop_reason"]) == (answer.text, "max_tokens")
    body = client.post("/v1/responses", json={"input": messages, "max_output_tokens": 8, "temperature": 0}).json()
    assert body["output"][0]["content"][0]["text"] == answer.text


def test_a_request_for_no_tokens_fills_the_cache(client: TestClient):
    prompt = "the other thing and the cat " * 3
    warm = client.post("/completion", json={"prompt": prompt, "n_predict": 0}).json()
    assert (warm["content"], warm["timings"]["cache_n"]) == ("", 0)
    fields = {"prompt": prompt, "n_predict": 2, "temperature": 0}
    body = client.post("/completion", json=fields).json()
    assert body["timings"]["cache_n"] > 0
    assert body["timings"]["prompt_n"] + body["timings"]["cache_n"] == warm["tokens_evaluated"]
    apart = client.post("/completion", json={**fields, "cache_prompt": False}).json()
    assert (apart["content"], apart["timings"]["cache_n"]) == (body["content"], 0)


def test_a_stop_sequence_is_named(client: TestClient, tiny: gemwright.Model):
    messages = [{"role": "user", "content": "the cat"}]
    text = tiny.chat(messages, max_tokens=8, temperature=0.0).text
    fields = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": messages, "stop_sequences": [text[2:4]]}
    body = client.post("/v1/messages", json=fields).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", text[2:4])
    assert body["content"][0]["text"] == text[: text.index(text[2:4])]
    native = {"prompt": "the cat", "n_predict": 8, "temperature": 0}
    text = client.post("/completion", json=native).json()["content"]
    body = client.post("/completion", json={**native, "stop": [text[2:4]]}).json()
    assert (body["stop_type"], body["stopping_word"]) == ("word", text[2:4])
