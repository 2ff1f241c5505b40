"""Damaged files of every kind give a checkpoint or one sentence. More cases: `make fuzz`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from tests.checkpoint.test_gguf_model import pulled, write_parts
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

CASES = int(os.environ.get("FUZZ", "100"))
"""Number of cases of each kind."""
MAX_HEADER = 20_000
"""Bytes at the start of a file in which most damage is done."""

SIZES = (0, 1, 2**31, 2**32, 2**63, 2**64 - 1)


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return content with bytes changed, removed, repeated or cut."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(max(1, min(len(data), MAX_HEADER))))
        match random.integers(6):
            case 0:
                data[at : at + 1] = bytes([random.integers(256)])
            case 1:
                del data[at : at + int(random.integers(1, 20))]
            case 2:
                data[at:at] = data[at : at + int(random.integers(1, 40))]
            case 3:
                data[at : at + 8] = SIZES[int(random.integers(len(SIZES)))].to_bytes(8, "little")
            case 4:
                data[at : at + 4] = int(random.integers(16)).to_bytes(4, "little")
            case _:
                del data[at:]
    return bytes(data)


def fuzz(files: list[Path], attempt: Callable[[], object]) -> int:
    """Damage one file at a time and return the number of cases that were refused."""
    whole, refused = {file: file.read_bytes() for file in files}, 0
    for seed in range(CASES):
        random = np.random.default_rng(seed)
        file = files[int(random.integers(len(files)))]
        file.write_bytes(damaged(whole[file], random))
        message = refusal(attempt)
        file.write_bytes(whole[file])
        refused += bool(message)
        assert "\n" not in message
        assert len(message) < 2000
    return refused


def refusal(attempt: Callable[[], object]) -> str:
    """Return the error of an attempt, or an empty string if it succeeds."""
    try:
        attempt()
    except CheckpointError as error:
        return str(error)
    return ""


def open_and_read(path: Path) -> None:
    """Open a checkpoint and read one tensor of each of its files."""
    checkpoint = open_checkpoint(path)
    for name in list(checkpoint.file.tensors)[:: max(1, len(checkpoint.file.tensors) // 3)]:
        checkpoint.file.read(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hub") / "gemma", "gemma3")


def test_damaged_parts(tmp_path: Path) -> None:
    parts = write_parts(write_tiny_gguf(tmp_path / "whole.gguf"), tmp_path / "parts")
    assert fuzz(parts, lambda: open_and_read(parts[0])) > CASES // 3


def test_damaged_towers(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf", "gguf", "float32")
    assert open_checkpoint(tmp_path).config.vision
    assert fuzz([tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf"], lambda: open_and_read(tmp_path)) > CASES // 4


def test_damaged_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    pulled(tmp_path / "models", "registry.ollama.ai/library/gemma3/4b", ("model", whole), ("projector", whole))
    manifest = tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "gemma3" / "4b"
    assert fuzz([manifest], lambda: locate("ollama:gemma3:4b")) > CASES // 3


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "gemma"))
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "r": 8}))
    files = [place / name for name in ("model.safetensors", "config.json", "adapter_config.json")]
    assert fuzz(files, lambda: open_and_read(place)) > CASES // 4
