"""Run every example with a tiny model."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.documents import ROOT
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

pytestmark = pytest.mark.usefixtures("quick_compilation")
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template="{{ messages }}")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs an example and returns its standard output."""

    def run_example(name: str, *arguments: object, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_generate(run, tiny: Path):
    lines = run("generate.py", "the hen", "--model", tiny, "--max-tokens", 4).splitlines()
    assert lines[-1] == "4 tokens, finish reason: length"


def test_chat(run, tiny: Path):
    lines = run("chat.py", "--model", tiny, "--system", "be good", "--max-tokens", 4, stdin="hello\nand\n").splitlines()
    assert len(lines) == 2


def test_batch(run, tiny: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("the\nhen\n")
    output = run("batch.py", tmp_path / "prompts.txt", "--model", tiny, "--max-tokens", 4)
    records = [json.loads(line) for line in output.splitlines()]
    assert [record["prompt"] for record in records] == ["the", "hen"]
    assert {record["finish_reason"] for record in records} == {"length"}


def test_convert(run, tiny: Path, tmp_path: Path):
    plain = run("convert.py", tiny, tmp_path / "plain")
    assert plain.splitlines()[0].split()[0] == plain.splitlines()[1].split()[0]
    sizes = [float(line.split()[0]) for line in run("convert.py", tiny, tmp_path / "small", "--bits", 8).splitlines()]
    assert sizes[1] < sizes[0]


def test_draft_model(run, tiny: Path):
    lines = run("draft_model.py", "the hen", "--model", tiny, "--draft", tiny, "--max-tokens", 8).splitlines()
    assert lines[0] == lines[2]
    assert lines[1].endswith("0 of 0 draft tokens accepted")


def test_images(run, tmp_path: Path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.png")
    model = write_model(tmp_path / "paligemma", "paligemma")
    record = json.loads(run("images.py", tmp_path / "photo.png", "detect cat", "--model", model, "--max-tokens", 4))
    assert isinstance(record["answer"], str)


def test_draw_locations(run, tmp_path: Path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.png")
    answer = "<loc0051><loc0102><loc0920><loc0767> cat"
    (found,) = json.loads(run("draw_locations.py", tmp_path / "photo.png", answer, tmp_path / "out.png"))
    assert found["label"] == "cat"
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (30, 20)


def test_notebook(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text())
    assert (notebook["nbformat"], {cell["cell_type"] for cell in notebook["cells"]}) == (4, {"code", "markdown"})
    (tmp_path / "gemma-3-270m").mkdir()
    (tmp_path / "gemma-3-270m" / "model.gguf").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), namespace)
    assert "Mat the on sat cat the." in capsys.readouterr().out


def test_every_example_is_short_and_tested():
    for name in EXAMPLES:
        assert f"def test_{name.removesuffix('.py')}(" in Path(__file__).read_text(), name
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 50
