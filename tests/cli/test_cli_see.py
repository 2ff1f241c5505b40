"""`gemwright see`, and images in `gemwright chat`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemwright.images.drawing import save_image
from tests.cli.conftest import Run
from tests.tiny.hf import write_model


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "paligemma", "paligemma")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gemma3", "gemma3")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    return path


def test_answer_is_drawn(run: Run, paligemma: Path, photo: Path, tmp_path: Path):
    drawing = tmp_path / "drawing.png"
    result = run("see", photo, "detect cat", "--model", paligemma, "--max-tokens", 8, "--draw", drawing, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["prompt"] == "detect cat"
    assert isinstance(record["found"], list)
    with Image.open(drawing) as drawn:
        assert drawn.size == (90, 60)
    plain = run("see", photo, "detect cat", "--model", paligemma, "--max-tokens", 8)
    assert plain.out == record["text"] + "\n"


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_drawing_has_the_format_of_its_suffix(suffix: str, kind: str, tmp_path: Path):
    path = tmp_path / f"drawing.{suffix}"
    (tmp_path / f"drawing.{suffix}.partial").write_text("mine")
    save_image(np.full((40, 60, 3), 200, np.uint8), path)
    with Image.open(path) as drawn:
        assert (drawn.format, drawn.size) == (kind, (60, 40))
        assert abs(int(np.asarray(drawn.convert("RGB")).mean()) - 200) <= 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.partial"]


def test_image_of_standard_input(run: Run, paligemma: Path, photo: Path, tmp_path: Path):
    options = ("detect cat", "--model", paligemma, "--max-tokens", 4, "--json")
    plain, piped = run("see", photo, *options), run("see", "-", *options, stdin=photo.read_bytes())
    assert (piped.code, piped.err) == (0, "")
    assert json.loads(piped.out)["tokens"] == json.loads(plain.out)["tokens"]


def test_chat_with_an_image(run: Run, gemma3: Path, photo: Path):
    arguments = ["chat", "--model", gemma3, "--max-tokens", 4, "--temperature", 0, "--json"]
    results = [run(*arguments, *image, stdin=b"the cat\n") for image in ([], ["--image", photo])]
    assert [result.code for result in results] == [0, 0]
    without, with_image = (json.loads(result.out) for result in results)
    assert with_image["prompt_tokens"] > without["prompt_tokens"]


def test_score_after_an_image(run: Run, paligemma: Path, photo: Path):
    arguments = ["score", "the cat", "--prompt", "answer", "--model", paligemma, "--json"]
    without, with_image = (json.loads(run(*arguments, *image).out) for image in ([], ["--image", photo]))
    assert with_image["tokens"] == without["tokens"]
    assert with_image["logprobs"] != without["logprobs"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.png", "caption"], "missing.png"),
        (["https://example.org/cat.png", "caption"], "save the"),
        (["{photo}", "caption", "--pan-and-scan"], "is for Gemma 3"),
        (["{photo}", "segment", "--mask-decoder", "none.npz"], "none.npz"),
        (["{paligemma}/config.json", "caption"], "config.json"),
    ],
    ids=["no file", "a URL", "no crops", "no decoder", "not an image"],
)
def test_errors(run: Run, paligemma: Path, photo: Path, arguments: list[str], sentence: str):
    filled = [argument.format(photo=photo, paligemma=paligemma) for argument in arguments]
    result = run("see", *filled, "--model", paligemma)
    assert result.code == 2
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_model_without_vision(run: Run, tiny: Path, photo: Path):
    result = run("see", photo, "caption", "--model", tiny)
    assert result.code == 2
    assert "does not accept images" in result.err
