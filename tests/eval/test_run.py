"""`gemwright eval` on a tiny model: the scores are lm-eval's, interrupted runs continue, wrong input is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gemwright.cli.app import app
from gemwright.eval.responses import Responses
from tests.tiny.hf import write_model

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore")]
WORDS = ["the cat", "and the thing", "in the other", "then. Nothing", "over there"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gemma3", "gemma3_text")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    piqa = [
        {"goal": WORDS[i % 5], "sol1": WORDS[(i + 1) % 5], "sol2": WORDS[(i + 2) % 5], "label": i % 2} for i in range(9)
    ]
    trivia = [{"question": f"{WORDS[i % 5]}?", "answer": {"aliases": ["the"]}} for i in range(8)]
    for name, records in (("piqa", piqa), ("triviaqa", trivia)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run(model: Path, data: Path, out: Path, *arguments: str) -> Any:
    command = ["eval", str(model), "--suite", "gemma3", "--data", str(data), "--out", str(out), *arguments]
    return CliRunner().invoke(app, command)


def test_scores_are_kept_and_continued(model: Path, data: Path, tmp_path: Path):
    first = run(model, data, tmp_path, "--tasks", "piqa,triviaqa", "--shots", "2", "--dtype", "float32")
    assert first.exit_code == 0, first.output
    report = json.loads((tmp_path / "results.json").read_text())
    assert [row["benchmark"] for row in report["results"]] == ["PIQA", "TriviaQA"]
    samples = [json.loads(line) for line in (tmp_path / "samples/piqa.jsonl").read_text().splitlines()]
    assert len(samples) == 9
    likelihoods = [[response[0][0] for response in sample["resps"]] for sample in samples]
    lengths = [[len(choice) for choice in (sample["doc"]["sol1"], sample["doc"]["sol2"])] for sample in samples]
    chosen = np.argmax(np.array(likelihoods, float) / np.array(lengths), axis=1)
    assert report["results"][0]["value"] == np.mean(chosen == [sample["doc"]["label"] for sample in samples])
    # A run that was killed: the responses to half of the requests, and half a line.
    whole = (tmp_path / "responses.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "responses.jsonl").write_text("".join(whole[: len(whole) // 2]) + whole[-1][:20])
    again = run(model, data, tmp_path, "--tasks", "piqa,triviaqa", "--shots", "2", "--dtype", "float32")
    assert again.exit_code == 0
    assert sorted((tmp_path / "responses.jsonl").read_text().splitlines(keepends=True)) == sorted(whole)
    assert json.loads((tmp_path / "results.json").read_text()) == report


def test_items_are_drawn(model: Path, data: Path, tmp_path: Path):
    found = run(model, data, tmp_path, "--tasks", "piqa", "--limit", "4", "--shots", "0")
    assert "4 of 9 items" in found.output
    assert "| 4 of 9 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "nothing"], "The suite gemma3 has no benchmark 'nothing'"),
        (["--tasks", "boolq"], "has no files for BoolQ"),
    ],
)
def test_wrong_names(model: Path, data: Path, tmp_path: Path, arguments: list[str], sentence: str):
    found = run(model, data, tmp_path, *arguments)
    assert sentence in str(found.exception)


def test_responses_of_another_model_are_not_mixed(tmp_path: Path):
    Responses(tmp_path, {"model": "a"}).close()
    with pytest.raises(ValueError, match="another model"):
        Responses(tmp_path, {"model": "b"})


def test_folders_of_something_else_are_left_alone(model: Path, data: Path, tmp_path: Path):
    (tmp_path / "report.md").write_text("mine")
    found = run(model, data, tmp_path, "--tasks", "piqa")
    assert "has files that are not of a benchmark run" in str(found.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
