"""GGUF models of several files: parts of a split model, and vision towers beside the model or in Ollama's file."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright import tree
from gemwright.checkpoint.adapters import open_adapter
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.gguf_model import open_gguf_model
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.errors import CheckpointError, GemwrightError
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model
from tests.tiny.tower import STYLES, Style, ollama_keys, tower_tensors, write_mmproj


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with a tower, saved by transformers."""
    return write_model(tmp_path_factory.mktemp("hub") / "gemma", "gemma3")


@pytest.fixture(scope="module")
def decoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of the same model as a GGUF file."""
    target = tmp_path_factory.mktemp("gguf") / "gemma-F32.gguf"
    convert(folder, target, "gguf", "float32")
    for tower in target.parent.glob("mmproj*"):
        tower.unlink()
    return target


def weights(path: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(path)
    loaded = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    return {name: np.asarray(value) for name, value in tree.flatten(loaded).items()}


def assert_same(path: Path, reference: Path) -> None:
    """Compare configs exactly and weights up to the rounding of `1 + gain` in float32."""
    assert open_checkpoint(path).config == open_checkpoint(reference).config
    ours, theirs = weights(path), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=2.4e-7 if "norm" in name else 0, err_msg=name)


def with_tower(decoder: Path, folder: Path, place: Path, style: Style) -> Path:
    """Write the model with its tower in a style and return the path to give."""
    place.mkdir(parents=True, exist_ok=True)
    if style != "ollama":
        shutil.copy(decoder, place / "model.gguf")
        write_mmproj(place / "mmproj-model-f32.gguf", folder, style)
        return place / "model.gguf"
    file = open_gguf(decoder)
    values = {name: file.read(name) for name in file.tensors} | tower_tensors(folder, "ollama")
    tensors = [GgufTensor(name, value.shape, "F32", [value]) for name, value in values.items()]
    write_gguf(place / "sha256-0", dict(file.metadata) | ollama_keys(), tensors)
    return place / "sha256-0"


@pytest.mark.parametrize("style", STYLES)
def test_a_tower_gives_the_model_of_transformers(style: Style, decoder: Path, folder: Path, tmp_path: Path) -> None:
    path = with_tower(decoder, folder, tmp_path / "place", style)
    assert open_checkpoint(path).config.vision is not None
    for given in (path, tmp_path / "place", tmp_path):
        assert_same(given, folder)
    with GgufPrefetch(path, native=False) as prefetch:
        assert prefetch.file.result().tensors.keys() == open_checkpoint(path).file.tensors.keys()


def test_a_tower_that_does_not_fit_is_not_used(decoder: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(decoder, tmp_path / "model.gguf")
    write_mmproj(tmp_path / "mmproj.gguf", folder, **{"clip.projector_type": "mlp"})
    assert open_checkpoint(tmp_path / "model.gguf").config.vision is None
    shutil.rmtree(tmp_path)
    write_tiny_gguf(tmp_path.parent / "text.gguf")  # of another width
    write_mmproj(tmp_path.parent / "mmproj.gguf", folder)
    assert open_checkpoint(tmp_path.parent / "text.gguf").config.vision is None


def test_one_tower_in_several_encodings_is_used_and_two_towers_are_not(
    decoder: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_tower(decoder, folder, tmp_path, "llama.cpp")
    shutil.copy(tmp_path / "mmproj-model-f32.gguf", tmp_path / "mmproj-again.gguf")
    assert_same(path, folder)
    tower = open_gguf(tmp_path / "mmproj-again.gguf")
    values = {name: tower.read(name) * 2 for name in tower.tensors}
    tensors = [GgufTensor(name, value.shape, "F32", [value]) for name, value in values.items()]
    write_gguf(tmp_path / "mmproj-other.gguf", tower.metadata, tensors)
    assert open_checkpoint(path).config.vision is None
    assert "several vision towers fit (mmproj-again.gguf, mmproj-model-f32.gguf, mmproj-other.gguf)" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clip.vision.image_mean", [0.1, 0.2, 0.3], "clip.vision.image_mean"),
        ("clip.use_gelu", False, "clip.use_gelu"),
        ("clip.vision.attention.head_count", 5, "clip.vision.attention.head_count"),
        ("clip.vision.patch_size", 0, "clip.vision.patch_size"),
        ("clip.vision.projector.scale_factor", 0, "clip.vision.projector.scale_factor"),
        ("clip.vision.projector.scale_factor", 3, "clip.vision.projector.scale_factor"),
        ("clip.vision.block_count", 10**9, "clip.vision.block_count"),
    ],
)
def test_a_bad_key_of_a_tower_is_named(
    key: str, value: Any, message: str, decoder: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(decoder, tmp_path / "model.gguf")
    write_mmproj(tmp_path / "mmproj.gguf", folder, **{key: value})
    with pytest.raises(CheckpointError, match=message):
        weights(tmp_path / "model.gguf")


def test_a_damaged_tower_is_named(decoder: Path, folder: Path, tmp_path: Path) -> None:
    path = with_tower(decoder, folder, tmp_path, "llama.cpp")
    tower = tmp_path / "mmproj-model-f32.gguf"
    tower.write_bytes(tower.read_bytes()[:-99])
    with pytest.raises(CheckpointError, match=r"mmproj-model-f32\.gguf: ends inside tensor"):
        open_checkpoint(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_written_tower_is_that_of_llama_cpp(dtype: str, folder: Path, tmp_path: Path) -> None:
    """Names are those of the `gguf` package's table, and the pair of files opens as the model of transformers."""
    convert(folder, tmp_path / "m.gguf", "gguf", dtype)
    written, expected = open_gguf(tmp_path / "mmproj-m.gguf"), tower_tensors(folder, "llama.cpp")
    theirs = open_gguf(write_mmproj(tmp_path / "theirs.gguf", folder))
    assert theirs.metadata.keys() - {"general.name"} <= written.metadata.keys()
    for key, value in theirs.metadata.items():
        np.testing.assert_array_equal(written.metadata[key], value, err_msg=key)
    assert written.tensors.keys() == expected.keys()
    for name, value in expected.items():
        encoding = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        plain = value.ndim == 1 or "embd" in name
        assert written.tensors[name].encoding == ("F32" if plain else encoding)
        rounding = 0.0 if plain else {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
        ours = np.asarray(written.read(name), np.float32)
        np.testing.assert_allclose(ours, value, rtol=rounding, atol=1e-7 if rounding else 0, err_msg=name)
    (tmp_path / "theirs.gguf").unlink()
    if dtype == "float32":
        assert_same(tmp_path / "m.gguf", folder)


def test_a_failed_conversion_leaves_no_tower(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mmproj-m.gguf").write_text("of the user")
    with pytest.raises(CheckpointError, match=r"mmproj-m\.gguf exists; choose another name"):
        convert(folder, tmp_path / "m.gguf", "gguf")
    assert (tmp_path / "mmproj-m.gguf").read_text() == "of the user"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemwright.checkpoint.convert.write_gguf", fail)
    with pytest.raises(OSError, match="No space"):
        convert(folder, tmp_path / "n.gguf", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["mmproj-m.gguf"]


# Split files


def write_parts(source: Path, place: Path, count: int = 3, **changed: Any) -> list[Path]:
    """Split a file as llama.cpp's gguf-split does: the first part has the metadata."""
    file, place = open_gguf(source), place
    place.mkdir(exist_ok=True)
    names, paths = list(file.tensors), []
    for number in range(count):
        keys: dict[str, Any] = {
            "split.no": number,
            "split.count": count,
            "split.tensors.count": len(names),
        } | changed
        metadata = (dict(file.metadata) if number == 0 else {}) | keys
        part = names[number::count]
        tensors = [GgufTensor(name, file.tensors[name].shape, "F32", [file.read(name)]) for name in part]
        paths.append(place / f"gemma-{number + 1:05}-of-{count:05}.gguf")
        write_gguf(paths[-1], metadata, tensors)
    return paths


def test_any_part_or_the_folder_opens_the_split_model(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    parts = write_parts(whole, tmp_path / "parts")
    for path in (*parts, tmp_path / "parts"):
        assert_same(path, whole)
        assert open_checkpoint(path).vocabulary().pieces == open_checkpoint(whole).vocabulary().pieces


def test_a_split_model_finds_its_tower(decoder: Path, folder: Path, tmp_path: Path) -> None:
    parts = write_parts(decoder, tmp_path / "parts")
    write_mmproj(tmp_path / "parts" / "mmproj.gguf", folder)
    for path in (parts[1], tmp_path / "parts"):
        assert_same(path, folder)


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    parts = write_parts(whole, tmp_path / "parts")
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CheckpointError, match=r"gemma-00002-of-00003\.gguf: is not part 2 of 3, as its name says"):
        open_gguf_model(parts[0])
    parts[1].unlink()
    for path in (parts[2], tmp_path / "parts"):
        with pytest.raises(CheckpointError, match=r"is one of 3 parts, and gemma-00002-of-00003\.gguf is missing; put"):
            open_checkpoint(path)
    parts = write_parts(whole, tmp_path / "wrong", **{"split.tensors.count": 1})
    with pytest.raises(CheckpointError, match=r"its 3 parts have \d+ tensors instead of 1"):
        open_gguf_model(parts[0])
    parts = write_parts(whole, tmp_path / "many", **{"split.count": 10**6})
    with pytest.raises(CheckpointError, match="claims to be one of 1000000 parts"):
        open_gguf_model(parts[0])


def test_several_ggufs_are_chosen_only_if_one_is_a_model(tmp_path: Path) -> None:
    write_parts(write_tiny_gguf(tmp_path / "a.gguf"), tmp_path)
    with pytest.raises(CheckpointError, match=r"several GGUF files \(a\.gguf, gemma-00001-of-00003\.gguf\); give the"):
        open_checkpoint(tmp_path)


# Ollama


def pulled(place: Path, name: str, *layers: tuple[str, Path]) -> list[Path]:
    """Put files into Ollama's folder as `ollama pull` does and return the blobs."""
    blobs = []
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    described = [{"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 1}]
    for number, (kind, file) in enumerate(layers):
        digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
        blobs.append(Path(shutil.copy(file, place / "blobs" / f"sha256-{digest}")))
        described.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": 1})
    manifest = place / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": described}))
    return blobs


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of Ollama's models."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("ollama:gemma3", "registry.ollama.ai/library/gemma3/latest"),
        ("ollama:gemma3:4b-it-qat", "registry.ollama.ai/library/gemma3/4b-it-qat"),
        ("ollama:someone/tune:q8_0", "registry.ollama.ai/someone/tune/q8_0"),
        ("ollama:hf.co/unsloth/gemma-3-1b-it-GGUF:Q4_K_M", "hf.co/unsloth/gemma-3-1b-it-GGUF/Q4_K_M"),
    ],
)
def test_a_model_of_ollama_is_found_by_its_name(name: str, manifest: str, models: Path, tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    (blob,) = pulled(models, manifest, ("model", whole))
    assert locate(name) == blob
    assert_same(blob, whole)


def test_a_model_of_ollama_has_the_tower_of_its_manifest(
    models: Path, decoder: Path, folder: Path, tmp_path: Path
) -> None:
    tower = write_mmproj(tmp_path / "tower", folder)
    pulled(models, "registry.ollama.ai/library/other/latest", ("model", write_tiny_gguf(tmp_path / "t.gguf")))
    blobs = pulled(models, "hf.co/ggml-org/gemma-3-4b-it-GGUF/latest", ("model", decoder), ("projector", tower))
    assert locate("ollama:hf.co/ggml-org/gemma-3-4b-it-GGUF") == blobs[0]
    assert_same(blobs[0], folder)


def test_the_error_for_a_model_that_ollama_lacks_lists_those_it_has(models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model gemma3:1b; there is none in .*models; fetch it with `ollama"):
        locate("ollama:gemma3:1b")
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    (blob,) = pulled(models, "registry.ollama.ai/library/gemma3/4b", ("model", whole))
    pulled(models, "hf.co/a/b/Q8_0", ("model", whole))
    with pytest.raises(CheckpointError, match=r"no model gemma3:1b; there are gemma3:4b, hf\.co/a/b:Q8_0; fetch it"):
        locate("ollama:gemma3:1b")
    for wrong in ("ollama:", "ollama:../../etc/passwd", "ollama:a/b/c/d", "ollama:a b", "ollama:..:x"):
        with pytest.raises(CheckpointError, match="is not the name of an Ollama model"):
            locate(wrong)
    blob.unlink()
    with pytest.raises(CheckpointError, match=r"sha256-.* is missing, which .*4b names; run `ollama pull` again"):
        locate("ollama:gemma3:4b")


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"layers": 3}', '{"layers": [3, {}]}', '{"layers": [{"mediaType": "x", "digest": 3}]}']
    + [
        json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]})
        for digest in ("sha256:../../x", None, "sha256:", f"sha256:{'A' * 64}")
    ],
)
def test_a_damaged_manifest_is_one_sentence(manifest: str, models: Path) -> None:
    place = models / "manifests" / "registry.ollama.ai" / "library" / "gemma3" / "4b"
    place.parent.mkdir(parents=True)
    place.write_text(manifest)
    with pytest.raises(CheckpointError, match="4b") as raised:
        locate("ollama:gemma3:4b")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [np.zeros(0, bool), np.zeros(3, np.int32), ["gemma3", "gemma3"], 3, True])
@pytest.mark.parametrize("key", ["general.type", "general.architecture", "split.count", "adapter.type"])
def test_metadata_of_another_type_are_no_crash(key: str, value: Any, tmp_path: Path) -> None:
    file = open_gguf(write_tiny_gguf(tmp_path / "model.gguf"))
    tensors = [GgufTensor(name, info.shape, "F32", [file.read(name)]) for name, info in file.tensors.items()]
    write_gguf(tmp_path / "changed.gguf", {**file.metadata, key: value}, tensors)
    for read in (open_checkpoint, open_adapter):
        with suppress(GemwrightError):
            read(tmp_path / "changed.gguf")
