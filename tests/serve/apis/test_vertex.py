"""The contract of Vertex AI's prediction containers."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings
from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/ping")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


def predict(client: TestClient, *instances: Any, **fields: Any) -> list[Any]:
    response = client.post("/v1/endpoints/1:predict", json={"instances": instances, **fields})
    assert response.status_code == 200, response.text
    assert response.json().keys() == {"predictions"}
    return response.json()["predictions"]


def test_health_needs_no_key_and_says_when_the_model_is_ready(registry: ModelRegistry):
    app = create_app(None, Settings(api_keys=("key",)))
    client = TestClient(app)
    assert client.get("/ping").status_code == 503
    app.state.registry = registry
    assert client.get("/ping").status_code == 200


def test_instances_of_all_shapes(client: TestClient, scheduler: ScriptedScheduler):
    chat = {"@requestFormat": "chatCompletions", "messages": MESSAGES, "max_tokens": 50, "stream": True}
    by_path = {"@requestFormat": "/v1/completions", "prompt": "the", "max_tokens": 2}
    tgi = {"inputs": "the", "parameters": {"max_new_tokens": 3, "do_sample": False}}
    bare = {"messages": MESSAGES, "max_tokens": 50}
    vllm = {"prompt": "the", "max_tokens": 50, "temperature": 0.5}
    first, second, *texts = predict(client, chat, by_path, tgi, bare, vllm)
    assert first["object"] == "chat.completion"
    assert first["choices"][0]["message"]["content"] == TEXT
    assert second["choices"][0]["finish_reason"] == "length"
    assert texts[1:] == [TEXT, TEXT]
    assert TEXT.startswith(texts[0])
    limits = [(request.max_tokens, request.sampling.temperature) for request in scheduler.requests]
    assert (3, 0.0) in limits
    assert (50, 0.5) in limits


def test_parameters_are_shared(client: TestClient, scheduler: ScriptedScheduler):
    predict(client, {"prompt": "a"}, {"prompt": "b", "max_tokens": 2}, parameters={"max_tokens": 1})
    assert sorted(request.max_tokens for request in scheduler.requests) == [1, 2]


def test_other_endpoints_by_their_names(client: TestClient):
    native = {"@requestFormat": "completion", "prompt": "the"}
    message = {"@requestFormat": "messages", "max_tokens": 5, "messages": MESSAGES}
    found = predict(client, native, message)
    assert found[0]["content"] == TEXT
    assert found[1]["type"] == "message"


def test_an_instance_that_fails_leaves_the_others(client: TestClient):
    instances = [
        *({"prompt": "a", "max_tokens": 50}, {"prompt": "a", "temperature": -1}, 3, {}, {"@requestFormat": "nothing"}),
        {"@requestFormat": "/v1/endpoints/1:predict", "instances": []},
    ]
    good, *wrong = predict(client, *instances)
    assert good == TEXT
    assert all(prediction["error"]["message"] for prediction in wrong)
    assert wrong[0]["error"]["param"] == "temperature"


def test_wrong_requests(client: TestClient):
    for fields in ({"instances": {}}, {"instances": [{}] * 129}, {"x": 1}, {"instances": [], "parameters": 3}):
        response = client.post("/v1/endpoints/1:predict", json=fields)
        assert (response.status_code, "error" in response.json()) == (400, True), fields
    assert client.post("/v1/endpoints/1:predict", content=b"{").status_code == 400
    assert predict(client) == []


def test_raw_predictions(client: TestClient, monkeypatch: pytest.MonkeyPatch, registry: ModelRegistry):
    raw = client.post("/v1/endpoints/1:predict", json={"messages": MESSAGES})
    assert raw.json()["choices"][0]["message"]["content"] == TEXT
    stream = client.post("/v1/endpoints/1:predict", json={"prompt": "a", "stream": True})
    assert stream.text.endswith("data: [DONE]\n\n")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/chat/completions")
    client = TestClient(create_app(registry, Settings()))
    assert client.post("/v1/chat/completions", json={"messages": MESSAGES}).json()["object"] == "chat.completion"
    chat = {"@requestFormat": "chatCompletions", "messages": MESSAGES}
    both = client.post("/v1/chat/completions", json={"instances": [{"prompt": "a", "max_tokens": 50}, chat]})
    text, answer = both.json()["predictions"]
    assert (text, answer["choices"][0]["message"]["content"]) == (TEXT, TEXT)


def test_there_are_no_routes_elsewhere(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIP_HEALTH_ROUTE")
    monkeypatch.delenv("AIP_PREDICT_ROUTE")
    assert TestClient(create_app(registry, Settings())).post("/predict", json={}).status_code == 404
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    client = TestClient(create_app(registry, Settings()))
    instances = [{"prompt": "a", "max_tokens": 50}]
    assert client.post("/predict", json={"instances": instances}).json() == {"predictions": [TEXT]}
    assert client.get("/health").status_code == 200
