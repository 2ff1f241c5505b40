"""`gemwright tune`: its options, its messages and a run with a tiny model."""

import inspect
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemwright.checkpoint.adapters import open_adapter
from gemwright.cli import tune_report
from gemwright.cli.tune import tune
from gemwright.train.metrics import Progress
from gemwright.train.recipe import Recipe
from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEP = Progress(
    step=3,
    steps=40,
    loss=1.23456,
    norm=1.0,
    learning_rate=1e-4,
    tokens=2000,
    learned=1500,
    seconds=2.0,
    flops=1e9,
    utilization=0.42,
    memory=2_310_000_000,
    remaining=725.0,
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    records = [{"prompt": f"the hen {'and ' * n}", "completion": f"in the {n}."} for n in range(8)]
    lines = [json.dumps(record) for record in records]
    files = {
        "train": lines,
        "broken": [lines[0], "{"],
        "mixed": [lines[0], '{"text": "the hen"}'],
        "empty": [],
        "masked": ['{"prompt": "the hen", "completion": ""}'],
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in content))
    (folder / "used").mkdir()
    (folder / "used" / "thesis.txt").write_text("all of it")
    return {"tiny": tiny, "folder": folder}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("no-such-model {folder}/train.jsonl --out {folder}/x", "no file, folder or published model called"),
        ("{tiny} {folder}/none.jsonl --out {folder}/x", "none.jsonl does not exist or is not a file; check the path"),
        ("{tiny} {folder}/broken.jsonl --out {folder}/x", "broken.jsonl, line 2: this is not valid JSON"),
        ("{tiny} {folder}/mixed.jsonl --out {folder}/x", "mixed kinds"),
        ("{tiny} {folder}/empty.jsonl --out {folder}/x", "training data are empty"),
        ("{tiny} {folder}/masked.jsonl --out {folder}/x", "No record has a token to learn"),
        ("{tiny} {folder}/train.jsonl", "There is no folder for the results; add --out FOLDER."),
        ("{tiny} {folder}/train.jsonl --out {folder}/used", "give an empty or a new folder"),
        ("{tiny} --out {folder}/x", "Missing argument"),
        (
            "{tiny} {folder}/train.jsonl --out {folder}/x --learning-rate=-1",
            "learning_rate must be a number above 0, got -1.0.",
        ),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --learning-rate nan", "learning_rate must be a number above 0"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --alpha 0", "alpha must be a number above 0"),
        (
            "{tiny} {folder}/train.jsonl --out {folder}/x --rank 0",
            "'--rank': Input should be greater than or equal to 1",
        ),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --accumulation 3", "does not divide the batch size 4"),
        (
            "{tiny} {folder}/train.jsonl --out {folder}/x --dtype float16",
            "dtype float16 is not supported: Gemma's activations exceed its range",
        ),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --method qlora --dtype bfloat16", "qlora computes in float32"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --length 8192", "length 8,192 is more than the 4,096 tokens of"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --rank 99999999", "rank must be at most 16,384, got 99999999"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --method prefix", "'prefix' is not one of"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --held-out 1.5", "a share lies between 0 and 1"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --held-out none.jsonl", "none.jsonl does not exist"),
        ("{tiny} {folder}/train.jsonl --out {folder}/x --lerning-rate 1", "did you mean --learning-rate?"),
    ],
)
def test_wrong_input_is_one_sentence(run: Run, places: dict[str, Path], arguments: str, sentence: str):
    result = run("tune", *arguments.format(**places).split())
    assert result.code == 2, result.err
    error = [line for line in result.err.splitlines() if line.startswith("gemwright: ")]
    assert len(error) == 1
    assert result.err.endswith(error[0] + "\n")
    assert sentence in error[0]
    assert not result.out
    assert (places["folder"] / "used" / "thesis.txt").read_text() == "all of it"


