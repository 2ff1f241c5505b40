"""Averages of models against float64 arithmetic, mergekit's spherical interpolation, and the average of a run."""

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gemwright.checkpoint.average import open_average, slerp_coefficients
from gemwright.checkpoint.convert import convert, write_checkpoint
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.release.verify.conversion import checked_average
from gemwright.text.vocabulary import Vocabulary
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train
from tests.cli.conftest import Run, run
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.hf import make_model, write_model
from tests.tiny.vocabulary import make_vocabulary
from tests.train.tiny_run import write_data

__all__ = ["run"]
pytestmark = pytest.mark.usefixtures("quick_compilation")


def write_tuned(folder: Path, base: Path, kind: str = "gemma3_text", seed: int = 1, dtype: Any = torch.float32) -> Path:
    """Write a model that is the tiny one of a kind with a random change of each weight."""
    model = make_model(kind)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(folder)
    shutil.copy(base / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and three models that were tuned from it."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "base")
    for seed, name in enumerate("abc", 1):
        write_tuned(folder / name, folder / "base", seed=seed)
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def write(target: Path, *names: Path, dtype: str = "float32", **options: Any) -> dict[str, np.ndarray]:
    average = open_average([str(name) for name in names], **options)
    with checked_average(average, target, lambda found: None):
        write_checkpoint(average, target, "huggingface", dtype)
    return read(target)


def slerp(t: float, v0: np.ndarray, v1: np.ndarray) -> np.ndarray:
    """Interpolate as mergekit does (mergekit/merge_methods/slerp.py), in float64."""
    unit0, unit1 = v0 / np.linalg.norm(v0), v1 / np.linalg.norm(v1)
    dot = np.sum(unit0 * unit1)
    if abs(dot) > 0.9995:
        return (1 - t) * v0 + t * v1
    whole = np.arccos(dot)
    part = whole * t
    return np.sin(whole - part) / np.sin(whole) * v0 + np.sin(part) / np.sin(whole) * v1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mean_is_that_of_float64_rounded(models: Path, tmp_path: Path, dtype: str) -> None:
    found = write(tmp_path / "mean", *(models / name for name in "abc"), weights=[0.5, 0.2, 0.3], dtype=dtype)
    parts = [read(models / name) for name in "abc"]
    assert found.keys() == parts[0].keys()
    for name, values in found.items():
        expected = sum(w * part[name].astype(np.float64) for w, part in zip((0.5, 0.2, 0.3), parts, strict=True))
        expected = np.asarray(expected, np.float32)
        rounded = expected if dtype == "float32" else expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(values, rounded)


def test_slerp_is_that_of_mergekit(models: Path, tmp_path: Path) -> None:
    found = write(tmp_path / "slerp", models / "a", models / "b", method="slerp", weights=[0.7, 0.3])
    first, second = read(models / "a"), read(models / "b")
    for name, values in found.items():
        expected = slerp(0.3, first[name].astype(np.float64), second[name].astype(np.float64))
        np.testing.assert_allclose(values, expected.astype(np.float32), rtol=1e-6, atol=1e-9)


def test_warp_interpolates_task_vectors_one_after_another(models: Path, tmp_path: Path) -> None:
    """The third model's share is a third, and 0.3 of the result is added to the base (arXiv:2406.16768)."""
    names = [models / name for name in "abc"]
    found = write(tmp_path / "warp", *names, method="slerp", base=str(models / "base"), eta=0.3)
    base = read(models / "base")
    for name, values in found.items():
        start = base[name].astype(np.float64)
        first, second, third = (read(path)[name].astype(np.float64) - start for path in names)
        expected = start + 0.3 * slerp(1 / 3, slerp(1 / 2, first, second), third)
        np.testing.assert_allclose(values, expected.astype(np.float32), rtol=1e-6, atol=1e-9)


@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_slerp_of_vectors_of_one_length_keeps_it(count: int, size: int, seed: int, equal: bool) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, size + 1))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.repeat(vectors[:1], count, axis=0) if equal else vectors
    weights = random.dirichlet(np.ones(count)) + 1e-3
    weights = (weights / weights.sum()).tolist()
    result = slerp_coefficients(vectors @ vectors.T, weights) @ vectors
    expected, total = vectors[0], weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total += weight
        expected = slerp(weight / total, expected, vector)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    if equal:
        np.testing.assert_allclose(result, vectors[0], atol=1e-12)


def test_a_zero_vector_is_interpolated_linearly() -> None:
    vectors = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(slerp_coefficients(vectors @ vectors.T, [0.75, 0.25]), [0.75, 0.25])


