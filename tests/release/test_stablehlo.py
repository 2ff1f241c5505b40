"""StableHLO programs: read by a process that has jax and safetensors, and not gemwright."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemwright
from gemwright.errors import GemwrightError
from gemwright.release.stablehlo import export_stablehlo
from gemwright.release.targets import MANIFEST, ExportOptions
from gemwright.release.verify.source import verify_against
from tests.release.models import write_small_gguf

pytest.importorskip("flatbuffers")
pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPT = [2, 330, 340, 350, 360, 331, 341]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = write_small_gguf(tmp_path_factory.mktemp("stablehlo") / "small.gguf", "gemma2")
    folder = source.parent / "exported"
    export_stablehlo(source, folder, ExportOptions(context=64), lambda line: None)
    return source, folder


def run_alone(folder: Path, *arguments: str) -> str:
    """Run `run.py` with the installed packages but without gemwright; -S leaves out what `.pth` files add."""
    places = [place for place in sys.path if place and not (Path(place) / "gemwright").exists()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"}
    check = f"import sys, runpy; sys.argv = {['run.py', *arguments]!r}; sys.modules['gemwright'] = None; "
    code = f"{check}runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_process_without_gemwright_gives_the_same_tokens(exported: tuple[Path, Path]) -> None:
    source, folder = exported
    expected = gemwright.load(source, dtype="float32").generate(PROMPT, max_tokens=40, temperature=0.0).tokens
    found = [int(word) for word in run_alone(folder, "--ids", *map(str, PROMPT)).split()]
    assert found == expected[: len(found)]
    assert len(found) >= 20 or expected[len(found)] == 1


def test_the_folder_describes_itself(exported: tuple[Path, Path]) -> None:
    _, folder = exported
    about = json.loads((folder / MANIFEST).read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["sizes"] == [1, 32]
    assert {file.name for file in folder.iterdir()} == {
        *(MANIFEST, "run.py", "step_1.stablehlo", "step_32.stablehlo", "tokenizer.json", "tokenizer.model"),
        "weights.safetensors",
    }


@pytest.mark.slow
def test_another_model_and_damage_are_found(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = exported
    other = write_small_gguf(tmp_path / "other.gguf", "gemma2", seed=1)
    report = verify_against(folder, other)
    assert [check.result for check in report.checks] == ["failed", "failed"]
    (folder / "step_1.stablehlo").write_bytes(b"damaged")
    with pytest.raises(GemwrightError, match="has programs that cannot be read"):
        verify_against(folder, source)


def test_wrong_options_are_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = exported
    with pytest.raises(GemwrightError, match="choose f32 or bf16"):
        export_stablehlo(source, tmp_path / "a", ExportOptions(weights="int3"), print)
    with pytest.raises(GemwrightError, match="choose 1 to 1024 tokens"):
        export_stablehlo(source, tmp_path / "a", ExportOptions(context=5000), print)
