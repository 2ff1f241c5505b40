"""Files are recognized by their content, whatever their names, and a refusal says what the file is and what to use."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gemwright.checkpoint.files.formats import GGUF, NPZ, SAFETENSORS, gguf_keys, recognize
from gemwright.checkpoint.find import adapter_base, find_weights
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.loading import reading
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 2489894016\n"


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def torch_file(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model"))
    return buffer.getvalue()


CONTENT: dict[str, tuple[bytes, str]] = {
    "pointer": (POINTER.encode(), "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder."),
    "torch zip": (torch_file(zipped=True), "is a PyTorch checkpoint; use the model's safetensors folder or a GGUF"),
    "torch pickle": (torch_file(zipped=False), "is a PyTorch checkpoint; use the model's safetensors folder or a GGUF"),
    "keras": (zip_of("metadata.json", "config.json", "model.weights.h5"), "is a Keras model (.keras); use"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is a Keras or HDF5 file (.h5); use"),
    "litertlm": (b"LITERTLM" + bytes(99), "is a LiteRT-LM model (.litertlm); use"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "is a LiteRT or TensorFlow Lite model (.tflite); use"),
    "task": (zip_of("TF_LITE_PREFILL_DECODE", "TOKENIZER_MODEL"), "is a MediaPipe task bundle (.task); use"),
    "sbs": (b"SBS\n" + bytes(99), "is a gemma.cpp model (.sbs); use"),
    "ggml": (b"tjgg" + bytes(99), "is a GGML file of before GGUF; use"),
    "page": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not a model; download the model again"),
    "answer": (b"Access to model google/gemma-3-1b-it is restricted.", "is a web page, not a model; download"),
    "gzip": (gzip.compress(b"x"), "is a gzip archive; unpack it and give the folder or file inside."),
    "tar": (tar_file(), "is a tar archive; unpack it"),
    "zip": (zip_of("gemma/model.safetensors"), "is a zip archive; unpack it"),
    "empty": (b"", "is empty; download it again."),
}


@pytest.mark.parametrize("name", ["weights", "model.safetensors.part", "sha256-abc"])
@pytest.mark.parametrize("kind", CONTENT)
def test_a_refusal_names_the_format_by_content(kind: str, name: str, tmp_path: Path) -> None:
    content, message = CONTENT[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name} {message}")
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flax_model.msgpack", "is a Flax MessagePack checkpoint"),
        ("model.onnx", "is an ONNX model"),
        ("gemma.sbs", "is a gemma.cpp model"),
        ("pytorch_model.bin", "is a PyTorch checkpoint"),
        ("config.json", "is a JSON file, not weights; give the folder that holds the weights."),
        ("tokenizer.model", "is a tokenizer, not weights; give the folder"),
    ],
)
def test_a_refusal_names_the_format_by_name_if_the_content_does_not_tell(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\x08\x08\x12 content")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "gemma.task", "2b-it.sbs", "model.weights.h5", "x.onnx"])
def test_a_folder_with_unsupported_weights_names_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=f"holds no supported weights: {name} is an? .*; use the model's safeten"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["sha256-7cd4618c1faf", "Upper.GGUF", "no suffix", "wrong.bin"])
def test_a_gguf_opens_under_any_name(name: str, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf").rename(tmp_path / name)
    assert recognize(tmp_path / name) is GGUF
    assert open_checkpoint(tmp_path / name).format == "gguf"
    assert open_checkpoint(tmp_path).path == tmp_path / name
    with reading(tmp_path / name, native=False) as prefetch:
        assert prefetch is not None


def test_the_supported_formats_are_recognized_under_any_name(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "a.bin")
    np.savez(tmp_path / "b", x=np.zeros(2, np.float32))
    assert recognize(tmp_path / "a.bin") is SAFETENSORS
    assert recognize((tmp_path / "b.npz").rename(tmp_path / "b.zip")) is NPZ
    assert gguf_keys(write_tiny_gguf(tmp_path / "m"))["general.architecture"] == "gemma3"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("folder", "model.safetensors"),
        ("folder", "config.json"),
        ("folder", "tokenizer.model"),
        ("folder", "tokenizer_config.json"),
        ("m.gguf", "m.gguf"),
    ],
)
def test_a_pointer_in_place_of_any_file_says_git_lfs_pull(target: str, name: str, tmp_path: Path) -> None:
    if target == "folder":
        write_model(tmp_path / "folder")
        (tmp_path / "folder" / name).write_text(POINTER)
    else:
        (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        open_checkpoint(tmp_path / target).vocabulary()


def adapter(folder: Path) -> Path:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"base_model.model.x.lora_A.weight": np.zeros((4, 32), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/gemma-3-270m"}))
    return folder


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora")
    message = "is an adapter for google/gemma-3-270m, not a whole model; give the model that it adapts"
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)
    whole = adapter(write_model(tmp_path / "whole"))
    assert adapter_base(whole) is None
    assert open_checkpoint(whole).format == "safetensors"


def test_a_gguf_adapter_is_named(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "lora", "gemma3")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match="lora is an adapter for a gemma3 model, not a whole model"):
        open_checkpoint(tmp_path / "lora")


def same(path: Path, other: Path) -> bool:
    """Return whether two checkpoints have the same config and values."""
    a, b = open_checkpoint(path), open_checkpoint(other)
    loaded = [load_weights(c.file, c.mapping, c.config, "float32") for c in (a, b)]
    return a.config == b.config and np.array_equal(loaded[0].layers[0].mixer_norm, loaded[1].layers[0].mixer_norm)


def test_a_model_in_a_folder_below_is_found(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    below = tmp_path / "publisher" / "gemma-GGUF"
    below.mkdir(parents=True)
    shutil.copy(model, below / "gemma.gguf")
    assert open_checkpoint(tmp_path / "publisher").path == below / "gemma.gguf"
    write_model(tmp_path / "publisher" / "other")
    message = r"publisher holds several models \(gemma-GGUF/gemma\.gguf, other\); give the path of one\.$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "publisher")
    shutil.rmtree(tmp_path / "publisher" / "gemma-GGUF")
    assert same(tmp_path / "publisher", tmp_path / "publisher" / "other")


def test_a_repository_in_the_hub_cache_is_its_current_snapshot(tmp_path: Path) -> None:
    repository = tmp_path / "models--google--gemma-3-270m"
    for commit in ("old", "new"):
        write_model(repository / "snapshots" / commit)
    (repository / "blobs").mkdir()
    write_tiny_gguf(repository / "blobs" / "0123")
    with pytest.raises(CheckpointError, match=r"holds several models \(new, old\)"):
        open_checkpoint(repository)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new\n")
    assert find_weights(repository) == (SAFETENSORS, repository / "snapshots" / "new")
    (repository / "refs" / "main").write_text("../../../etc")
    with pytest.raises(CheckpointError, match="holds several models"):
        open_checkpoint(repository)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"model.language_model.{name}",
        lambda name: f"language_model.{name}",
        lambda name: name.removeprefix("model."),
    ],
)
def test_wrapped_names_are_the_plain_ones(rename: Callable[[str], str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = write_model(tmp_path / "plain")
    shutil.copytree(folder, tmp_path / "wrapped")
    tensors = load_file(folder / "model.safetensors")
    renamed = {rename(name): value for name, value in tensors.items()} | {"rope_freqs.weight": np.ones(16, np.float32)}
    save_file(renamed, tmp_path / "wrapped" / "model.safetensors")
    assert same(folder, tmp_path / "wrapped")


def test_a_text_half_with_the_config_of_its_tower_is_a_text_model(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = write_model(tmp_path, "gemma3")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: v for n, v in tensors.items() if "vision" not in n}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.vision is None
    load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


ROPES = (
    {"rope_type": "linear", "factor": 8.0, "original_max_position_embeddings": 8192},
    {"rope_type": "linear", "factor": 8.0, "partial_rotary_factor": 1.0},
)


@pytest.mark.parametrize("rope", ROPES)
def test_keys_without_effect_beside_linear_scaling_are_accepted(rope: dict[str, object], tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    layers = ["sliding_attention", "full_attention"]
    config = json.loads((folder / "config.json").read_text()) | {"rope_scaling": rope, "layer_types": layers}
    (folder / "config.json").write_text(json.dumps(config))
    mixer = open_checkpoint(folder).config.layers[-1].mixer
    assert mixer.rope.scale == 8.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gemma3n"},
            "the model_type 'gemma3n' is not supported yet; supported are gemma, ",
        ),
        ({"model_type": "llama"}, "the model_type 'llama' is not supported yet"),
        (
            {"architectures": ["Gemma3nForConditionalGeneration"]},
            "the class Gemma3nForConditionalGeneration is not",
        ),
        (
            {"architectures": ["Gemma2ForTokenClassification"]},
            "the class Gemma2ForTokenClassification is not",
        ),
        ({"use_bidirectional_attention": True}, "bidirectional attention .EmbeddingGemma. is not supported yet"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}}, "YaRN is not supported yet"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "RoPE scaling of type 'dynamic' is not supported yet"),
    ],
)
def test_an_unsupported_model_is_said_to_be_so(change: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(folder)
    assert "again" not in str(raised.value)


MAGICS = [content[:40] for content, _ in CONTENT.values()] + [b"GGUF\x03\0\0\0", b"\x20\0\0\0\0\0\0\0{}"]


@settings(max_examples=300)
@given(start=st.sampled_from(MAGICS), rest=st.binary(max_size=200), suffix=st.sampled_from(["", ".gguf", ".bin"]))
def test_any_content_opens_or_is_one_sentence(
    start: bytes, rest: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(start + rest)
    with pytest.raises(CheckpointError, match=r"fuzzed|config\.json: is missing") as raised:
        open_checkpoint(path)
    assert "\n" not in str(raised.value)
