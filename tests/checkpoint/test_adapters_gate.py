"""The check of merged models: what is written runs beside adapter and base."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.quantize import quantize
from gemwright.cli import files
from gemwright.errors import GemwrightError
from gemwright.loading.gate import FLOOR, MARGIN, Comparison, checked, compare, rounding_error
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.hf import write_model

Format = Literal["huggingface", "gguf"]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gate") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return write_tiny_adapter(base.parent / "adapter", open_checkpoint(base).config, str(base))


@pytest.fixture(scope="module")
def write(base: Path, adapter: Path) -> Callable[..., Path]:
    def write(target: Path, to: Format, dtype: str, weight: float = 1.0) -> Path:
        convert(base, target, to, dtype, adapters={adapter: weight})
        return target

    return write


@pytest.mark.parametrize(
    ("to", "dtype", "times"),
    [
        ("huggingface", "float32", 1.1),
        ("huggingface", "bfloat16", 1.3),
        ("gguf", "float16", 1.1),
        ("gguf", "q8_0", 1.5),
        ("gguf", "q4_0", 6),
    ],
)
def test_a_correct_merge_passes_and_a_wrong_one_does_not(
    write: Callable[..., Path], base: Path, adapter: Path, tmp_path: Path, to: Format, dtype: str, times: float
) -> None:
    """The wrong one has so many times the update. Rounding to blocks has about the error of the random ones."""
    right = compare(base, write(tmp_path / "right", to, dtype), dtype, {adapter: 1.0})
    assert right.passes
    assert right.bound.typical == FLOOR or 0.6 < right.found.typical / (right.bound.typical / MARGIN) < 1.4
    assert right.agreement == 1.0 or dtype != "float32"
    wrong = compare(base, write(tmp_path / "wrong", to, dtype, weight=times), dtype, {adapter: 1.0})
    assert wrong.bound == right.bound
    assert not wrong.passes


@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_only_a_model_that_fails_is_removed(
    write: Callable[..., Path], base: Path, adapter: Path, tmp_path: Path, to: Format
) -> None:
    (tmp_path / "mine").write_text("keep")
    target, reports = tmp_path / "model", list[Comparison]()
    with (
        pytest.raises(GemwrightError, match="was removed, as it is not its source rounded to float32"),
        checked(base, target, "float32", {adapter: 1.0}, reports.append),
    ):
        write(target, to, "float32", weight=0.5)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    assert not reports


def test_a_target_that_exists_is_not_removed(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with (
        pytest.raises(GemwrightError, match="exists"),
        checked(base, tmp_path / "model", None, {adapter: 1.0}, print),
    ):
        convert(base, tmp_path / "model", "huggingface", adapters={adapter: 1.0})
    assert (tmp_path / "model").is_dir()


def test_the_command_prints_the_comparison(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.convert(str(base), tmp_path / "merged.gguf", "gguf", adapter=[str(adapter)])
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'merged.gguf'}\n"
    assert "Checked: log-probabilities of" in printed.err
    assert "100% of the tokens of greedy continuations agree" in " ".join(printed.err.split())


@pytest.mark.slow
def test_a_quantized_base_is_checked(base: Path, adapter: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "base", 8)
    convert(tmp_path / "base", tmp_path / "merged", "huggingface", "bfloat16", adapters={adapter: 1.0})
    comparison = compare(tmp_path / "base", tmp_path / "merged", "bfloat16", {adapter: 1.0})
    assert comparison.passes
    assert comparison.found.typical > comparison.bound.typical / MARGIN / 3


def test_rounding_errors_are_those_of_the_formats() -> None:
    """A bfloat16 has 8 significant bits; a block of Q8_0 steps of 1/127 of its largest value."""
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    assert rounding_error("F32", values) == 0
    assert 2.0**-10.5 < rounding_error("BF16", values) < 2.0**-9
    assert rounding_error("Q8_0", values) == pytest.approx(2.2 / 127 / np.sqrt(12), rel=0.2)
    errors = [rounding_error(encoding, values) for encoding in ("Q8_0", "Q5_K", "Q4_K", "Q2_K")]
    assert errors == sorted(errors)
    assert errors[-1] < 0.4
