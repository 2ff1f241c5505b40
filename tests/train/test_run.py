"""Runs that are stopped in any way and continued end as one that was not; others are refused with a sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright.checkpoint.digest import model_digest
from gemwright.errors import GemwrightError, NotFiniteError
from gemwright.runtime.folder_lock import lock_folder
from gemwright.train import forecast
from gemwright.train.folder import LOCK, MARKER, claim, compare
from gemwright.train.made_with import describe
from gemwright.train.metrics import Progress
from gemwright.train.run import Run, train
from tests.train.tiny_run import RECIPE, prepare_tiny, result, write_data

pytestmark = pytest.mark.usefixtures("quick_compilation")


class CrashError(Exception):
    """The end of a process in the middle of a step."""


def crash_after(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise CrashError

    return report


def crash(run: Run, step: int, **options: Any) -> None:
    with pytest.raises(CrashError):
        train(run, crash_after(step), save_every=2, **options)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("finished") / "out"
    train(prepare_tiny(tiny, out, prompts=("the man",)))
    return out


@pytest.fixture(scope="module")
def stopped_once(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "out"
    crash(prepare_tiny(tiny, out), 5)
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """The folder of a run that stopped after step 5 and was saved after step 4."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def test_a_run_learns_and_reports_every_step(finished: Path) -> None:
    _, lines = result(finished)
    assert [line["step"] for line in lines] == list(range(RECIPE["steps"] + 1))
    assert [line["step"] for line in lines if line["held_out"] is not None] == [0, 2, 4, 6, 8]
    assert lines[-1]["held_out"] < lines[0]["held_out"] - 1
    assert all(len(line["samples"]) == (line["held_out"] is not None) for line in lines)
    assert (finished / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((finished / "tensorboard").iterdir())


def test_a_run_that_was_stopped_twice_ends_as_one_that_was_not(tiny: Path, finished: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "out", list[str]()
    prompts = ("the man",)
    crash(prepare_tiny(tiny, out, prompts=prompts), 1)
    crash(prepare_tiny(tiny, out, prompts=prompts), 5)
    train(prepare_tiny(tiny, out, prompts=prompts), note=notes.append)
    assert "Continuing after step 4 of 8." in notes
    assert result(out) == result(finished)


def test_a_finished_run_says_so(tiny: Path, finished: Path) -> None:
    notes: list[str] = []
    before = result(finished)
    assert train(prepare_tiny(tiny, finished), note=notes.append) == finished / "adapter"
    assert notes == [f"This run is finished: {finished}/adapter is its result after 8 steps."]
    assert result(finished) == before


def change_data(tiny: Path, folder: Path) -> dict[str, Any]:
    write_data(folder / "train.jsonl", first=1)
    return {}


def change_model(tiny: Path, folder: Path) -> dict[str, Any]:
    path = folder / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return {}


def change_recipe(tiny: Path, folder: Path) -> dict[str, Any]:
    return {"learning_rate": 0.02}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_data, "the training data changed: {folder}/train.jsonl"),
        (change_model, "the model was {tiny}/model and is {folder}/model, other weights"),
        (change_recipe, "learning_rate was 0.01 and is 0.02"),
    ],
)
def test_changes_are_refused_by_name(
    change: Callable[[Path, Path], dict[str, Any]], named: str, tiny: Path, stopped: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "changed"))
    recipe = change(tiny, folder)
    with pytest.raises(GemwrightError) as caught:
        train(prepare_tiny(folder, stopped, **recipe))
    assert named.format(folder=folder, tiny=tiny) in str(caught.value)
    assert "--accept-changes" in str(caught.value)


def test_changes_are_accepted_and_said(tiny: Path, stopped: Path, tmp_path: Path) -> None:
    folder, notes = Path(shutil.copytree(tiny, tmp_path / "changed")), list[str]()
    change_data(tiny, folder)
    crash(prepare_tiny(folder, stopped), 6, note=notes.append, accept_changes=True)
    assert notes[0] == f"Continuing with changes: the training data changed: {folder}/train.jsonl."
    assert "Continuing after step 4 of 8." in notes
    with pytest.raises(GemwrightError, match="the training data changed"):  # the others, from now on
        train(prepare_tiny(tiny, stopped))


def test_what_a_run_is_made_with_may_change_before_its_first_checkpoint(tmp_path: Path) -> None:
    made = {"recipe": {"rank": 2}, "model": {"digest": "a", "name": "m"}, "machine": {}}
    made |= {"data": {"files": {"d": "b"}, "fingerprint": "c"}, "held_out": {"files": {}}}
    other = made | {"recipe": {"rank": 3}}
    claim(tmp_path, made, False, str)
    claim(tmp_path, other, False, str)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    claim(tmp_path, other, False, str)
    with pytest.raises(GemwrightError, match=r"made with something else \(rank was 3 and is 2\)"):
        claim(tmp_path, made, False, str)


