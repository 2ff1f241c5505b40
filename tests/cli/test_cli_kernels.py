"""The command line without the C++ kernels."""

import json
from pathlib import Path

import pytest

from gemwright.kernels import native

pytest.importorskip("gemwright_native", reason="the C++ kernels are not installed")


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gemwright_native._library._LIBRARY", tmp_path / "libgemwright_native.so")


def test_loading_prints_one_warning(run, tiny: Path):
    result = run("generate", "a", "-m", tiny, "--temperature", 0, "--max-tokens", 2)
    assert result.code == 0
    assert result.err == f"gemwright: {native.MISSING}\n"


def test_doctor_reports_it(run):
    report = json.loads(run("doctor", "--json").out)
    assert native.MISSING in report["warnings"]
    assert report["dtype"] == "float32"
