"""What export to LiteRT refuses, without LiteRT."""

import os
from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.release.litert import export as module
from gemwright.release.litert.export import export
from gemwright.release.targets import ExportOptions
from gemwright.runtime.child import Report, run_in_child
from tests.tiny.gguf import write_tiny_gguf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("q4_k_m"), "no weights 'q4_k_m'"),
        (ExportOptions(context=100_000), "--context is 100000"),
        (ExportOptions(context=200), "above 128 in multiples"),
        (ExportOptions(context=1), "--context is 1"),
    ],
)
def test_options(options: ExportOptions, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PACKAGES", ())
    source = write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(GemwrightError, match=message):
        export(source, tmp_path / "model.tflite", options, print)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_target_that_exists_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PACKAGES", ())
    target = tmp_path / "model.tflite"
    target.write_text("mine")
    with pytest.raises(GemwrightError, match="exists"):
        export(write_tiny_gguf(tmp_path / "model.gguf"), target, ExportOptions(), print)
    assert target.read_text() == "mine"


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PACKAGES", ("no_such_package",))
    with pytest.raises(GemwrightError, match=r"no_such_package; run: pip install"):
        export(tmp_path / "model.gguf", tmp_path / "model.tflite", ExportOptions(), print)


def _end_the_process(report: Report) -> None:
    report("starting")
    os.write(1, b"a library failed")
    os.abort()


def _refuse(report: Report) -> None:
    raise GemwrightError("No.")


def test_a_library_that_ends_its_process_gives_a_sentence(tmp_path: Path):
    said: list[str] = []
    with pytest.raises(GemwrightError, match="ended by signal"):
        run_in_child(_end_the_process, log=tmp_path / "log", report=said.append)
    assert said == ["starting"]
    assert "a library failed" in (tmp_path / "log").read_text()
    with pytest.raises(GemwrightError, match=r"No\."):
        run_in_child(_refuse, log=tmp_path / "log", report=said.append)
