"""A sentence in the metadata of weights, read by the libraries that own the formats; the tensors keep their bytes."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gemwright.checkpoint.files.description import copy_described, read_description
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.errors import CheckpointError
from tests.tiny.gguf import write_tiny_gguf

SENTENCE = "Modified from google/gemma-3-270m: émigré."


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_gguf(tmp_path: Path):
    source = write_tiny_gguf(tmp_path / "source.gguf")
    fields, tensors = read_gguf(source)
    copy_described(source, tmp_path / "once.gguf", SENTENCE)
    copy_described(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Another.")
    for name, sentence in (("once", SENTENCE), ("twice", "Another.")):
        path = tmp_path / f"{name}.gguf"
        found, copies = read_gguf(path)
        assert found.pop("general.description").rstrip() == sentence == read_description(path)
        assert found == fields
        assert copies.keys() == tensors.keys()
        assert all(np.array_equal(copies[key], tensors[key]) for key in tensors)
        assert open_gguf(path).tensors.keys() == tensors.keys()
    assert read_description(source) is None


@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_gguf_of_another_alignment(tmp_path: Path, alignment: int):
    values = np.arange(96, dtype=np.float32)
    metadata = {"general.architecture": "gemma3", "general.description": "x" * 7, "general.alignment": alignment}
    write_gguf(tmp_path / "a.gguf", metadata, [GgufTensor("t", (96,), "F32", [values])])
    copy_described(tmp_path / "a.gguf", tmp_path / "b.gguf", SENTENCE)
    fields, tensors = read_gguf(tmp_path / "b.gguf")
    assert str(fields["general.description"]).rstrip() == SENTENCE
    assert np.array_equal(tensors["t"], values)


def test_safetensors(tmp_path: Path):
    arrays = {"a": np.arange(7, dtype=np.float16), "b": np.ones((3, 5), np.float32)}
    save_file(arrays, tmp_path / "a.safetensors", {"format": "pt"})
    copy_described(tmp_path / "a.safetensors", tmp_path / "b.safetensors", SENTENCE)
    with safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "description": SENTENCE}
    found = load_file(tmp_path / "b.safetensors")
    assert all(np.array_equal(found[name], values) for name, values in arrays.items())
    assert read_description(tmp_path / "a.safetensors") is None
    assert read_description(tmp_path / "b.safetensors") == SENTENCE


@pytest.mark.parametrize("name", ["a.gguf", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"GGUF", b"\xff" * 100, b"\x10" + b"\0" * 7 + b"[" * 16])
def test_damaged_files(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        copy_described(tmp_path / name, tmp_path / "copy", SENTENCE)
    assert not (tmp_path / "copy").exists()
