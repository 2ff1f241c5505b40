"""Ollama's API, by its own Python client and by requests as its other clients send them."""

import base64
import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

import gemwright
from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.settings import Settings
from tests.serve.apis.test_anthropic import CALL, say
from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import run_server


@pytest.fixture
def client(tiny: gemwright.Model, scheduler: ScriptedScheduler) -> TestClient:
    """A server of a model that counts as instruction-tuned."""
    tuned = replace(tiny, tuned=True)
    served = ServedModel("tiny", tuned, scheduler)
    registry = ModelRegistry([ModelSource("tiny", lambda: served, (), served)])
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


def post(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the lines of a reply."""
    response = client.post(path, json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def prompt_text(scheduler: ScriptedScheduler) -> str:
    return scheduler.model.tokenizer.decode(scheduler.requests[-1].prompt, keep_control=True)


def test_generate_streams_lines_and_counts(client: TestClient, scheduler: ScriptedScheduler):
    *parts, last = post(client, "/api/generate", prompt="hello")
    assert "".join(part["response"] for part in parts) == TEXT
    assert all(part["model"] == "tiny" and part["done"] is False for part in parts)
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert last["eval_count"] == len(scheduler.model.tokenizer.encode(TEXT))
    assert last["prompt_eval_count"] == len(scheduler.requests[0].prompt)
    durations = [last[name] for name in ("total_duration", "prompt_eval_duration", "eval_duration", "load_duration")]
    assert all(type(duration) is int and 0 <= duration < 60e9 for duration in durations)
    assert prompt_text(scheduler) == "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"


def test_generate_without_a_stream_is_one_object(client: TestClient):
    (body,) = post(client, "/api/generate", prompt="hello", stream=False)
    assert (body["response"], body["done"], body["done_reason"]) == (TEXT, True, "stop")
    (body,) = post(client, "/api/generate", prompt="hello", stream=False, options={"num_predict": 2})
    assert (body["done_reason"], body["eval_count"]) == ("length", 2)


def test_system_raw_and_suffix(client: TestClient, scheduler: ScriptedScheduler):
    post(client, "/api/generate", prompt="hello", system="be brief")
    assert prompt_text(scheduler).startswith("<bos><start_of_turn>user\nbe brief\n\nhello<end_of_turn>")
    post(client, "/api/generate", prompt="the <start_of_turn>", raw=True)
    assert scheduler.requests[-1].prompt == scheduler.model.encode("the <start_of_turn>")
    post(client, "/api/generate", prompt="the ", suffix=" cat")
    assert prompt_text(scheduler) == "<bos><|fim_prefix|>the <|fim_suffix|> cat<|fim_middle|>"
    infill = scheduler.requests[-1].prompt
    post(client, "/api/generate", prompt="<|fim_prefix|>the <|fim_suffix|> cat<|fim_middle|>", raw=True)
    assert scheduler.requests[-1].prompt == infill


def test_options_are_applied(client: TestClient, scheduler: ScriptedScheduler):
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "seed": 3, "repeat_penalty": 1.2}
    options |= {"presence_penalty": 0.3, "frequency_penalty": 0.4, "stop": ["xyz"], "num_ctx": 2048, "num_gpu": 1}
    for path, fields in (("generate", {"prompt": "a"}), ("chat", {"messages": [{"role": "user", "content": "a"}]})):
        post(client, f"/api/{path}", options={**options, "num_predict": 5}, **fields)
        request = scheduler.requests[-1]
        assert (request.max_tokens, request.stop_strings) == (5, ("xyz",))
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.8, 0.1)
        assert (sampling.seed, sampling.repetition_penalty) == (3, 1.2)
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.3, 0.4)


def test_an_empty_prompt_loads_the_model(client: TestClient, scheduler: ScriptedScheduler):
    (body,) = post(client, "/api/generate")
    assert (body["response"], body["done"], body["done_reason"]) == ("", True, "load")
    (body,) = post(client, "/api/chat", messages=[])
    assert (body["message"], body["done_reason"]) == ({"role": "assistant", "content": ""}, "load")
    assert not scheduler.requests


def test_models_are_kept_as_requests_say(client: TestClient):
    source = client.app.state.registry.find("tiny")
    for given, seconds in (("5m", 300.0), ("1h30m", 5400.0), (10, 10.0), (-1, None), ("-1s", None), ("250ms", 0.25)):
        post(client, "/api/generate", prompt="a", keep_alive=given)
        assert source.keep_seconds == seconds
    post(client, "/api/generate", prompt="a")
    assert source.keep_seconds == 0.25
    assert client.get("/api/ps").json()["models"][0]["expires_at"] < "9999"
    assert client.post("/api/generate", json={"model": "tiny", "prompt": "a", "keep_alive": "long"}).status_code == 400
    (body,) = post(client, "/api/generate", keep_alive="0s")
    assert (body["done_reason"], source.served) == ("unload", None)
    assert client.get("/api/ps").json() == {"models": []}
    assert client.get("/api/tags").json()["models"][0]["name"] == "tiny"
    (body,) = post(client, "/api/generate")
    assert (body["done_reason"], source.served is None) == ("load", False)


def test_chat_streams_messages(client: TestClient, scheduler: ScriptedScheduler):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    *parts, last = post(client, "/api/chat", messages=messages)
    assert "".join(part["message"]["content"] for part in parts) == TEXT
    assert last["message"] == {"role": "assistant", "content": ""}
    assert "<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc<end_of_turn>" in prompt_text(scheduler)


def test_a_model_calls_a_tool(client: TestClient, scheduler: ScriptedScheduler):
    say(scheduler, CALL)
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
    fields = {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": function}]}
    call, last = post(client, "/api/chat", **fields)
    (made,) = call["message"]["tool_calls"]
    assert (made["function"]["name"], made["function"]["arguments"]) == ("weather", {"place": "Paris"})
    assert (last["message"], last["done_reason"]) == ({"role": "assistant", "content": ""}, "stop")
    (body,) = post(client, "/api/chat", **fields, stream=False)
    assert body["message"]["tool_calls"][0]["function"] == made["function"]
    turns = [body["message"], {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    say(scheduler, TEXT)
    (body,) = post(client, "/api/chat", **{**fields, "messages": [*fields["messages"], *turns]}, stream=False)
    assert body["message"]["content"] == TEXT
    assert "sunny" in prompt_text(scheduler)


def test_formats_constrain_the_text(client: TestClient, scheduler: ScriptedScheduler):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for path, fields in (("generate", {"prompt": "a"}), ("chat", {"messages": [{"role": "user", "content": "a"}]})):
        for given in ("json", schema):
            post(client, f"/api/{path}", format=given, **fields)
            assert scheduler.requests[-1].grammar


def test_logprobs(client: TestClient):
    *parts, _ = post(client, "/api/generate", prompt="a", logprobs=True, top_logprobs=2)
    entries = [entry for part in parts for entry in part["logprobs"]]
    assert "".join(entry["token"] for entry in entries) == TEXT
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] < 0 for entry in entries)
    (body,) = post(client, "/api/generate", prompt="a", logprobs=True, stream=False)
    assert len(body["logprobs"]) == len(entries)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ({"prompt": "a", "context": [1, 2]}, "context"),
        ({"prompt": "a", "think": True}, "think"),
        ({"prompt": "a", "options": {"mirostat": 1}}, "mirostat"),
        ({"prompt": "a", "options": {"typical_p": 0.5}}, "typical_p"),
        ({"prompt": "a", "options": {"temperature": "hot"}}, "temperature"),
        ({"prompt": "a", "options": {"temperature": -1}}, "temperature"),
        ({"prompt": "a", "format": "yaml"}, "format"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "images": ["%%%"]}, "image"),
        ({"prompt": "a", "model": ""}, "model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: TestClient, fields: dict[str, Any], name: str):
    response = client.post("/api/generate", json={"model": "tiny", **fields})
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    assert name in response.json()["error"].lower()


def test_neutral_values_are_not_refused(client: TestClient):
    neutral = {"think": False, "context": None, "template": "", "format": "", "keep_alive": "5m"}
    post(client, "/api/generate", prompt="a", **neutral, options={"mirostat": 0, "typical_p": 1.0, "top_k": None})


def test_errors_have_ollamas_format(client: TestClient, scheduler: ScriptedScheduler):
    missing = client.post("/api/chat", json={"model": "other", "messages": [{"role": "user", "content": "a"}]})
    assert (missing.status_code, list(missing.json())) == (404, ["error"])
    for method, path in (("POST", "/api/pull"), ("POST", "/api/embed"), ("DELETE", "/api/delete")):
        assert client.request(method, path, json={"model": "tiny"}).status_code == 501
    scheduler.full = True
    full = client.post("/api/generate", json={"model": "tiny", "prompt": "a"})
    assert (full.status_code, full.headers["retry-after"]) == (429, "2")
    assert isinstance(full.json()["error"], str)


def test_programs_find_ollama_at_the_root(client: TestClient):
    assert client.get("/", headers={"accept": "*/*"}).text == "Ollama is running"
    assert client.head("/").status_code == 200
    assert client.get("/", headers={"accept": "text/html,*/*"}).text != "Ollama is running"


def test_models_are_described(client: TestClient):
    (model,) = client.get("/api/tags").json()["models"]
    assert (model["name"], model["model"], model["details"]["family"]) == ("tiny", "tiny", "gemma3")
    assert model["size"] > 44_256
    (process,) = client.get("/api/ps").json()["models"]
    assert process["context_length"] == 512
    shown = client.post("/api/show", json={"model": "tiny:latest"}).json()
    assert shown["model_info"]["gemma3.context_length"] == 512
    assert shown["model_info"]["general.parameter_count"] == 44_256
    assert shown["capabilities"] == ["completion", "tools", "insert"]
    assert ".Suffix" in shown["template"]
    assert client.get("/api/version").json()["version"]


def test_the_client_of_ollama(tiny: gemwright.Model, scheduler: ScriptedScheduler):
    ollama = pytest.importorskip("ollama")
    served = ServedModel("tiny", replace(tiny, tuned=True), scheduler)
    registry = ModelRegistry([ModelSource("tiny", lambda: served, (), served)])
    with run_server(create_app(registry, Settings())) as address, closing(ollama.Client(host=address)) as client:
        assert client.generate("tiny", "a").response == TEXT
        assert "".join(part.response for part in client.generate("tiny", "a", stream=True)) == TEXT
        messages = [{"role": "user", "content": "a"}]
        answer = client.chat("tiny", messages, options={"num_predict": 3})
        assert (answer.message.role, answer.done_reason, answer.eval_count) == ("assistant", "length", 3)
        parts = list(client.chat("tiny", messages, stream=True))
        assert "".join(part.message.content for part in parts) == TEXT
        assert parts[-1].done
        assert client.list().models[0].model == "tiny"
        assert client.show("tiny").modelinfo["general.architecture"] == "gemma3"
        assert client.ps().models[0].context_length == 512
        with pytest.raises(ollama.ResponseError) as refused:
            client.chat("other", messages)
        assert (refused.value.status_code, "other" in refused.value.error) == (404, True)
        image = base64.b64encode(b"no image").decode()
        with pytest.raises(ollama.ResponseError, match="image of 8 bytes is empty, damaged"):
            client.chat("tiny", [{"role": "user", "content": "a", "images": [image]}])
