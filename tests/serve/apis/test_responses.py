"""OpenAI's responses, by its own Python client and by requests as it sends them."""

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.responses.fields import read_response, to_chat
from gemwright.serve.apis.responses.response import ResponseWriter
from gemwright.serve.app import create_app
from gemwright.serve.batching.generation import Generation
from gemwright.serve.models import ModelRegistry, ServedModel
from gemwright.serve.settings import Settings
from tests.serve.apis.test_anthropic import CALL, events_of, say
from tests.serve.conftest import TEXT
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import run_server

TOOL = {"type": "function", "name": "weather", "description": "Tell it.", "parameters": {"type": "object"}}


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


def test_a_response(client: TestClient, scheduler: ScriptedScheduler):
    fields = {"input": "hello", "instructions": "be brief", "temperature": 0.5, "top_p": 0.8, "metadata": {"a": "b"}}
    body = client.post("/v1/responses", json=fields).json()
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"], body["error"]) == ("response", "completed", "tiny", None)
    (item,) = body["output"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
    request = scheduler.requests[0]
    count = len(scheduler.model.tokenizer.encode(TEXT))
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (len(request.prompt), count)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.8)
    assert (body["metadata"], body["store"], body["temperature"]) == ({"a": "b"}, False, 0.5)
    assert "user\nbe brief\n\nhello<end_of_turn>" in scheduler.model.tokenizer.decode(request.prompt, keep_control=True)


def test_a_response_that_is_cut_is_incomplete(client: TestClient):
    body = client.post("/v1/responses", json={"input": "a", "max_output_tokens": 2}).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"


def test_the_events_of_a_stream(client: TestClient):
    events = events_of(client.post("/v1/responses", json={"input": "a", "stream": True}).text)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    assert [name for name, _ in events if name != "response.output_text.delta"] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.completed",
    ]
    deltas = [data["delta"] for name, data in events if name == "response.output_text.delta"]
    last = events[-1][1]["response"]
    assert "".join(deltas) == TEXT == last["output"][0]["content"][0]["text"]
    assert events[0][1]["response"]["output"] == []
    assert {data["item_id"] for _, data in events if "item_id" in data} == {last["output"][0]["id"]}


def test_items_become_messages_of_chat():
    given = [
        {"role": "developer", "content": "brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "d", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ]
    chat = to_chat(read_response({"input": given, "tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}))
    calls = [
        {"id": name, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for name in ("c", "d")
    ]
    assert chat["messages"] == [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}], "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    function = {"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}


def test_formats_become_those_of_chat():
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    chat = to_chat(read_response({"input": "a", "text": {"format": schema}}))
    own = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": own}
    assert "response_format" not in to_chat(read_response({"input": "a", "text": {"format": {"type": "text"}}}))


def test_calls_of_functions_are_items(registry: ModelRegistry):
    served: ServedModel = registry.models[0]
    writer = ResponseWriter(read_response({"input": "a", "tools": [TOOL]}), served)
    generation = Generation.__new__(Generation)
    generation.prompt_tokens, generation.cached_tokens = 9, 4
    result = Result(generation, tokens=[1], finish_reason="stop")
    events = [
        *writer.start(generation),
        *writer.text("go"),
        *writer.call("c", "weather"),
        *writer.arguments("{"),
        *writer.arguments("}"),
        *writer.finish(result, has_calls=True),
    ]
    text, call = writer.response["output"]
    assert (text["type"], text["status"]) == ("message", "completed")
    assert (call["type"], call["call_id"], call["name"], call["arguments"]) == ("function_call", "c", "weather", "{}")
    assert [name for name, data in events if data.get("output_index") == 1] == [
        *("response.output_item.added", *["response.function_call_arguments.delta"] * 2),
        *("response.function_call_arguments.done", "response.output_item.done"),
    ]
    added = next(data for name, data in events if data.get("output_index") == 1)
    assert (added["item"]["arguments"], added["item"]["status"]) == ("", "in_progress")


def test_a_model_calls_a_function(client: TestClient, scheduler: ScriptedScheduler):
    say(scheduler, CALL)
    fields = {"input": "a", "tools": [TOOL], "tool_choice": "required"}
    (call,) = client.post("/v1/responses", json=fields).json()["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "weather", '{"place":"Paris"}')
    events = events_of(client.post("/v1/responses", json={**fields, "stream": True}).text)
    deltas = [data["delta"] for name, data in events if name == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    say(scheduler, TEXT)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    items = [{"role": "user", "content": "a"}, call, output]
    body = client.post("/v1/responses", json={"input": items, "tools": [TOOL]}).json()
    assert body["output"][0]["content"][0]["text"] == TEXT
    assert "sunny" in scheduler.model.tokenizer.decode(scheduler.requests[-1].prompt)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({}, "input"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "conversation": "c"}, "conversation"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "store": True}, "store"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "a", "truncation": "auto"}, "truncation"),
        ({"input": "a", "include": ["file_search_call.results"]}, "include"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: TestClient, fields: dict[str, Any], name: str):
    response = client.post("/v1/responses", json=fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert name in error["message"]
    assert error["type"] == "invalid_request_error"


def test_nothing_is_stored(client: TestClient):
    assert client.get("/v1/responses/resp_1").status_code == 404
    neutral = {"store": False, "background": False, "truncation": "disabled", "reasoning": {"effort": "low"}}
    assert client.post("/v1/responses", json={"input": "a", "previous_response_id": None, **neutral}).status_code == 200


def test_the_client_of_openai(registry: ModelRegistry, scheduler: ScriptedScheduler):
    with (
        run_server(create_app(registry, Settings())) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        response = client.responses.create(model="tiny", input=[{"role": "user", "content": "a"}])
        assert (response.output_text, response.status) == (TEXT, "completed")
        assert response.usage is not None
        assert response.usage.output_tokens == len(scheduler.model.tokenizer.encode(TEXT))
        events = list(client.responses.create(model="tiny", input="a", stream=True))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == TEXT
        include: Any = ["message.output_text.logprobs"]
        logged = client.responses.create(model="tiny", input="a", include=include, top_logprobs=2)
        entries = logged.output[0].content[0].logprobs
        assert "".join(entry.token for entry in entries) == TEXT
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(model="tiny", input="a", previous_response_id="resp_1")
        scheduler.full = True
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="tiny", input="a", stream=True)