def test_missing_packages(run: Run, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    result = run("tune", places["tiny"], places["folder"] / "train.jsonl", "--out", places["folder"] / "x")
    assert result.code == 2
    assert result.err.startswith("gemwright: Tuning needs optax; run: pip install ")
    assert "[train]" in result.err


def test_defaults_are_those_of_a_recipe():
    recipe, parameters = Recipe().document(), inspect.signature(tune).parameters
    shared = parameters.keys() & recipe.keys()
    assert {name: parameters[name].default for name in shared} == {name: recipe[name] for name in shared}
    assert shared >= {"method", "rank", "alpha", "learning_rate", "length", "batch_size", "packing", "dtype", "seed"}
    rates = {method: Recipe(method=method).peak_learning_rate for method in ("lora", "qlora", "full")}
    assert rates == {"lora": 2e-4, "qlora": 2e-4, "full": 1e-5}  # as the help says


def test_run(run: Run, places: dict[str, Path], tmp_path: Path):
    command = ("tune", places["tiny"], places["folder"] / "train.jsonl", "--out", tmp_path / "out", "--length", 32)
    options = ("--batch-size", 2, "--steps", 3, "--held-out", 0.25, "--chat", "--rank", 4, "--learning-rate", 0.01)
    result = run(*command, *options)
    assert result.code == 0, result.err
    adapter = tmp_path / "out" / "adapter"
    assert result.out == f"{adapter}\n"
    for text in ("prompt and completion: 6 records", "learned", "padding", "LoRA, rank 4", "adamw at 0.01 (cosine)"):
        assert text in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 0/3  held-out loss ")
    assert lines[-1].startswith("step 3/3  loss ")
    assert "held-out loss" in lines[-1]
    assert f"gemwright chat --model {adapter}" in result.err
    ranks = {tensor.shape[0] for name, tensor in open_adapter(adapter).file.tensors.items() if "lora_A" in name}
    assert ranks == {4}
    assert run("generate", "the", "--model", adapter, "--max-tokens", 2).code == 0
    again = run(*command, *options)
    assert (again.code, again.out) == (0, result.out)
    changed = run(*command, *options, "--rank", 8)
    assert changed.code == 2
    assert "rank" in changed.err


def test_show_data(run: Run, places: dict[str, Path]):
    result = run("tune", places["tiny"], places["folder"] / "train.jsonl", "--show-data", "--chat")
    assert result.code == 0
    assert "[<end_of_turn>]" in result.out
    assert result.out.count("of them learned") == 3


def test_progress():
    line = tune_report.format_progress(STEP)
    assert line == "step 3/40  loss 1.2346  1,000 tokens/s (750 learned)  42% utilized  2.31 GB  12 min left"
    start = replace(STEP, step=0, loss=math.nan, seconds=0.0, held_out=2.0)
    assert tune_report.format_progress(start) == "step 0/40  held-out loss 2.0000"
    assert "loss 1.2346  held-out loss 1.5000  " in tune_report.format_progress(replace(STEP, held_out=1.5))
    durations = {0: "0 s", 89: "89 s", 725: "12 min", 5399: "90 min", 12600: "3.5 h"}
    assert {seconds: tune_report.format_seconds(seconds) for seconds in durations} == durations


def report_steps(monkeypatch: pytest.MonkeyPatch, seconds: float, **changes: Any) -> None:
    """Report 40 steps that take so many seconds each."""
    clock = iter(seconds * n for n in range(100))
    monkeypatch.setattr(tune_report.time, "monotonic", lambda: next(clock))
    report = tune_report.ProgressLines()
    for step in range(1, 41):
        report(replace(STEP, step=step, **changes))


def test_progress_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The first and the last step, and at most one line in ten seconds."""
    report_steps(monkeypatch, 1.0)
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["1/40", "11/40", "21/40", "31/40", "40/40"]
    report_steps(monkeypatch, 100.0)
    assert len(capsys.readouterr().err.splitlines()) < 40


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Every step, on one line that is no wider than the terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    report_steps(monkeypatch, 1.0)
    shown = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert all(any(part.startswith(f"step {step}/40") for part in shown) for step in range(1, 41))
    live = [part for part in shown if part.startswith("step 5/40")]
    assert [len(part) for part in live] == [59]
