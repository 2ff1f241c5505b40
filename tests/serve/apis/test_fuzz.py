"""Random requests: whatever a client sends, the reply is no 500 and, if it is an error, one in OpenAI's format."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gemwright.serve.apis.openai.completions import CompletionRequest
from gemwright.serve.apis.openai.plan import ChatRequest
from gemwright.serve.apis.openai.tokenize import DetokenizeRequest, TokenizeRequest
from gemwright.serve.models import ModelRegistry

BODIES = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/input_tokens": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 1e308, 0.5, -0.0]),
    st.text(max_size=8),
    st.sampled_from(
        ["the cat", "<eos>", "<|fim_prefix|>", "data:image/png;base64,AAAA", "tiny", "auto", "\u0000", "٣"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=8)),
    st.builds(lambda url: {"type": "image_url", "image_url": url}, scalars | st.builds(lambda u: {"url": u}, scalars)),
    values,
)
messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(ROLES),
        st.text(max_size=8) | st.none() | st.lists(parts, max_size=3),
    )
    | values,
    max_size=4,
)
sensible: dict[str, Any] = {
    "prompt": st.text(max_size=20) | st.lists(st.integers(0, 400), max_size=4) | values,
    "messages": messages,
    "tokens": st.lists(st.integers(-1, 500), max_size=5),
    "max_tokens": st.integers(0, 20) | values,
    "n": st.integers(0, 3) | values,
    "model": st.sampled_from(["", "tiny", "alias", "other"]) | values,
    "tools": st.none(),
    "response_format": st.none() | values,
}


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_request_fails_the_server(client: TestClient, registry: ModelRegistry, path: str, data: st.DataObject):
    names = st.sampled_from([field for field in BODIES[path].__struct_fields__ if field != "tools"])
    chosen = data.draw(st.sets(names, max_size=4)) | {{"/detokenize": "tokens"}.get(path, "prompt")}
    if "chat" in path:
        chosen = chosen - {"prompt"} | {"messages"}
    body = {name: data.draw(sensible.get(name, values)) for name in sorted(chosen)}
    response = client.post(path, content=json.dumps(body))
    assert response.status_code in (200, 400, 404, 501), response.text
    if response.status_code != 200:
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    body=st.binary(max_size=60), path=st.sampled_from(sorted(BODIES)), method=st.sampled_from(["POST", "GET", "PUT"])
)
def test_no_bytes_fail_the_server(client: TestClient, body: bytes, path: str, method: str):
    assert client.request(method, path, content=body).status_code in (400, 405)
