from pathlib import Path

import pytest

from tests.tiny.hf import write_model
from tests.train.tiny_run import write_data


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and training data."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    write_data(folder / "train.jsonl")
    return folder
