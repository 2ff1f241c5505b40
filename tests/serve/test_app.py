"""The application apart from its APIs: keys, origins, limits, errors and readiness."""

import contextlib
import json
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from starlette.testclient import TestClient

from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import error_of, run_server

COMPLETION = {"prompt": "the cat", "max_tokens": 3}


def test_unknown_paths_and_methods(client: TestClient):
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.post("/nothing", json={}), 404)["type"] == "not_found_error"
    refused = client.get("/v1/completions")
    assert error_of(refused, 405)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "POST"
    assert error_of(client.post("/v1/models", json={}), 405)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"3",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_bodies_that_are_no_json_object_are_refused(client: TestClient, path: str, body: bytes):
    assert error_of(client.post(path, content=body), 400)["type"] == "invalid_request_error"


def test_a_long_body_is_refused(registry: ModelRegistry):
    client = TestClient(create_app(registry, Settings(max_body=100)))
    body = json.dumps({"prompt": "a" * 200})
    assert error_of(client.post("/v1/completions", content=body), 413)["code"] == "request_too_large"
    unknown_length = (part.encode() for part in body)
    assert error_of(client.post("/v1/completions", content=unknown_length), 413)
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_a_request_needs_one_of_the_keys(registry: ModelRegistry):
    client = TestClient(create_app(registry, Settings(api_keys=("first", "zweiter Schlüssel"))))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
        {"x-api-key": ""},
    ):
        refused = client.post("/v1/completions", json=COMPLETION, headers=headers)
        assert error_of(refused, 401)["code"] == "invalid_api_key"
        assert refused.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"Authorization": "Bearer first"},
        {"Authorization": "bearer first"},
        {"x-api-key": "first"},
        {"api-key": "first"},
        {"x-api-key": "zweiter Schlüssel".encode()},
    ):
        assert client.post("/v1/completions", json=COMPLETION, headers=headers).status_code == 200
    assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
    assert client.get("/health").status_code == client.get("/livez").status_code == 200


def test_web_pages_of_other_origins(registry: ModelRegistry):
    client = TestClient(create_app(registry, Settings()))
    refused = client.post("/v1/completions", json=COMPLETION, headers={"Origin": "https://example.com"})
    assert error_of(refused, 403)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in refused.headers
    same = client.post("/v1/completions", json=COMPLETION, headers={"Origin": "http://testserver"})
    assert same.status_code == 200
    client = TestClient(create_app(registry, Settings(api_keys=("key",), cors_origins=("https://example.com",))))
    preflight = client.options(
        "/v1/completions",
        headers={
            "Origin": "https://example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.com"
    headers = {"Origin": "https://example.com", "Authorization": "Bearer key"}
    allowed = client.post("/v1/completions", json=COMPLETION, headers=headers)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://example.com"
    other = client.options(
        "/v1/completions", headers={"Origin": "https://other.com", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in other.headers


def test_request_ids(client: TestClient):
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    drawn = [client.get("/nothing").headers["x-request-id"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert client.get("/health", headers={"X-Request-Id": "a b" * 200}).headers["x-request-id"].startswith("req_")


def test_loading_and_draining(registry: ModelRegistry):
    app = create_app(None, Settings())
    client = TestClient(app)
    loading = client.get("/health")
    assert loading.status_code == 503
    assert loading.json() == {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200
    refused = client.post("/v1/completions", json=COMPLETION)
    assert error_of(refused, 503)["code"] == "loading"
    assert int(refused.headers["retry-after"]) > 0
    app.state.registry = registry
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200
    app.state.draining = True
    assert client.get("/readyz").status_code == 503
    assert error_of(client.post("/v1/completions", json=COMPLETION), 503)["code"] == "shutting_down"
    assert client.get("/metrics").status_code == 200


def test_a_full_queue(client: TestClient, scheduler: ScriptedScheduler):
    scheduler.full = True
    for body in (COMPLETION, {**COMPLETION, "stream": True}):
        refused = client.post("/v1/completions", json=body)
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "2"


def test_a_defect_is_an_error_without_details(client: TestClient, scheduler: ScriptedScheduler):
    def fail(request):
        raise ZeroDivisionError("secret")

    scheduler.submit = fail
    failed = client.post("/v1/completions", json=COMPLETION)
    assert error_of(failed, 500)["type"] == "server_error"
    assert "secret" not in failed.text


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_texts(registry: ModelRegistry, scheduler: ScriptedScheduler, stream: bool):
    scheduler.pause = 0.2
    with run_server(create_app(registry, Settings())) as url:
        body = {"prompt": "the cat", "max_tokens": 20, "n": 2, "stream": stream}
        thread = threading.Thread(target=abandon, args=(f"{url}/v1/completions", body))
        thread.start()
        wait_for(lambda: len(scheduler.cancelled) == 2)
        thread.join()
    assert all(generation.finished is None for generation in scheduler.cancelled)


def abandon(url: str, body: dict) -> None:
    """Send a request and close the connection before its reply is complete."""
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=0.3) as response:
        next(response.iter_bytes())


def test_pings_keep_a_slow_stream_open(registry: ModelRegistry, scheduler: ScriptedScheduler):
    scheduler.pause = 0.3
    with run_server(create_app(registry, Settings(ping_seconds=0.1))) as url:
        body = {"prompt": "the cat", "max_tokens": 2, "stream": True}
        text = httpx.post(f"{url}/v1/completions", json=body).text
    assert text.startswith(": ping\n\n")
    assert text.endswith("data: [DONE]\n\n")


def test_an_error_in_a_stream_is_part_of_it(client: TestClient, scheduler: ScriptedScheduler):
    async def fail(generation):
        generation.deliver(RuntimeError("secret"))

    scheduler._run = fail
    with client.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[0].removeprefix("data: "))["error"]["type"] == "server_error"
    assert lines[1:] == ["data: [DONE]"]


def test_metrics(client: TestClient):
    client.post("/v1/completions", json=COMPLETION)
    text = client.get("/metrics").text
    for prefix in ("gemwright_", "vllm:"):
        label = '{engine="0",model_name="tiny"}'
        assert f"{prefix}num_requests_running{label} 0.0\n" in text
        assert f"{prefix}num_requests_waiting{label} 0.0\n" in text
        assert f"# TYPE {prefix}time_to_first_token_seconds histogram\n" in text
        assert f'{prefix}request_success_total{{engine="0",finished_reason="length",model_name="tiny"}}' in text
        assert f"{prefix}generation_tokens_total{label}" in text
