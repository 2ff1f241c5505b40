"""Anthropic's API, by its own Python client and by requests as it sends them."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemwright.serve.apis.anthropic.fields import read_messages, to_chat
from gemwright.serve.apis.anthropic.message import MessageWriter
from gemwright.serve.apis.collect import Result
from gemwright.serve.app import create_app
from gemwright.serve.batching.generation import Generation
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings
from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import run_server

HELLO = {"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"name": "weather", "description": "Tell it.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings(api_keys=("key",))), headers={"x-api-key": "key"})


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the data of server-sent events."""
    events = [event.split("\n") for event in text.strip().split("\n\n") if not event.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert (body["type"], body.keys()) == ("error", {"type", "error"})
    return body["error"]


def test_a_message(client: TestClient, scheduler: ScriptedScheduler):
    body = client.post("/v1/messages", json=HELLO).json()
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "tiny")
    assert body["content"] == [{"type": "text", "text": TEXT}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    count = len(scheduler.model.tokenizer.encode(TEXT))
    assert body["usage"]["input_tokens"] == len(scheduler.requests[0].prompt)
    assert (body["usage"]["output_tokens"], body["usage"]["cache_read_input_tokens"]) == (count, 0)


def test_fields_are_applied(client: TestClient, scheduler: ScriptedScheduler):
    fields = {"temperature": 0.5, "top_p": 0.8, "top_k": 7, "stop_sequences": ["xyz"], "system": "be brief"}
    fields |= {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
    fields |= {"max_tokens": 3, "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    body = client.post("/v1/messages", json={**HELLO, **fields}).json()
    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("max_tokens", 3)
    request = scheduler.requests[0]
    assert (request.max_tokens, request.stop_strings) == (3, ("xyz",))
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.8, 7)
    assert "user\nbe brief\n\nhello<end_of_turn>" in scheduler.model.tokenizer.decode(request.prompt, keep_control=True)


def test_the_events_of_a_stream(client: TestClient):
    response = client.post("/v1/messages", json={**HELLO, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "content_block_delta"]
    assert names == [
        *("message_start", "content_block_start", "ping", "content_block_stop", "message_delta", "message_stop")
    ]
    deltas = [data for name, data in events if name == "content_block_delta"]
    assert "".join(data["delta"]["text"] for data in deltas) == TEXT
    assert all(data["delta"]["type"] == "text_delta" and data["index"] == 0 for data in deltas)
    start, end = events[0][1]["message"], events[-2][1]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert start["usage"]["input_tokens"] > 0
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == len(deltas)


def test_a_last_message_of_the_assistant_is_continued(client: TestClient, scheduler: ScriptedScheduler):
    messages = [*HELLO["messages"], {"role": "assistant", "content": [{"type": "text", "text": "the an"}]}]
    assert client.post("/v1/messages", json={**HELLO, "messages": messages}).status_code == 200
    prompt = scheduler.model.tokenizer.decode(scheduler.requests[0].prompt, keep_control=True)
    assert prompt.endswith("<start_of_turn>model\nthe an")


def test_tokens_are_counted(client: TestClient, scheduler: ScriptedScheduler):
    fields = {"model": "tiny", "messages": HELLO["messages"]}
    body = client.post("/v1/messages/count_tokens", json=fields).json()
    client.post("/v1/messages", json=HELLO)
    assert body == {"input_tokens": len(scheduler.requests[0].prompt)}


def test_blocks_become_messages_of_chat():
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]}
    failed = {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "none"}
    text = {"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [{"type": "image", "source": image}, text]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, text, call]},
        {"role": "user", "content": [result, failed, text]},
    ]
    fields = {**HELLO, "system": [text, text], "messages": messages, "tools": [TOOL]}
    chat = to_chat(read_messages({**fields, "tool_choice": {"type": "any"}}))
    part = {"type": "text", "text": "go"}
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    function = {"name": "weather", "arguments": '{"place":"Paris"}'}
    assert chat["messages"] == [
        {"role": "system", "content": "go\ngo"},
        {"role": "user", "content": [url, part]},
        {
            "role": "assistant",
            "content": [part],
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: none"},
        {"role": "user", "content": [part]},
    ]
    described = {"name": "weather", "description": "Tell it.", "parameters": TOOL["input_schema"]}
    assert (chat["tools"], chat["tool_choice"]) == ([{"type": "function", "function": described}], "required")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ],
)
def test_tool_choices(choice: dict[str, Any], expected: dict[str, Any]):
    chat = to_chat(read_messages({**HELLO, "tools": [TOOL], "tool_choice": choice}))
    assert {name: chat[name] for name in chat.keys() & {"tool_choice", "parallel_tool_calls"}} == expected


