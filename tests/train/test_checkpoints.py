"""Checkpoints of a run: what is written is complete or absent, and damage is noticed."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.errors import CheckpointError
from gemwright.train.checkpoints import CHECKSUMS, Checkpoints
from gemwright.train.step import TrainState

MADE_WITH = {"recipe": {"rank": 2}}


def make_state(step: int) -> TrainState:
    numbers = np.random.default_rng(step)
    weights = {name: jnp.asarray(numbers.standard_normal((40, 50)), jnp.float32) for name in "ab"}
    return TrainState(jnp.int32(step), weights, ({"mu": weights["a"] * 2},), None)


def shapes(state: TrainState) -> TrainState:
    return jax.eval_shape(lambda: state)


def write(folder: Path, *steps: int) -> None:
    with Checkpoints(folder, MADE_WITH) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), {"step": step})


def read(folder: Path) -> tuple[list[str], TrainState, dict[str, Any]]:
    notes: list[str] = []
    with Checkpoints(folder, MADE_WITH, notes.append) as checkpoints:
        like = shapes(make_state(0))
        return notes, checkpoints.restore(like), checkpoints.read_position(like)


def assert_equal(state: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_the_newest_is_restored_with_what_it_was_made_with_and_some_older_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "c", 1, 2, 3, 4)
    notes, state, position = read(tmp_path / "c")
    assert_equal(state, make_state(4))
    assert not notes
    assert position["step"] == 4
    assert position["made_with"] == MADE_WITH
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3", "4"]


def test_a_state_that_is_donated_at_once_is_saved_as_it_was(tmp_path: Path) -> None:
    state = TrainState(jnp.int32(1), {"a": jnp.arange(2_000_000, dtype=jnp.float32)}, (), None)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path / "c", MADE_WITH) as checkpoints:
        checkpoints.save(state, {"step": 1})
        like = shapes(state)
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored = checkpoints.restore(like)
    np.testing.assert_array_equal(restored.trained["a"], np.arange(2_000_000))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["state/**/d/*", "state/manifest.ocdbt", "position/metadata", CHECKSUMS])
def test_a_damaged_checkpoint_is_named_and_kept_and_the_one_before_is_used(
    name: str, damage: Any, tmp_path: Path
) -> None:
    write(tmp_path / "c", 1, 2)
    damaged = max((tmp_path / "c" / "2").glob(name), key=lambda path: path.stat().st_size)
    damage(damaged)
    notes, state, _ = read(tmp_path / "c")
    assert_equal(state, make_state(1))
    assert len(notes) == 1
    assert f"{tmp_path}/c/2 is damaged" in notes[0]
    assert (tmp_path / "c" / "2.damaged").is_dir()
    write(tmp_path / "c", 2)
    assert_equal(read(tmp_path / "c")[1], make_state(2))
    assert (tmp_path / "c" / "2.damaged").is_dir()


def test_if_no_whole_checkpoint_is_left_that_is_said(tmp_path: Path) -> None:
    for name in ("3", "3.damaged", "5"):
        (tmp_path / "c" / name).mkdir(parents=True)
    notes: list[str] = []
    with Checkpoints(tmp_path / "c", MADE_WITH, notes.append) as checkpoints:
        assert checkpoints.newest is None
    assert len(notes) == 3
    assert notes[-1] == "No whole checkpoint is left, so the run starts from its beginning."
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3.damaged", "3.damaged.1", "5.damaged"]


def test_what_an_interrupted_write_left_is_removed_and_the_rest_is_not(tmp_path: Path) -> None:
    write(tmp_path / "c", 1)
    (tmp_path / "c" / "1").rename(tmp_path / "c" / "2.orbax-checkpoint-tmp")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    write(tmp_path / "c", 1)
    write(tmp_path / "c", 2)
    notes, state, _ = read(tmp_path / "c")
    assert not notes
    assert_equal(state, make_state(2))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2", "notes.txt"]


@contextmanager
def limited_file_size(nbytes: int) -> Iterator[None]:
    """Let writes beyond a size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Orbax drops what the failed write awaits, after its event loop has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_is_one_sentence_and_the_checkpoint_before_remains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "c", 1)
    with limited_file_size(4000), pytest.raises(CheckpointError, match=r"cannot be written .* of step 1 is kept"):
        write(tmp_path / "c", 2)
    assert not caplog.records
    assert_equal(read(tmp_path / "c")[1], make_state(1))


def test_a_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "c", 1)
    like = shapes(TrainState(jnp.int32(0), {"a": jnp.zeros((3, 3))}, (), None))
    with Checkpoints(tmp_path / "c", MADE_WITH) as checkpoints, pytest.raises(CheckpointError, match="other arrays"):
        checkpoints.read_position(like)
