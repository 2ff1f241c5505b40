from collections.abc import Iterator

import pytest

import gemwright
from gemwright.api import Model
from tests.tiny.hf import write_model

KINDS = ("gemma", "gemma3_text", "recurrent_gemma")


@pytest.fixture(scope="session", params=KINDS)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model of each kind of decoder: full attention, sliding windows, recurrence."""
    yield gemwright.load(write_model(tmp_path_factory.mktemp("model") / request.param, request.param), dtype="float32")
