"""The server with a shield: refused requests, and texts that end where they are refused, in the form of each API."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

import gemwright
from gemwright.serve.app import create_app
from gemwright.serve.batching.scheduler import Limits, Scheduler
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.screening import ServedShield
from gemwright.serve.settings import Settings
from gemwright.shield.classifier import Shield
from gemwright.shield.policy import Policy
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import error_of, stream
from tests.shield.conftest import POLICIES

pytestmark = pytest.mark.usefixtures("quick_compilation")
ASKED = "the thing"
SENTENCES = ["The cat and the thing. ", "And on. ", "In there. ", "What. "]
POLICY = Policy("secret", {"output": "no a in it"})
MESSAGES = [{"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def kept(model: gemwright.Model) -> tuple[int, float]:
    """The number of sentences before one with a higher score than all before it, and a threshold between them."""
    score = Shield(model, (POLICY,)).score
    scores = [score(ASKED, "".join(SENTENCES[: count + 1]))["secret"] for count in range(len(SENTENCES))]
    first = next(count for count in range(1, len(SENTENCES)) if scores[count] > max(scores[:count]))
    return first, (scores[first] + max(scores[:first])) / 2


def make_client(model: gemwright.Model, *policies: Policy) -> tuple[TestClient, ScriptedScheduler]:
    tuned = replace(model, tuned=True)
    ids = [*model.tokenizer.encode("".join(SENTENCES)), model.tokenizer.eos_id]
    scheduler = ScriptedScheduler(tuned, lambda request: ids)
    served = ServedModel("tiny", tuned, scheduler, shield=ServedShield(Shield(model, policies)))
    app = create_app(ModelRegistry([ModelSource("tiny", lambda: served, (), served)]), Settings())
    return TestClient(app, raise_server_exceptions=False), scheduler


@pytest.fixture
def client(model: gemwright.Model, kept: tuple[int, float]) -> TestClient:
    return make_client(model, replace(POLICY, threshold=kept[1]))[0]


@pytest.fixture
def text(kept: tuple[int, float]) -> str:
    return "".join(SENTENCES[: kept[0]])


def refusals(client: TestClient, mode: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("gemwright_shield_refusals")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'mode="{mode}"' in line)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": [*MESSAGES, {"role": "assistant", "content": "In"}], "stream": True}),
        ("/v1/completions", {"prompt": ASKED}),
        ("/v1/completions", {"prompt": [2, 400, 401]}),
        ("/v1/responses", {"input": ASKED}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}),
        ("/api/chat", {"model": "tiny", "messages": MESSAGES}),
        ("/api/generate", {"model": "tiny", "prompt": ASKED, "raw": True}),
        ("/completion", {"prompt": ASKED}),
    ],
)
def test_refused_request(model: gemwright.Model, path: str, body: dict, caplog: pytest.LogCaptureFixture):
    client, scheduler = make_client(model, Policy("secret", {"input": "no secret"}, 0.0))
    before = refusals(client, "input")
    with caplog.at_level(logging.INFO):
        response = client.post(path, json=body)
    assert response.status_code == 400
    assert "refused by the policy 'secret' (score 0." in response.text
    assert scheduler.requests == []
    assert refusals(client, "input") == before + 1
    assert ASKED not in response.text + caplog.text
    assert "secret" in caplog.text


def test_refused_request_has_openais_code(model: gemwright.Model):
    client, _ = make_client(model, Policy("secret", {"input": "no secret"}, 0.0))
    error = error_of(client.post("/v1/chat/completions", json={"messages": MESSAGES}), 400)
    assert (error["code"], error["type"]) == ("content_filter", "invalid_request_error")


def test_every_message_but_earlier_answers_is_judged(model: gemwright.Model):
    shield = Shield(model, (Policy("secret", {"input": "no secret"}),))
    texts = ["the rule", "in there", "and the thing"]
    highest = max(texts, key=lambda text: shield.score(text)["secret"])
    threshold = shield.score(highest)["secret"]
    client, scheduler = make_client(model, Policy("secret", {"input": "no secret"}, threshold))
    roles = ("system", "user", "user")
    talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    talk.insert(2, {"role": "assistant", "content": "yes"})
    assert client.post("/v1/chat/completions", json={"messages": talk}).status_code == 400
    allowed = [message for message in talk if message["content"] != highest]
    assert client.post("/v1/chat/completions", json={"messages": allowed}).status_code == 200
    assert [request.texts for request in scheduler.requests] == [tuple(text for text in texts if text != highest)]


def test_openai_chat(client: TestClient, text: str, caplog: pytest.LogCaptureFixture):
    before = refusals(client, "output")
    choice = client.post("/v1/chat/completions", json={"messages": MESSAGES}).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "content_filter")
    choices = [
        event["choices"][0] for event in stream(client, "/v1/chat/completions", {"messages": MESSAGES, "stream": True})
    ]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == text
    assert [choice["finish_reason"] for choice in choices][-1] == "content_filter"
    assert refusals(client, "output") == before + 2
    assert not any(sentence.strip() in caplog.text for sentence in SENTENCES)


def test_each_of_several_texts(client: TestClient, text: str):
    choices = client.post("/v1/completions", json={"prompt": [ASKED] * 2, "n": 2, "max_tokens": 500}).json()["choices"]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [(text, "content_filter")] * 4


def test_other_apis(client: TestClient, text: str):
    response = client.post("/v1/responses", json={"input": ASKED}).json()
    assert response["output"][0]["content"][0]["text"] == text
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    message = client.post("/v1/messages", json={"messages": MESSAGES, "max_tokens": 500}).json()
    assert (message["content"][0]["text"], message["stop_reason"]) == (text, "refusal")
    lines = client.post("/api/chat", json={"model": "tiny", "messages": MESSAGES}).text.splitlines()
    parts = [json.loads(line) for line in lines]
    assert "".join(part["message"]["content"] for part in parts) == text
    assert parts[-1]["done_reason"] == "content_filter"
    found = client.post("/completion", json={"prompt": ASKED}).json()
    assert (found["content"], found["stop_type"]) == (text, "limit")


def test_nothing_is_lost_without_a_refusal(model: gemwright.Model):
    client, _ = make_client(model, *(replace(policy, threshold=1.0) for policy in (*POLICIES, POLICY)))
    body = {"prompt": ASKED, "logprobs": 1, "return_token_ids": True, "max_tokens": 500}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("".join(SENTENCES), "stop")
    assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"])


@pytest.mark.slow
def test_requests_at_once(model: gemwright.Model, kept: tuple[int, float], text: str):
    """Real generations and judgements of several requests together: each text is judged by its own request."""
    limits = Limits(context=512, slots=4, cache_bytes=0)
    scheduler = Scheduler(model, limits)
    scheduler.start()
    policies = [Policy("input", {"input": "no thing"}), replace(POLICY, name="output")]
    shield = Shield(model, tuple(policies))
    prompts = [f"{ASKED} {word}" for word in ("and", "in", "on", "the", "then", "he")]
    scores = {prompt: shield.score(prompt)["input"] for prompt in prompts}
    threshold = sorted(scores.values())[3]
    served = ServedModel("tiny", model, scheduler)  # type: ignore[arg-type]
    free = post_all(served, prompts)
    screened = replace(served, shield=ServedShield(Shield(model, (Policy("input", {"input": "no thing"}, threshold),))))
    found = post_all(screened, prompts)
    scheduler.stop()
    for prompt, (status, body), (_, expected) in zip(prompts, found, free, strict=True):
        assert status == (400 if scores[prompt] >= threshold else 200)
        assert status == 400 or body == expected


def post_all(served: ServedModel, prompts: list[str]) -> list[tuple[int, str]]:
    """Return the status and the text of a request for each prompt, all made at the same time."""
    import httpx

    app = create_app(ModelRegistry([ModelSource("tiny", lambda: served, (), served)]), Settings())

    async def run() -> list[tuple[int, str]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"prompt": prompt, "max_tokens": 6, "temperature": 0} for prompt in prompts]
            replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
        return [(each.status_code, each.json().get("choices", [{}])[0].get("text", "")) for each in replies]

    return asyncio.run(run())
