"""A tiny model behind the application."""

import pytest

import gemwright
from gemwright.serve.models import ModelRegistry, ServedModel
from tests.serve.scripted import ScriptedScheduler
from tests.tiny.gguf import write_tiny_gguf

TEXT = "the cat and the thing."


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
    return ModelRegistry([ServedModel("tiny", tiny, scheduler, aliases=("alias",))])
