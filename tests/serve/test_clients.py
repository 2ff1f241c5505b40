"""Programs that speak OpenAI's API, unchanged: LangChain, LiteLLM, lm-eval and schemathesis (`make test-clients`)."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemwright
from gemwright.checkpoint.convert import convert
from gemwright.serve.app import create_app
from gemwright.serve.batching.scheduler import Limits
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.settings import Settings
from tests.serve.driver import running
from tests.serve.server import run_server
from tests.tiny.gguf import write_tiny_gguf

pytestmark = [
    pytest.mark.peer,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore"),  # of the clients and their dependencies
]
OPENAPI = Path(__file__).parents[2] / "docs/openapi.yaml"
QUESTION = "the cat and the"


@pytest.fixture(scope="module")
def tuned(tiny: gemwright.Model) -> gemwright.Model:
    return replace(tiny, tuned=True)


@pytest.fixture(scope="module")
def address(tuned: gemwright.Model) -> Iterator[str]:
    with running(tuned, Limits(context=512, slots=4, cache_bytes=1 << 22)) as scheduler:
        served = ServedModel("tiny", tuned, scheduler)
        registry = ModelRegistry([ModelSource("tiny", lambda: served, (), served)])
        with run_server(create_app(registry, Settings())) as url:
            yield url


def test_langchain(address: str, tuned: gemwright.Model):
    langchain = pytest.importorskip("langchain_openai")
    options = {"base_url": f"{address}/v1", "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 8}
    chat = langchain.ChatOpenAI(**options)
    expected = tuned.chat([{"role": "user", "content": QUESTION}], max_tokens=8, temperature=0.0)
    reply = chat.invoke(QUESTION)
    assert (reply.content, reply.usage_metadata["output_tokens"]) == (expected.text, 8)
    assert "".join(part.content for part in chat.stream(QUESTION)) == expected.text
    assert [one.content for one in chat.batch([QUESTION] * 5)] == [expected.text] * 5
    text = langchain.OpenAI(**options)
    assert text.invoke(QUESTION) == tuned.generate(QUESTION, max_tokens=8, temperature=0.0).text
    schema = {"title": "answer", "type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    answers = langchain.ChatOpenAI(**options | {"max_tokens": 100})
    for method in ("json_schema", "function_calling"):
        found = answers.with_structured_output(schema | {"additionalProperties": False}, method=method).invoke("a")
        assert isinstance(found["yes"], bool)


def test_litellm(address: str, tuned: gemwright.Model):
    litellm = pytest.importorskip("litellm")
    messages = [{"role": "user", "content": QUESTION}]
    expected = tuned.chat(messages, max_tokens=8, temperature=0.0).text
    common = {"messages": messages, "max_tokens": 8, "temperature": 0, "api_key": "none"}
    for model, base in (
        ("openai/tiny", f"{address}/v1"),
        ("hosted_vllm/tiny", f"{address}/v1"),
        ("ollama_chat/tiny", address),
        ("anthropic/tiny", address),
    ):
        reply = litellm.completion(model=model, api_base=base, **common)
        assert reply.choices[0].message.content == expected, model
        parts = litellm.completion(model=model, api_base=base, stream=True, **common)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == expected, model
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(model="openai/other", api_base=f"{address}/v1", **common)


@pytest.mark.parametrize("backend", ["huggingface", "remote"])
def test_likelihoods_of_lm_eval(address: str, tuned: gemwright.Model, backend: str, tmp_path: Path):
    """Likelihoods are those of the Python interface. The server's tokenizer, as lm-eval asks for it, adds no BOS."""
    models = pytest.importorskip("lm_eval.models.openai_completions")
    instances = pytest.importorskip("lm_eval.api.instance")
    options: dict[str, Any] = {"num_concurrent": 4, "max_length": 512, "add_bos_token": True}
    if backend == "huggingface":
        convert(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "hf", "huggingface")
        options["tokenizer"] = str(tmp_path / "hf")
    harness = models.LocalCompletionsAPI(
        model="tiny", base_url=f"{address}/v1/completions", tokenizer_backend=backend, **options
    )
    pairs = [("the cat", " and the thing"), ("and", " then. Nothing"), ("in the", " other")]
    requests = [instances.Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    skipped = 0 if backend == "huggingface" else 1
    for (context, continuation), (logprob, _) in zip(pairs, harness.loglikelihood(requests), strict=True):
        prompt, whole = tuned.encode(context)[skipped:], tuned.encode(context + continuation)[skipped:]
        expected = sum(tuned.score(whole).logprobs[len(prompt) - 1 :])
        np.testing.assert_allclose(logprob, expected, rtol=0, atol=2e-2)
    until = instances.Instance("generate_until", {}, ("the cat and", {"until": ["."], "max_gen_toks": 12}), 0)
    text = tuned.generate(
        "the cat and" if skipped == 0 else tuned.encode("the cat and")[1:], max_tokens=12, temperature=0.0, stop=["."]
    )
    assert harness.generate_until([until])[0] == text.text


def test_no_request_breaks_the_server(address: str, tmp_path: Path):
    """Valid and invalid requests from the OpenAPI description get an answer in JSON, and no status of 500 or more."""
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI), "--url", address, "--seed", "1"]
    options = [
        "--checks",
        "not_a_server_error,content_type_conformance,status_code_conformance",
        "--max-examples",
        "40",
    ]
    result = subprocess.run(
        [*command, *options, "--no-color"], capture_output=True, text=True, timeout=1200, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
