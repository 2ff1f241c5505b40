"""The health and metadata of KServe's Open Inference Protocol."""

import pytest
from starlette.testclient import TestClient

from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings()))


def test_health(client: TestClient):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_health_while_the_model_is_loaded_and_needs_no_key():
    client = TestClient(create_app(None, Settings(api_keys=("key",))))
    assert client.get("/v2/health/live").status_code == 200
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert client.get("/v2/models/tiny/ready", headers={"x-api-key": "key"}).status_code == 503


def test_metadata(client: TestClient):
    server = client.get("/v2").json()
    assert (server["name"], server["extensions"]) == ("gemwright", [])
    assert client.get("/v2/models/tiny").json()["platform"] == "gemwright"
    assert client.get("/v2/models/alias/ready").json() == {"name": "tiny", "ready": True}


def test_errors_have_the_format_of_the_protocol(client: TestClient):
    for path in ("/v2/models/other", "/v2/models/other/ready"):
        response = client.get(path)
        assert (response.status_code, list(response.json())) == (404, ["error"])
    infer = client.post("/v2/models/tiny/infer", json={"inputs": []})
    assert infer.status_code == 501
    assert "/v1/chat/completions" in infer.json()["error"]