def test_the_same_data_and_model_elsewhere_are_no_change(tiny: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny, tmp_path / "moved"))
    runs = [prepare_tiny(folder, tmp_path / "out") for folder in (tiny, moved)]
    before, now = (describe(run) for run in runs)
    assert before != now
    assert not compare(before, now)


def test_another_rank_cannot_be_accepted(tiny: Path, stopped: Path) -> None:
    with pytest.raises(GemwrightError, match="trains other arrays than this recipe"):
        train(prepare_tiny(tiny, stopped, rank=3), accept_changes=True)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_continued(
    tiny: Path, finished: Path, stopped: Path
) -> None:
    notes: list[str] = []
    path = max((stopped / "checkpoints" / "4").rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    train(prepare_tiny(tiny, stopped), note=notes.append)
    assert "checkpoints/4 is damaged" in notes[0]
    assert "Continuing after step 2 of 8." in notes
    assert result(stopped)[0] == result(finished)[0]


def test_a_second_run_into_a_folder_is_refused(tiny: Path, stopped: Path) -> None:
    with lock_folder(stopped, "run", LOCK, MARKER), pytest.raises(GemwrightError, match="Another run writes to"):
        train(prepare_tiny(tiny, stopped))


def test_a_folder_that_is_not_a_runs_is_refused_and_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(GemwrightError, match="has files that are not of a run"):
        train(prepare_tiny(tiny, tmp_path / "out"))
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(GemwrightError, match="is not of a run"):
        train(prepare_tiny(tiny, tmp_path / "out"))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/out", "/proc/out"])
def test_a_folder_that_cannot_be_written_is_refused(out: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GemwrightError, match="cannot be written"):
        train(prepare_tiny(tiny, tmp_path / out))


def test_a_loss_that_is_not_finite_names_its_records_and_the_state_before_stays(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(NotFiniteError, match=rf"step 2 is not finite; its records are {tiny}/train.jsonl, line "):
        train(prepare_tiny(tiny, out, held_out=0, learning_rate=1e30))
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["1"]
    _, lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-2:]
    assert lines["step"] == 2
    assert lines["loss"] is None or lines["norm"] is None


def test_all_weights_are_trained_and_restored(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (3, 5):
        crash(prepare_tiny(tiny, out, held_out=0, method="full", learning_rate=1e-3), step)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 5
    assert losses[4] < losses[0]


def test_memory_that_surely_does_not_suffice_is_refused_before_loading(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemwright.memory.available", lambda: 1_000_000)
    with pytest.raises(GemwrightError, match=r"Training needs .* and 1.0 MB are free; use shorter sequences"):
        train(prepare_tiny(tiny, tmp_path / "out"))


def test_held_out_records_are_in_no_training_document(tiny: Path, tmp_path: Path) -> None:
    run = prepare_tiny(tiny, tmp_path / "out", held_out=0.25)
    again = prepare_tiny(tiny, tmp_path / "out", held_out=0.25)
    assert run.held_out is not None
    assert again.held_out is not None
    train_records, held = ({*part.documents.records.tolist()} for part in (run.dataset, run.held_out))
    assert len(held) == 6
    assert not train_records & held
    assert len(train_records | held) == 24
    assert again.held_out.fingerprint == run.held_out.fingerprint
    for part in (run.dataset, run.held_out):
        assert part.statistics.tokens == len(part.documents.ids) == part.documents.offsets[-1]
        assert all(part.documents[index].ids[0] == 2 for index in range(len(part.documents)))


def test_a_forecast_counts_the_tokens_and_bytes_that_are_there(tiny: Path, tmp_path: Path) -> None:
    run = prepare_tiny(tiny, tmp_path / "out", held_out=0, steps=None, epochs=2)
    batches = list(run.batches)
    assert forecast.count_tokens(run.dataset, run.batches) == (
        sum(int(np.sum(batch.segments > 0)) for batch in batches),
        sum(int(np.sum(batch.learned)) for batch in batches),
    )


def test_the_digest_of_a_model_changes_with_its_config(tiny: Path, tmp_path: Path) -> None:
    checkpoint = prepare_tiny(tiny, tmp_path / "out").checkpoint
    other = replace(checkpoint, config=replace(checkpoint.config, norm_eps=1e-5))
    assert model_digest(checkpoint) != model_digest(other)
