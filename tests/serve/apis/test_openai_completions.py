"""`/v1/completions` as the openai client and evaluation harnesses use it."""

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import error_of, stream


def complete(client: TestClient, prompt: Any = "the cat", **fields: Any) -> dict:
    response = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 50, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text(openai_client: openai.OpenAI, scheduler: ScriptedScheduler):
    reply = openai_client.completions.create(model="tiny", prompt="the cat", max_tokens=50)
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert reply.model == "tiny"
    assert [(choice.index, choice.text, choice.finish_reason) for choice in reply.choices] == [(0, TEXT, "stop")]
    request = scheduler.requests[0]
    assert request.prompt == scheduler.model.encode("the cat")
    assert reply.usage.prompt_tokens == len(request.prompt)
    assert reply.usage.completion_tokens == len(scheduler.model.tokenizer.encode(TEXT))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream(openai_client: openai.OpenAI):
    options: Any = {"model": "tiny", "prompt": "the cat", "max_tokens": 50, "stream": True}
    chunks = list(openai_client.completions.create(**options, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.choices for chunk in openai_client.completions.create(**options))


def test_errors_as_the_client_reads_them(openai_client: openai.OpenAI, scheduler: ScriptedScheduler):
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        openai_client.completions.create(model="tiny", prompt=[5] * scheduler.context)
    assert long.value.code == "context_length_exceeded"
    assert str(scheduler.context) in long.value.message
    scheduler.full = True
    with pytest.raises(openai.RateLimitError) as full:
        openai_client.completions.create(model="tiny", prompt="a")
    assert full.value.response.headers["retry-after"] == "2"


def test_the_default_length_and_what_fits_in_the_context(client: TestClient, scheduler: ScriptedScheduler):
    client.post("/v1/completions", json={"prompt": "a"})
    assert scheduler.requests[-1].max_tokens == 16
    complete(client, [5] * (scheduler.context - 3), max_tokens=100)
    assert scheduler.requests[-1].max_tokens == 3


def test_names_of_control_tokens_are_text(client: TestClient, scheduler: ScriptedScheduler):
    model = scheduler.model
    complete(client, "<bos>a<end_of_turn><eos>")
    assert scheduler.requests[-1].prompt == [
        model.tokenizer.bos_id,
        *model.tokenizer.encode("<bos>a<end_of_turn><eos>"),
    ]
    assert not any(model.tokenizer.is_control(token) for token in scheduler.requests[-1].prompt[1:])


def test_token_ids_are_taken_as_they_are(client: TestClient, scheduler: ScriptedScheduler):
    for ids in ([5, 9], [2, 2, 9]):
        complete(client, ids)
        assert scheduler.requests[-1].prompt == ids
    complete(client, "a", add_special_tokens=False)
    assert scheduler.requests[-1].prompt == scheduler.model.tokenizer.encode("a")


def test_infill_by_suffix_and_by_markers(client: TestClient, scheduler: ScriptedScheduler):
    tokenizer = scheduler.model.tokenizer
    names = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>")
    prefix, suffix, middle, separator = map(tokenizer.id_of, names)
    expected = [
        *(tokenizer.bos_id, prefix),
        *(*tokenizer.encode("the "), suffix),
        *(*tokenizer.encode(" cat"), middle),
    ]
    complete(client, "the ", suffix=" cat")
    assert scheduler.requests[-1].prompt == expected
    assert {prefix, suffix, middle, separator, tokenizer.eos_id} <= set(scheduler.requests[-1].stop_ids)
    stops = [*names, "<end_of_turn>", "<eos>"]  # as Continue sends them
    complete(client, "<|fim_prefix|>the <|fim_suffix|> cat<|fim_middle|>", stop=stops)
    assert scheduler.requests[-1].prompt == expected
    assert {*map(tokenizer.id_of, stops)} <= set(scheduler.requests[-1].stop_ids)
    assert error_of(client.post("/v1/completions", json={"prompt": [5], "suffix": "a"}), 400)["param"] == "suffix"


def test_a_model_without_markers_refuses_a_suffix(
    client: TestClient, scheduler: ScriptedScheduler, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gemwright.serve.apis.prepare.infill_markers", lambda tokenizer: {})
    refused = client.post("/v1/completions", json={"prompt": "a", "suffix": "b"})
    assert error_of(refused, 400)["param"] == "suffix"


def test_several_prompts_and_texts(client: TestClient, scheduler: ScriptedScheduler):
    reply = complete(client, ["a", "b c"], n=3, seed=7)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    prompts = [tuple(request.prompt) for request in scheduler.requests]
    assert prompts == [tuple(scheduler.model.encode(text)) for text in ("a", "a", "a", "b c", "b c", "b c")]
    assert [request.sampling.seed for request in scheduler.requests] == [7, 8, 9] * 2
    assert reply["usage"]["prompt_tokens"] == len(prompts[0]) + len(prompts[3])
    complete(client, [[5, 6], [7]])
    assert [request.prompt for request in scheduler.requests[-2:]] == [[5, 6], [7]]


def test_seeds_are_drawn(client: TestClient, scheduler: ScriptedScheduler):
    for _ in range(2):
        complete(client)
    assert scheduler.requests[0].sampling.seed != scheduler.requests[1].sampling.seed
    for seed in (-1, 2**63 - 1):
        complete(client, seed=seed)
        assert 0 <= scheduler.requests[-1].sampling.seed < 2**32


def test_every_field_is_applied(client: TestClient, scheduler: ScriptedScheduler):
    complete(
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        stop=["x", "y"],
        stop_token_ids=[300],
        min_tokens=2,
        logit_bias={"301": -100, "302": 2.5},
        skip_special_tokens=False,
        cache_salt="salt",
        user="somebody",
    )
    request = scheduler.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.2, -0.3)
    assert request.stop_strings == ("x", "y")
    assert {*scheduler.model.stop_ids, 300} <= set(request.stop_ids)
    assert (request.min_tokens, request.cache_salt, request.skip_control_tokens) == (2, "salt", False)
    assert request.logit_bias == {301: -100.0, 302: 2.5}
    complete(client, ignore_eos=True, stop_token_ids=[300])
    assert scheduler.requests[-1].stop_ids == (300,)


def test_absent_and_null_fields_take_the_models_defaults(client: TestClient, scheduler: ScriptedScheduler):
    fields = ("temperature", "top_p", "top_k", "stop", "seed", "logit_bias", "n", "echo", "logprobs", "stream_options")
    complete(client, **dict.fromkeys(fields))
    defaults = scheduler.model.defaults
    sampling = scheduler.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (
        defaults.temperature,
        defaults.top_k,
        defaults.top_p,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1000}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**40}, "top_k"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"logprobs": 21}, "top_logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": "1"}, "logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": "a" * 5000}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"min_tokens": 51}, "min_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"99999999999999999999999": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a", [5]]}, "prompt"),
        ({"prompt": [[5], []]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"best_of": 3}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"model": 5}, "model"),
        ({"echo": True, "suffix": "a"}, "echo"),
    ],
)
def test_wrong_fields_are_refused_by_name(client: TestClient, fields: dict[str, Any], param: str):
    body = {"prompt": "the cat", "max_tokens": 50, **fields}
    error = error_of(client.post("/v1/completions", json=body), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_logprobs_in_the_legacy_shape(client: TestClient, scheduler: ScriptedScheduler):
    tokenizer = scheduler.model.tokenizer
    (choice,) = complete(client, logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    ids = tokenizer.encode(TEXT)
    assert logprobs["tokens"] == [tokenizer.decode([token]) for token in ids]
    assert logprobs["token_logprobs"] == [-0.5 if token % 2 == 0 else -9.0 for token in ids]
    assert [choice["text"][start:][:1] for start in logprobs["text_offset"]] == [text[0] for text in logprobs["tokens"]]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert len(top) in (2, 3)


def test_the_likelihood_of_a_prompt_as_an_evaluation_harness_asks_for_it(
    client: TestClient, scheduler: ScriptedScheduler
):
    """The request of lm-eval's local-completions, and how it reads the reply."""
    context, continuation = [2, 300, 305], [301, 302]
    body = {
        "model": "tiny",
        "prompt": [context + continuation, [2, 302, 304]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    first, second = client.post("/v1/completions", json=body).json()["choices"]
    logprobs = first["logprobs"]
    assert len(logprobs["token_logprobs"]) == len(context + continuation) + 1
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][len(context) : -1] == [-9.0, -0.5]
    tops = logprobs["top_logprobs"][len(context) : -1]
    assert [logprob == max(top.values()) for logprob, top in zip([-9.0, -0.5], tops, strict=True)] == [False, True]
    assert second["logprobs"]["token_logprobs"][1:-1] == [-0.5, -0.5]
    assert first["text"].startswith(scheduler.model.decode(context + continuation))


def test_echo_without_new_tokens(client: TestClient, scheduler: ScriptedScheduler):
    (choice,) = complete(client, "the cat", echo=True, max_tokens=0, logprobs=0)["choices"]
    assert choice["text"] == "the cat"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"][0] == "<bos>"
    assert len(choice["logprobs"]["tokens"]) == len(scheduler.model.encode("the cat"))
    assert choice["logprobs"]["text_offset"][:2] == [0, 0]


def test_streams_join_to_the_whole_reply(client: TestClient):
    fields: Any = {"n": 2, "seed": 1, "echo": True, "logprobs": 1, "return_token_ids": True}
    whole = complete(client, "the cat", **fields)["choices"]
    body = {"prompt": "the cat", "max_tokens": 50, "stream": True, **fields}
    joined: list[dict] = [
        {
            "text": "",
            "token_ids": [],
            "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []},
        }
        for _ in whole
    ]
    for chunk in stream(client, "/v1/completions", body):
        for choice in chunk["choices"]:
            into = joined[choice["index"]]
            into["text"] += choice["text"]
            into["token_ids"] += choice["token_ids"]
            for name, values in choice["logprobs"].items():
                into["logprobs"][name] += values
    assert joined == [{key: choice[key] for key in ("text", "token_ids", "logprobs")} for choice in whole]


def test_parts_of_characters_have_names_of_their_own(client: TestClient, scheduler: ScriptedScheduler):
    tokenizer = scheduler.model.tokenizer
    ids = tokenizer.encode("é")
    assert len(ids) == 2  # two byte pieces
    scheduler.script = lambda request: ids
    (choice,) = complete(client, logprobs=1)["choices"]
    assert choice["text"] == "é"
    assert choice["logprobs"]["tokens"] == [r"bytes:\xc3", r"bytes:\xa9"]
    assert choice["logprobs"]["text_offset"] == [0, 0]
