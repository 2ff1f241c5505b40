"""Runs described by a file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gemwright.data.mixture import Mixture
from gemwright.errors import GemwrightError
from gemwright.train import description
from gemwright.train.description import prepare_described, read_description
from gemwright.train.objective import Objective
from gemwright.train.run import train

pytestmark = pytest.mark.usefixtures("quick_compilation")
RUN = """
model = "{model}"
out = "{out}"
held_out = 0.1
[recipe]
method = "full"
learning_rate = 1e-2
length = 32
batch_size = 2
steps = 8
[[data]]
name = "words"
path = "{words}"
epochs = 4
[[data]]
name = "code"
path = ["{code}"]
infill = 0.5
repository = true
epochs = 4
[[stages]]
share = 0.5
weights = {{ words = 0.75, code = 0.25 }}
[[stages]]
share = 0.5
weights = {{ code = 1 }}
"""
Make = Callable[..., Path]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    """Return a function that writes a description, with changes of its text."""
    words, code = tmp_path / "words.jsonl", tmp_path / "code"
    words.write_text("".join(json.dumps({"text": f"the thing and the {'ring ' * (n % 7)}"}) + "\n" for n in range(60)))
    code.mkdir()
    for n in range(12):
        (code / f"m{n}.py").write_text(f"import m{n - 1}\nx = {n}\nif x:\n    y = x\n")

    def write(*changes: tuple[str, str], out: str = "out") -> Path:
        text = RUN.format(model=tiny / "model", out=tmp_path / out, words=words, code=code)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "run.toml"
        file.write_text(text)
        return file

    return write


def test_a_run_of_stages_is_trained(make: Make, tmp_path: Path):
    run = prepare_described(read_description(make()))
    assert train(run) == tmp_path / "out" / "model"
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert isinstance(run.batches, Mixture)
    shares = {f"share of {name}": share for name, share in run.batches.shares(0, 8).items()}
    assert lines[-1]["metrics"] == pytest.approx(shares)
    assert run.batches.shares(4, 8) == {"words": 0.0, "code": 1.0}
    assert run.batches.shares(0, 4)["words"] == pytest.approx(0.75, abs=0.15)


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_with_the_same_bytes(make: Make):
    result = train(prepare_described(read_description(make())))

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(prepare_described(read_description(make(out="parts"))), stop, save_every=2)
    changed = make(("weights = { code = 1 }", "weights = { code = 0.5, words = 0.5 }"), out="parts")
    with pytest.raises(GemwrightError, match=r"other training data or options \(stages, rows\)"):
        train(prepare_described(read_description(changed)))
    notes: list[str] = []
    parts = train(prepare_described(read_description(make(out="parts"))), note=notes.append)
    assert "Continuing after step 2 of 8." in notes
    assert (parts / "model.safetensors").read_bytes() == (result / "model.safetensors").read_bytes()


def test_without_stages_all_data_are_seen_once_an_epoch(make: Make):
    file = make()
    file.write_text(file.read_text().split("[[stages]]")[0].replace("steps = 8", "epochs = 2"))
    run = prepare_described(read_description(file))
    assert not isinstance(run.batches, Mixture)
    records, counts = np.unique(np.concatenate([np.unique(batch.records) for batch in run.batches]), return_counts=True)
    assert {run.dataset.place(record).path.suffix for record in records[records >= 0].tolist()} == {".jsonl", ".py"}
    assert counts[records >= 0].min() >= 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("held_out", "heldout", r"run.toml: there is no key 'heldout'; did you mean held_out\?"),
        ("length = 32", "lenght = 32", r"run.toml, recipe: there is no key 'lenght'; did you mean length\?"),
        ("infill = 0.5", "infil = 0.5", r"data 2: there is no key 'infil'; did you mean infill\?"),
        ("steps = 8", "steps = 8.5", "recipe: steps is 8.5; it must be a whole number"),
        ("steps = 8", "steps = true", "recipe: steps is True; it must be a whole number"),
        ('method = "full"', 'method = "all"', "recipe: method is 'all'; it must be one of lora, qlora, full"),
        ("steps = 8", "steps = 0", "recipe: steps must be a whole number of at least 1"),
        ("repository = true", "repository = 1", "data 2: repository is 1; it must be true or false"),
        ('path = ["', 'path = [1, "', "data 2: path is .*; it must be a text or a list of which each value is a text"),
        ("infill = 0.5", "infill = 1.5", "data code: epochs is at least 1, and infill lies between 0 and 1"),
        ("held_out = 0.1", "held_out = 1.0", "held_out is 1.0; a share lies between 0 and 1"),
        ('name = "code"', 'name = "words"', "two data are called 'words'"),
        ("words = 0.75", "words = 0.7", "weights of stage 1 .* sum to 0.95; change them"),
        ("words = 0.75", "word = 0.75", "has a weight for 'word', and the sources are words, code"),
        ("words = 0.75", 'words = "a"', "stage 1: weights is .*; it must be a table of which each value is a number"),
        ("share = 0.5\n", "share = 0.6\n", "The weights of the shares sum to 1.2"),
        ("steps = 8", "epochs = 2", "Stages with a share need the number of steps"),
        ("share = 0.5\nweights = { code", "steps = 4\nweights = { code", "has either steps or a share"),
        ("steps = 8", "steps = 800", r"source \w+ runs dry at step \d+ of 800"),
        ('out = "', 'objective = "nothing"\nout = "', "objective is 'nothing'; use one of next-token"),
        ("[recipe]", "[next-token]\nx = 1\n[recipe]", "next-token: there is no key 'x'; known are"),
        ("[[stages]]", "[stages]", "is not TOML"),
        ("model = ", "modell = ", "there is no key 'modell'; did you mean model"),
    ],
)
def test_mistakes_are_one_sentence(make: Make, old: str, new: str, message: str):
    with pytest.raises(GemwrightError, match=message) as found:
        prepare_described(read_description(make((old, new))))
    assert str(found.value).count("\n") == 0


@pytest.mark.parametrize("text", ["recipe = 1", "stages = 1", "data = [1]", "next-token = 1"])
def test_tables_are_tables(tmp_path: Path, text: str):
    file = tmp_path / "run.toml"
    file.write_text(f'model = "a"\nout = "b"\n{text}\n')
    with pytest.raises(GemwrightError, match="is written as"):
        read_description(file)


@pytest.mark.parametrize("data", [b"\xff", b"a = [" + b"[" * 100_000, b"a", b"", b"x = 1\n" * 200_000])
def test_no_file_crashes(tmp_path: Path, data: bytes):
    file = tmp_path / "run.toml"
    file.write_bytes(data)
    with pytest.raises(GemwrightError):
        read_description(file)
    with pytest.raises(GemwrightError, match="cannot be read"):
        read_description(tmp_path / "none.toml")


def test_an_objective_has_a_table_of_its_settings(make: Make, monkeypatch: pytest.MonkeyPatch):
    @dataclass(frozen=True)
    class Other(Objective):
        name: ClassVar[str] = "other"
        beta: float = 0.1
        model: str | None = None

    monkeypatch.setattr(description, "OBJECTIVES", {**description.OBJECTIVES, "other": Other})
    file = make(("[recipe]", '[other]\nbeta = 2\nmodel = "x"\n[recipe]'), ('out = "', 'objective = "other"\nout = "'))
    assert read_description(file).objective == Other(2, "x")
    file = make(("[recipe]", "[other]\nbeta = true\n[recipe]"), ('out = "', 'objective = "other"\nout = "'))
    with pytest.raises(GemwrightError, match="other: beta is True; it must be a number"):
        read_description(file)
