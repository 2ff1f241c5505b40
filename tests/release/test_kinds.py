"""Releases of models, quantized models and exports, and the licenses of the families."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gemwright.errors import GemwrightError
from gemwright.families import FAMILIES
from gemwright.release.publishing.checks import check_release
from gemwright.release.publishing.croissant import prepare_data
from gemwright.release.publishing.notices import APACHE, GEMMA, find_license
from gemwright.release.publishing.page import read_page
from gemwright.release.publishing.prepare import Options, prepare
from gemwright.release.publishing.results import find_dataset
from tests.documents import ROOT
from tests.release.made import BASE, Made, make_terms
from tests.tiny.gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    return make_terms(tmp_path / "saved.html")


def data_of(folder: Path) -> dict:
    return ModelCard((folder / "README.md").read_text()).data.to_dict()


def test_gguf_file(terms: Path, tmp_path: Path):
    source = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template="{{ messages }}")
    prepare(source, tmp_path / "out", Options(base=BASE, terms=terms))
    assert check_release(tmp_path / "out") == []
    data = data_of(tmp_path / "out")
    assert data["library_name"] == "gguf"
    assert "base_model_relation" not in data
    text = (tmp_path / "out" / "README.md").read_text()
    assert "No training was recorded: the weights are those of the base model." in text
    assert "$ gemwright chat --model out\n" in text


def test_export_for_another_runtime(terms: Path, tmp_path: Path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.tflite").write_bytes(b"TFL3" * 100)
    (tmp_path / "export" / ".hidden").write_text("hidden")
    prepare(tmp_path / "export", tmp_path / "out", Options(base=BASE, terms=terms))
    assert check_release(tmp_path / "out") == []
    assert data_of(tmp_path / "out")["library_name"] == "litert"
    assert not (tmp_path / "out" / ".hidden").exists()


def test_gemma_4_is_under_apache(tmp_path: Path):
    """No family of it is run yet, but files of it can be published."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.litertlm").write_bytes(b"x" * 100)
    out = tmp_path / "out"
    prepare(tmp_path / "export", out, Options(base="google/gemma-4-E2B-it"))
    assert check_release(out) == []
    assert data_of(out)["license"] == "apache-2.0"
    assert (out / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (out / "NOTICE").read_text().startswith("Modified from google/gemma-4-E2B-it: converted")
    assert not (out / "GEMMA_TERMS_OF_USE.txt").exists()
    assert "Gemma Terms" not in (out / "README.md").read_text()
    (out / "LICENSE").write_text("All rights reserved." * 200)
    assert any("LICENSE is no copy of the Apache-2.0 license" in problem for problem in check_release(out))


def test_licenses_of_families():
    assert {find_license("google/x", family) for family in FAMILIES} == {GEMMA}
    for name in ("google/gemma-4-31b-it", "google/Gemma4-E4B", "gemma-4"):
        assert find_license(name, None) is APACHE
    for name in ("google/gemma-40b", "google/gemma-4.5b-x", "other/model"):
        with pytest.raises(GemwrightError, match="is no published model that is known here"):
            find_license(name, None)


def test_terms_must_be_the_terms(tmp_path: Path):
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "wrong.txt").write_text("All rights reserved. " * 200)
    with pytest.raises(GemwrightError, match="is no copy of the Gemma Terms of Use; save the page"):
        prepare(source, tmp_path / "out", Options(base=BASE, terms=tmp_path / "wrong.txt"))
    with pytest.raises(GemwrightError, match="is no copy"):
        prepare(source, tmp_path / "out", Options(base=BASE, terms=tmp_path / "missing.txt"))


def test_base_is_suggested(tmp_path: Path):
    with pytest.raises(GemwrightError, match="is not known; add --base, such as google/gemma-3-270m"):
        prepare(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "out", Options())


def test_folder_of_a_quantized_model(terms: Path, tmp_path: Path):
    """Its tensors keep their description in the metadata, and it can still be opened."""
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.checkpoint.quantize import quantize

    quantize(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "int8", 8)
    (tmp_path / "int8" / "report.json").write_text(json.dumps({"something": "else"}))
    prepare(tmp_path / "int8", tmp_path / "out", Options(base=BASE, terms=terms))
    assert check_release(tmp_path / "out") == []
    assert data_of(tmp_path / "out")["base_model_relation"] == "quantized"
    assert open_checkpoint(tmp_path / "out").quantized


def test_page_without_its_menus(tmp_path: Path):
    page = "<html><nav>menu</nav><p>before</p><article>x<h1>Terms <i>of</i>\nUse</h1><script>a<b</script><ul><li>one"
    (tmp_path / "page.html").write_text(f"{page}</li><li>two</li></ul></article>after</html>")
    assert read_page(tmp_path / "page.html") == "Terms of Use\n- one\n- two\n"


@pytest.mark.parametrize(
    ("task", "dataset"),
    [
        ("mmlu", "cais/mmlu"),
        ("mmlu_pro", "TIGER-Lab/MMLU-Pro"),
        ("mmlu_professional_law", "cais/mmlu"),
        ("arc_easy", "allenai/ai2_arc"),
        ("minerva_math500", "HuggingFaceH4/MATH-500"),
        ("gemwright_humaneval", "openai/openai_humaneval"),
        ("piqant", None),
        ("my_task", None),
    ],
)
def test_data_sets_of_tasks(task: str, dataset: str | None):
    assert find_dataset(task) == dataset


def test_one_part_of_several_is_refused(terms: Path, tmp_path: Path):
    source = write_tiny_gguf(tmp_path / "tiny-00001-of-00002.gguf")
    with pytest.raises(GemwrightError, match=r"is one of several parts|missing"):
        prepare(source, tmp_path / "out", Options(base=BASE, terms=terms))


@pytest.mark.parametrize("license_name", ["mit", "https://example.com/license"])
def test_filtered_data(tuned: Made, answers: Path, tmp_path: Path, license_name: str):
    """Their metadata are read by mlcroissant in test_peers.py."""
    answers.write_text(f"data_license = '{license_name}'\n{answers.read_text()}")
    prepare_data(tuned.folder / "clean", tmp_path / "hens", None, answers)
    assert check_release(tmp_path / "hens") == []
    data = data_of(tmp_path / "hens")
    assert data["license"] == ("mit" if license_name == "mit" else "other")
    document = json.loads((tmp_path / "hens" / "croissant.json").read_text())
    (file,) = document["distribution"]
    assert file["sha256"] == hashlib.sha256((tmp_path / "hens" / file["contentUrl"]).read_bytes()).hexdigest()
    assert "exact (1 removed, 0 edited)" in document["rai:dataPreprocessingProtocol"]


def test_data_that_cannot_be_published(tuned: Made, answers: Path, tmp_path: Path):
    with pytest.raises(GemwrightError, match="an answer to data and data_license"):
        prepare_data(tuned.folder / "clean", tmp_path / "out", None, answers)
    answers.write_text(f"data_license = 'mit'\n{answers.read_text()}")
    folder = Path(shutil.copytree(tuned.folder / "clean", tmp_path / "clean"))
    report = json.loads((folder / "report.json").read_text())
    report["steps"] = [step for step in report["steps"] if step["step"] != "personal"]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(GemwrightError, match="was not searched for personal data"):
        prepare_data(folder, tmp_path / "out", None, answers)
    assert not (tmp_path / "out").exists()
