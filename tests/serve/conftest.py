"""Tiny models: one behind the application with a scripted scheduler, and one of each kind of decoder."""

import pytest

import gemwright
from gemwright.serve.models import ModelRegistry, ModelSource, ServedModel
from tests.serve.scripted import ScriptedScheduler
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

TEXT = "the cat and the thing."
KINDS = ("gemma", "gemma3_text", "recurrent_gemma")


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


@pytest.fixture(scope="session", params=KINDS)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gemwright.Model:
    """A model of each kind of decoder: full attention, sliding windows, recurrence."""
    return gemwright.load(write_model(tmp_path_factory.mktemp("model") / request.param, request.param), dtype="float32")