def test_calls_of_tools_are_blocks():
    writer = MessageWriter("tiny")
    generation = Generation.__new__(Generation)
    generation.prompt_tokens, generation.cached_tokens = 9, 4
    events = [
        *writer.start(generation),
        *writer.text("go"),
        *writer.call("t1", "weather"),
        *writer.arguments('{"place":'),
        *writer.arguments('"Paris"}'),
        *writer.call("t2", "time"),
        *writer.finish(Result(generation, tokens=[1, 2], finish_reason="stop"), has_calls=True),
    ]
    indices = [(name, data["index"]) for name, data in events if "index" in data]
    assert indices == [
        *[("content_block_start", 0), ("content_block_delta", 0), ("content_block_stop", 0)],
        *[("content_block_start", 1), ("content_block_delta", 1), ("content_block_delta", 1)],
        *[("content_block_stop", 1), ("content_block_start", 2), ("content_block_stop", 2)],
    ]
    assert writer.message["content"] == [
        {"type": "text", "text": "go"},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Paris"}},
        {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
    ]
    assert writer.message["stop_reason"] == "tool_use"
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 2}
    assert writer.message["usage"] == usage


CALL = '{"name":"weather","arguments":{"place":"Paris"}}'


def say(scheduler: ScriptedScheduler, text: str) -> None:
    """Let the model write a text."""
    ids = [*scheduler.model.tokenizer.encode(text), scheduler.model.tokenizer.eos_id]
    scheduler.script = lambda request: ids


def test_a_model_calls_a_tool(client: TestClient, scheduler: ScriptedScheduler):
    say(scheduler, CALL)
    fields = {**HELLO, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "any"}}
    body = client.post("/v1/messages", json=fields).json()
    (block,) = body["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"place": "Paris"})
    assert body["stop_reason"] == "tool_use"
    assert scheduler.requests[0].grammar
    events = events_of(client.post("/v1/messages", json={**fields, "stream": True}).text)
    start = next(data for name, data in events if name == "content_block_start")
    assert (start["index"], start["content_block"]["type"], start["content_block"]["input"]) == (0, "tool_use", {})
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"input_json_delta"}
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == {"place": "Paris"}
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"}
    turns = [{"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    say(scheduler, TEXT)
    answer = client.post("/v1/messages", json={**fields, "messages": [*HELLO["messages"], *turns], "tool_choice": None})
    assert answer.json()["content"] == [{"type": "text", "text": TEXT}]
    assert "sunny" in scheduler.model.tokenizer.decode(scheduler.requests[-1].prompt)


def _block(**block: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [block]}]}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role"),
        ({"temperature": 2}, "temperature"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "f"}]}, "input_schema"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"context_management": 3}, "context_management"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        (_block(type="image", source={"type": "file", "file_id": "f"}), "file"),
        (_block(type="image", source={"type": "url", "url": "http://127.0.0.1/x.png"}), "image"),
        (_block(type="document", source={"type": "base64", "media_type": "application/pdf", "data": ""}), "document"),
        (_block(type="search_result", content=[]), "search_result"),
        (_block(type="tool_result"), "tool_use_id"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: TestClient, fields: dict[str, Any], name: str):
    error = error_of(client.post("/v1/messages", json={**HELLO, **fields}), 400)
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]


def test_errors_have_anthropics_format(client: TestClient, scheduler: ScriptedScheduler):
    assert error_of(client.post("/v1/messages", json={**HELLO, "model": "x"}), 404)["type"] == "not_found_error"
    wrong = client.post("/v1/messages", json=HELLO, headers={"x-api-key": "wrong"})
    assert error_of(wrong, 401)["type"] == "authentication_error"
    assert error_of(client.post("/v1/messages", content=b"{"), 400)["type"] == "invalid_request_error"
    scheduler.full = True
    for stream in (False, True):
        full = client.post("/v1/messages", json={**HELLO, "stream": stream})
        assert error_of(full, 429)["type"] == "rate_limit_error"
        assert full.headers["retry-after"] == "2"


@pytest.mark.peer
def test_the_client_of_anthropic(registry: ModelRegistry):
    anthropic = pytest.importorskip("anthropic")
    with (
        run_server(create_app(registry, Settings(api_keys=("key",)))) as address,
        anthropic.Anthropic(base_url=address, api_key="key", max_retries=0) as client,
    ):
        message = client.messages.create(**HELLO)
        assert (message.content[0].text, message.stop_reason) == (TEXT, "end_turn")
        with client.messages.stream(**HELLO) as stream:
            assert "".join(stream.text_stream) == TEXT
            final = stream.get_final_message()
        assert (final.content[0].text, final.usage.output_tokens) == (TEXT, message.usage.output_tokens)
        fields = {name: HELLO[name] for name in ("model", "messages")}
        assert client.messages.count_tokens(**fields).input_tokens == message.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            client.messages.create(**{**HELLO, "model": "other"})
        with pytest.raises(anthropic.AuthenticationError), client.with_options(api_key="no") as other:
            other.messages.create(**HELLO)
