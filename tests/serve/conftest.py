"""Tiny models: one behind the application with a scripted scheduler, and one of each kind of decoder."""

from collections.abc import Iterator

import openai
import pytest
from starlette.testclient import TestClient

import gemwright
from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from gemwright.serve.settings import Settings
from tests.serve.scripted import ScriptedScheduler
from tests.serve.server import run_server
from tests.tiny.gguf import write_tiny_gguf

TEXT = "the cat and the thing."
KINDS = ("gemma3_text", "recurrent_gemma", pytest.param("gemma", marks=pytest.mark.slow))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> gemwright.Model:
    return gemwright.load(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def scheduler(tiny: gemwright.Model) -> ScriptedScheduler:
    """Writes `TEXT`, then ends."""
    ids = [*tiny.tokenizer.encode(TEXT), tiny.tokenizer.eos_id]
    return ScriptedScheduler(tiny, lambda request: ids)


@pytest.fixture
def registry(tiny: gemwright.Model, scheduler: ScriptedScheduler) -> ModelRegistry:
    served = ServedModel("tiny", tiny, scheduler, aliases=("alias",))
    return ModelRegistry([ModelSource("tiny", lambda: served, ("alias",), served)])


@pytest.fixture
def client(registry: ModelRegistry) -> TestClient:
    return TestClient(create_app(registry, Settings()), raise_server_exceptions=False)


@pytest.fixture
def openai_client(registry: ModelRegistry) -> Iterator[openai.OpenAI]:
    with (
        run_server(create_app(registry, Settings())) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="session", params=KINDS)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gemwright.Model:
    """A model of each kind of decoder: full attention, sliding windows, recurrence."""
    from tests.tiny.hf import write_model  # imports PyTorch

    return gemwright.load(write_model(tmp_path_factory.mktemp("model") / request.param, request.param), dtype="float32")