def test_formats_may_differ(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file, whose gains have an offset, and a folder; tensors are read a few rows at a time."""
    convert(models / "b", tmp_path / "b.gguf", "gguf", "float32")
    monkeypatch.setattr("gemwright.checkpoint.load.READ_CHUNK", 1000)
    found = write(tmp_path / "mixed", models / "a", tmp_path / "b.gguf")
    first, second = read(models / "a"), read(models / "b")
    for name, values in found.items():
        np.testing.assert_allclose(values, (first[name] + second[name]) / 2, atol=1e-7)


def test_transposed_tensors(tmp_path: Path) -> None:
    """The convolution of RecurrentGemma has other axes in a folder than here."""
    write_model(tmp_path / "a", "recurrent_gemma")
    write_tuned(tmp_path / "b", tmp_path / "a", "recurrent_gemma")
    found = write(tmp_path / "mean", tmp_path / "a", tmp_path / "b", method="slerp")
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert any("conv_1d.weight" in name for name in found)
    for name, values in found.items():
        one, other = first[name].astype(np.float64), second[name].astype(np.float64)
        if one.any():
            np.testing.assert_allclose(values, slerp(0.5, one, other), rtol=1e-5, atol=1e-8)


def test_adapters_of_one_base(models: Path, tmp_path: Path) -> None:
    """Their mean is that of the models that they are merged into."""
    config, paths = open_checkpoint(models / "base").config, []
    for seed in range(2):
        adapter = write_tiny_adapter(tmp_path / f"adapter{seed}", config, str(models / "base"), seed)
        convert(models / "base", tmp_path / f"merged{seed}", "huggingface", adapters={adapter: 1.0})
        paths.append(adapter)
    found = write(tmp_path / "mean", *paths)
    first, second = read(tmp_path / "merged0"), read(tmp_path / "merged1")
    assert any(np.any(first[name] != second[name]) for name in found)
    for name, values in found.items():
        np.testing.assert_array_equal(values, ((first[name].astype(np.float64) + second[name]) / 2).astype(np.float32))


@pytest.mark.slow
def test_the_average_of_a_run_is_that_of_its_steps(models: Path, tmp_path: Path) -> None:
    """With a decay of 0.75, the start has a weight of 0.75^2, the first step 0.75 x 0.25, and the second 0.25."""
    data = write_data(tmp_path / "train.jsonl")
    settings = {"method": "full", "length": 32, "batch_size": 2, "schedule": "constant", "warmup": 0.0}

    def run(name: str, **others: Any) -> Path:
        recipe = Recipe(**settings | {"learning_rate": 1e-2} | others)
        return train(prepare(models / "base", data, tmp_path / name, recipe, held_out=0.0))

    steps = [models / "base", run("one", steps=1), run("two", steps=2)]
    found = write(tmp_path / "mean", *steps, weights=[0.75**2, 0.75 * 0.25, 0.25])
    expected = read(run("average", steps=2, ema=0.75))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-7)


def test_models_that_differ_are_refused(models: Path, tmp_path: Path) -> None:
    other, vocabulary = tmp_path / "other", make_vocabulary()
    write_model(tmp_path / "gemma2", "gemma2")
    with pytest.raises(GemwrightError, match=r"gemma2 is of another shape .*: .*qk_norm False instead of True"):
        open_average([str(models / "a"), str(tmp_path / "gemma2")])
    shutil.copytree(models / "a", other)
    pieces = ["zz" if piece == "the" else piece for piece in vocabulary.pieces]
    changed = Vocabulary(tuple(pieces), vocabulary.scores, vocabulary.kinds)
    (other / "tokenizer.model").write_bytes(changed.sentencepiece_model())
    with pytest.raises(GemwrightError, match=r"vocabularies differ: token .* is 'the' and that of .*other is 'zz'"):
        open_average([str(models / "a"), str(other)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [0.5, 0.6]}, "sum to 1.1; give numbers that sum to 1"),
        ({"weights": [1.0]}, "1 weights .* for 2 models"),
        ({"weights": [float("nan"), 1.0]}, "sum to nan"),
        ({"weights": [1.5, -0.5], "method": "slerp"}, "not all above 0"),
        ({"eta": 0.5}, "leaves a share to the base"),
        ({"eta": 1.5, "base": "base"}, "a share between 0"),
    ],
)
def test_numbers_that_are_not_valid(models: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GemwrightError, match=message):
        open_average([str(models / "a"), str(models / "b")], **options)


def test_a_file_that_differs_is_removed(models: Path, tmp_path: Path) -> None:
    average = open_average([str(models / "a"), str(models / "b")])
    other = open_average([str(models / "a"), str(models / "b")], weights=[0.4, 0.6])
    with pytest.raises(GemwrightError, match="was removed"), checked_average(average, tmp_path / "mean", print):
        write_checkpoint(other, tmp_path / "mean", "huggingface", "float32")
    assert not (tmp_path / "mean").exists()


def test_the_command(models: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("merge", models / "a", models / "b", "--method", "slerp", "--base", models / "base")
    done = run(*arguments, "--weights", "0.25,0.75", "--to", tmp_path / "model.gguf", "--dtype", "q8_0")
    assert (done.code, done.out) == (0, f"{tmp_path / 'model.gguf'}\n")
    assert "Checked: 13 of 28 weights are equal bit for bit; 15 are quantized" in done.err
    again = run(*arguments, "--to", tmp_path / "model.gguf")
    assert (again.code, again.err) == (2, f"gemwright: {tmp_path / 'model.gguf'} exists; choose another name.\n")
    assert run(*arguments, "--weights", "half", "--to", tmp_path / "x").code == 2
