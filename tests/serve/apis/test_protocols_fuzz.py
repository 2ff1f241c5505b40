"""Whatever a client sends is answered, or refused with a status that blames it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gemwright.serve.apis.anthropic.fields import MessagesFields
from gemwright.serve.apis.llama_server.fields import CompletionFields, InfillFields
from gemwright.serve.apis.llama_server.fim import FimFields
from gemwright.serve.apis.ollama.fields import ChatFields, GenerateFields, OllamaOptions
from gemwright.serve.apis.responses.fields import ResponseFields
from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings

BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "/api/generate": (GenerateFields, {"model": "tiny", "prompt": "a"}),
    "/api/chat": (ChatFields, {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}),
    "/v1/messages": (MessagesFields, {"max_tokens": 3, "messages": [{"role": "user", "content": "a"}]}),
    "/v1/responses": (ResponseFields, {"input": "a", "max_output_tokens": 3}),
    "/completion": (CompletionFields, {"prompt": "a", "n_predict": 3}),
    "/infill": (InfillFields, {"input_prefix": "a", "input_suffix": "b", "n_predict": 3}),
    "/fim/completions": (FimFields, {"prompt": "a", "suffix": "b", "max_tokens": 3}),
    "/v1/endpoints/1:predict": (dict, {"instances": [{"prompt": "a"}]}),
}
NAMES = st.sampled_from(
    [
        "type",
        "text",
        "role",
        "user",
        "content",
        "name",
        "function",
        "image",
        "source",
        "tool_use",
        "a",
        "@requestFormat",
    ]
)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([1e308, -1e308, 10**30, 2**63, 0.5]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture
def client(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


def fields_of(path: str) -> list[str]:
    kind, base = BASES[path]
    own = getattr(kind, "__struct_fields__", ("instances", "parameters"))
    return [*own, *base]


@pytest.mark.parametrize("path", BASES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_is_an_error_of_the_server(client: TestClient, path: str, data: st.DataObject):
    changes = data.draw(st.dictionaries(st.sampled_from(fields_of(path)), JSON, min_size=1, max_size=2))
    body = BASES[path][1] | changes
    if path.startswith("/api") and data.draw(st.booleans()):
        body["options"] = data.draw(st.dictionaries(st.sampled_from(OllamaOptions.__struct_fields__), JSON, max_size=2))
    response = client.post(path, json=body)
    assert response.status_code in (200, 400, 404, 413), (body, response.text)
    if response.status_code == 200:
        assert "failed; its log" not in response.text, (body, response.text)
