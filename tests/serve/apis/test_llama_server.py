"""llama-server's API: requests as llama.vim, Continue and its own tests send them."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

import gemwright
from gemwright.serve.apis.llama_server.replies import select_fields
from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings
from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler

LLAMA_VIM = {
    "input_prefix": "def f():\n",
    "input_suffix": "\nend\n",
    "input_extra": [{"text": "x = the", "time": [10, 20], "filename": "a.py"}],
    "prompt": "    return ",
    "n_predict": 128,
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached", "none/x"],
}


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


def complete(client: TestClient, **fields: Any) -> Any:
    response = client.post("/completion", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def parts_of(client: TestClient, path: str = "/completion", **fields: Any) -> list[dict[str, Any]]:
    """Return the data of the events of a stream."""
    response = client.post(path, json={**fields, "stream": True})
    assert response.status_code == 200, response.text
    events = [event for event in response.text.split("\n\n") if event.startswith("data: {")]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(scheduler: ScriptedScheduler, index: int = -1) -> str:
    return scheduler.model.tokenizer.decode(scheduler.requests[index].prompt, keep_control=True)


def test_a_completion(client: TestClient, tiny: gemwright.Model, scheduler: ScriptedScheduler):
    body = complete(client, prompt="the cat", n_predict=64)
    ids = tiny.tokenizer.encode(TEXT)
    assert (body["content"], body["stop"], body["stop_type"], body["stopping_word"]) == (TEXT, True, "eos", "")
    assert (body["model"], body["index"], body["tokens"], body["truncated"]) == ("tiny", 0, [], False)
    assert body["prompt"] == "<bos>the cat"
    assert body["has_new_line"] is False
    assert body["timings"]["prompt_n"] == body["tokens_evaluated"] == len(scheduler.requests[0].prompt)
    assert body["timings"]["predicted_n"] == body["tokens_predicted"] == len(ids)
    assert body["generation_settings"]["n_predict"] == 64
    assert complete(client, prompt="the cat", return_tokens=True)["tokens"] == ids
    cut = complete(client, prompt="the cat", n_predict=2)
    assert (cut["stop_type"], cut["tokens_predicted"]) == ("limit", 2)


def test_the_rate_of_a_text_does_not_count_its_first_token(client: TestClient):
    alone, several = (complete(client, prompt="the cat", n_predict=count)["timings"] for count in (1, 3))
    assert (alone["predicted_per_second"], alone["predicted_per_token_ms"]) == (0, 0)
    assert several["predicted_per_token_ms"] == several["predicted_ms"] / 2


def test_a_stream_ends_with_all_but_the_text(client: TestClient):
    *parts, last = parts_of(client, prompt="the cat", timings_per_token=True)
    assert "".join(part["content"] for part in parts) == TEXT
    assert all(part["stop"] is False and part["tokens"] and part["timings"] for part in parts)
    assert (last["stop"], last["stop_type"], last["content"], last["tokens"]) == (True, "eos", "", [])
    assert last["generation_settings"]["seed"] >= 0
    assert "[DONE]" not in client.post("/completion", json={"prompt": "a", "stream": True}).text


def test_prompts_of_all_shapes(client: TestClient, tiny: gemwright.Model, scheduler: ScriptedScheduler):
    ids = tiny.encode("the cat")
    assert isinstance(complete(client, prompt=ids), dict)
    both = complete(client, prompt=[ids, "the cat", [*ids, " and", 300]])
    assert [body["index"] for body in both] == [0, 1, 2]
    assert isinstance(complete(client, prompt=["the", 300, " cat"]), dict)
    prompts = [list(request.prompt) for request in scheduler.requests]
    encode = tiny.tokenizer.encode
    assert prompts[:4] == [ids, ids, ids, [*ids, *encode(" and"), 300]]
    assert prompts[4] == [tiny.tokenizer.bos_id, *encode("the"), 300, *encode(" cat")]
    assert [body["index"] for body in complete(client, prompt="a", n_cmpl=2)] == [0, 1]
    assert scheduler.requests[-1].sampling.seed == scheduler.requests[-2].sampling.seed + 1


def test_sampling_is_applied(client: TestClient, tiny: gemwright.Model, scheduler: ScriptedScheduler):
    complete(client, prompt="a", temperature=0.5, top_k=7, min_p=0.1, repeat_penalty=1.2, seed=3, stop=["xyz"])
    request = scheduler.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0.5, 7, 0.1, 3)
    assert (sampling.repetition_penalty, request.stop_strings) == (1.2, ("xyz",))
    complete(client, prompt="a", samplers=["top_k"], top_k=7, top_p=0.5, repeat_penalty=1.2, temperature=0.5)
    sampling = scheduler.requests[-1].sampling
    assert (sampling.top_k, sampling.top_p, sampling.repetition_penalty, sampling.temperature) == (7, 1.0, 1.0, 1.0)
    complete(client, prompt="a", ignore_eos=True, n_predict=3, cache_prompt=False)
    assert (scheduler.requests[-1].stop_ids, len(scheduler.requests[-1].cache_salt)) == ((), 16)
    settings = complete(client, prompt="a", logit_bias=[[300, 2.5], ["th", False]])["generation_settings"]
    assert {"token": 300, "bias": 2.5} in settings["logit_bias"]
    (th,) = tiny.tokenizer.encode("th")
    assert scheduler.requests[-1].logit_bias == {300: 2.5, th: -100.0}
    complete(client, prompt="a", logit_bias={"300": -1})
    assert scheduler.requests[-1].logit_bias == {300: -1.0}


def test_nothing_is_generated_to_fill_the_cache(client: TestClient, scheduler: ScriptedScheduler):
    body = complete(client, prompt="the cat", n_predict=0)
    assert (body["content"], body["tokens_predicted"], body["stop_type"]) == ("", 0, "limit")
    assert scheduler.requests[-1].max_tokens == 0


def test_probabilities(client: TestClient):
    def check(entry: dict[str, Any]) -> None:
        assert entry.keys() == {"id", "token", "bytes", "logprob", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        assert all(top.keys() == {"id", "token", "bytes", "logprob"} for top in entry["top_logprobs"])

    entries = complete(client, prompt="a", n_probs=3)["completion_probabilities"]
    assert "".join(entry["token"] for entry in entries) == TEXT
    for entry in entries:
        check(entry)
    *parts, _ = parts_of(client, prompt="a", n_probs=3)
    assert [part["completion_probabilities"] for part in parts] == [[entry] for entry in entries]


def test_infill_as_llama_vim_sends_it(client: TestClient, scheduler: ScriptedScheduler):
    response = client.post("/infill", json=LLAMA_VIM)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.keys() == {"content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached"}
    assert (body["content"], body["truncated"]) == (TEXT, False)
    assert text_of(scheduler) == (
        "<bos>a.py\nx = the<|file_separator|><|fim_prefix|>def f():\n    return <|fim_suffix|>\nend\n<|fim_middle|>"
    )
    request = scheduler.requests[-1]
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (1.0, 40, 0.99)
    assert request.max_tokens == 128
    warm = client.post("/infill", json={**LLAMA_VIM, "n_predict": 0, "response_fields": [""]})
    assert (warm.status_code, warm.json(), scheduler.requests[-1].max_tokens) == (200, {}, 0)
    client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert scheduler.requests[-1].sampling.temperature == 0.0


def test_pieces_of_other_files_that_do_not_fit_are_left_out(client: TestClient, scheduler: ScriptedScheduler):
    scheduler.context = 64
    extra = [{"text": "the " * 80, "filename": "old"}, {"text": "cat", "filename": "new"}]
    body = client.post("/infill", json={"input_prefix": "a", "input_suffix": "b", "input_extra": extra, "n_predict": 8})
    assert body.json()["truncated"] is True
    assert text_of(scheduler).startswith("<bos>new\ncat<|file_separator|><|fim_prefix|>a")


@pytest.mark.parametrize("extra", [{}, {"filename": "ok"}, {"filename": 1, "text": "a"}, {"filename": "a", "text": 1}])
def test_wrong_pieces_of_other_files(client: TestClient, extra: dict[str, Any]):
    fields = {"input_prefix": "a", "input_suffix": "b", "input_extra": [extra]}
    assert client.post("/infill", json=fields).status_code == 400


def test_a_line_with_less_indentation_ends_the_middle(client: TestClient, scheduler: ScriptedScheduler):
    ids = scheduler.model.tokenizer.encode("the\n    cat\n  an")
    scheduler.script = lambda request: ids
    fields = {"input_prefix": "a", "input_suffix": "b"}
    body = client.post("/infill", json={**fields, "n_indent": 4}).json()
    assert (body["content"], body["stop_type"]) == ("the\n    cat", "limit")
    *parts, last = parts_of(client, "/infill", **fields, n_indent=4)
    assert "".join(part["content"] for part in parts) == "the\n    cat"
    assert last["stop_type"] == "limit"
    assert len(scheduler.cancelled) == 2


def test_fill_in_the_middle_as_continue_sends_it(client: TestClient, scheduler: ScriptedScheduler):
    fields = {
        "model": "tiny",
        "prompt": "the ",
        "suffix": " cat",
        "max_tokens": 64,
        "temperature": 0.01,
        "stop": ["xyz"],
    }
    for path in ("/fim/completions", "/v1/fim/completions"):
        chunks = parts_of(client, path, **fields)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXT
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[0]["object"] == "chat.completion.chunk"
    assert text_of(scheduler) == "<bos><|fim_prefix|>the <|fim_suffix|> cat<|fim_middle|>"
    body = client.post("/fim/completions", json=fields).json()
    assert body["choices"][0]["message"]["content"] == TEXT
    assert client.post("/fim/completions", json={**fields, "n": 2}).json()["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": 0}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 200}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"mirostat": 2}, "mirostat"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"dry_multiplier": 0.8}, "dry_multiplier"),
        ({"xtc_probability": 0.5}, "xtc_probability"),
        ({"top_n_sigma": 1.0}, "top_n_sigma"),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora"),
        ({"post_sampling_probs": True}, "post_sampling_probs"),
        ({"samplers": ["magic"]}, "samplers"),
        ({"logit_bias": [[1, True]]}, "logit_bias"),
        ({"n_predict": "many"}, "n_predict"),
        ({"n_probs": 100}, "n_probs"),
        ({"temperature": 1e9}, "temperature"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: TestClient, fields: dict[str, Any], name: str):
    response = client.post("/completion", json={"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert name in error["message"]


def test_neutral_values_are_not_refused(client: TestClient):
    neutral = {"mirostat": 0, "typical_p": 1.0, "dry_multiplier": 0.0, "xtc_probability": 0, "top_n_sigma": -1}
    complete(
        client, prompt="a", **neutral, lora=[], post_sampling_probs=False, samplers=["dry", "temperature"], n_keep=-1
    )


def test_a_prompt_longer_than_the_context_is_an_error(client: TestClient):
    error = client.post("/completion", json={"prompt": "the " * 600}).json()["error"]
    assert (error["code"], error["type"]) == (400, "exceed_context_size_error")
    assert error["n_prompt_tokens"] > error["n_ctx"] == 512


def test_ending_tokens_that_are_ignored_have_no_finite_bias(client: TestClient, tiny: gemwright.Model):
    settings = complete(client, prompt="a", ignore_eos=True)["generation_settings"]
    assert settings["logit_bias"] == [{"token": token, "bias": None} for token in tiny.stop_ids]
    assert complete(client, prompt="a")["generation_settings"]["logit_bias"] == []


def test_a_prompt_may_be_an_object(client: TestClient, scheduler: ScriptedScheduler):
    complete(client, prompt={"prompt_string": "the cat"})
    assert text_of(scheduler) == "<bos>the cat"
    assert len(complete(client, prompt=["the", {"prompt_string": "the cat", "multimodal_data": []}])) == 2
    for prompt, name in (({"prompt_string": "a", "multimodal_data": ["aGk="]}, "multimodal_data"), ({}, "prompt")):
        response = client.post("/completion", json={"prompt": prompt})
        assert (response.status_code, response.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_openai_s_endpoints_with_and_without_v1(client: TestClient, prefix: str):
    messages = [{"role": "user", "content": "the"}]
    reply = client.post(f"{prefix}/chat/completions", json={"messages": messages}).json()
    assert reply["choices"][0]["message"]["content"] == TEXT
    assert client.post(f"{prefix}/chat/completions/input_tokens", json={"messages": messages}).json()["input_tokens"]
    assert client.post(f"{prefix}/responses/input_tokens", json={"input": "the"}).json()["input_tokens"]
    assert client.get(f"{prefix}/models").json()["data"][0]["id"] == "tiny"
    assert client.get(f"{prefix}/models/tiny").json()["id"] == "tiny"
    assert client.get(f"{prefix}/health").json() == {"status": "ok"}
    assert client.post(f"{prefix}/embeddings", json={"input": "a"}).status_code == 501


def test_properties(client: TestClient):
    body = client.get("/props").json()
    assert body["default_generation_settings"]["n_ctx"] == 512
    assert (body["modalities"], body["bos_token"], body["eos_token"]) == (
        *({"vision": False, "audio": False}, "<bos>", "<eos>"),
    )
    assert "start_of_turn" in body["chat_template"]
    assert body["total_slots"] == 4
    assert body["default_generation_settings"]["params"]["seed"] == 2**32 - 1
    assert client.post("/props", json={}).status_code == 501


def test_slots(client: TestClient, scheduler: ScriptedScheduler):
    scheduler.running = 1
    slots = client.get("/slots").json()
    assert [slot["is_processing"] for slot in slots] == [True, False, False, False]
    assert client.post("/slots/0?action=save", json={}).status_code == 501


def test_grammars(client: TestClient, scheduler: ScriptedScheduler):
    complete(client, prompt="a", grammar='root ::= "a" | "b"')
    assert scheduler.requests[-1].grammar
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    complete(client, prompt="a", json_schema=schema)
    assert '"integer"' in scheduler.requests[-1].grammar
    for fields in ({"grammar": "root ::= ("}, {"json_schema": {"type": "nothing"}}):
        response = client.post("/completion", json={"prompt": "a", **fields})
        assert response.status_code == 400
        assert next(iter(fields)) in response.json()["error"]["message"]


def test_the_prompt_of_a_conversation(client: TestClient):
    messages = [{"role": "user", "content": "the"}]
    body = client.post("/apply-template", json={"messages": messages}).json()
    assert body == {"prompt": "<bos><start_of_turn>user\nthe<end_of_turn>\n<start_of_turn>model\n"}


def test_fields_are_selected():
    body = {"a": {"b": {"c": 1}}, "d": 2}
    assert select_fields(body, ["a/b", "a/b/c", "d", "d/e", "f"]) == {"a/b": {"c": 1}, "a/b/c": 1, "d": 2}
    assert select_fields(body, []) == body
