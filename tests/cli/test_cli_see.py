"""`gemwright see`, and images in `gemwright chat`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.tiny.hf import write_model


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "paligemma", "paligemma")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gemma3", "gemma3")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(place)
    return place


def test_a_picture_is_described_and_drawn_on(run: Run, seeing: Path, photo: Path, tmp_path: Path):
    made = tmp_path / "made.png"
    told = run("see", photo, "detect cat", "--model", seeing, "--max-tokens", 8, "--draw", made, "--json")
    assert told.code == 0
    record = json.loads(told.out)
    assert record["prompt"] == "detect cat"
    assert isinstance(record["found"], list)
    with Image.open(made) as drawn:
        assert drawn.size == (90, 60)
    plain = run("see", photo, "detect cat", "--model", seeing, "--max-tokens", 8)
    assert plain.out == record["text"] + "\n"


def test_a_conversation_takes_pictures(run: Run, talking: Path, photo: Path):
    given = ["chat", "--model", talking, "--max-tokens", 4, "--temperature", 0, "--json"]
    seen = [run(*given, *image, stdin=b"the cat\n") for image in ([], ["--image", photo])]
    assert [result.code for result in seen] == [0, 0]
    without, with_picture = (json.loads(result.out) for result in seen)
    assert with_picture["prompt_tokens"] > without["prompt_tokens"]


def test_an_answer_is_scored_behind_a_picture(run: Run, seeing: Path, photo: Path):
    given = ["score", "the cat", "--prompt", "answer", "--model", seeing, "--json"]
    blind, seen = (json.loads(run(*given, *image).out) for image in ([], ["--image", photo]))
    assert seen["tokens"] == blind["tokens"]
    assert seen["logprobs"] != blind["logprobs"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.png", "caption"], "missing.png"),
        (["https://example.org/cat.png", "caption"], "save the picture"),
        (["{photo}", "caption", "--pan-and-scan"], "Pan and scan is for Gemma 3"),
        (["{photo}", "segment", "--mask-decoder", "none.npz"], "none.npz"),
        (["{seeing}/config.json", "caption"], "config.json"),
    ],
    ids=["no file", "an address", "no crops", "no decoder", "no picture"],
)
def test_what_cannot_be_done_is_said(run: Run, seeing: Path, photo: Path, arguments: list[str], sentence: str):
    filled = [argument.format(photo=photo, seeing=seeing) for argument in arguments]
    told = run("see", *filled, "--model", seeing)
    assert told.code == 2
    assert sentence in told.err
    assert told.err.count("\n") == 1


def test_a_blind_model_says_so(run: Run, tiny: Path, photo: Path):
    told = run("see", photo, "caption", "--model", tiny)
    assert told.code == 2
    assert "sees no pictures" in told.err
