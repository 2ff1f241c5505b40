import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemwright
from gemwright import api, tree
from gemwright.checkpoint import prefetch, tokenizer_cache
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.checkpoint.tokenizer_cache import load_cached_tokenizer
from gemwright.errors import CheckpointError
from gemwright.runtime import machine
from gemwright.text.tokenizer import Tokenizer


def weights(model: gemwright.Model) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(model.engine.params).items()}


def test_what_is_read_early_is_what_is_read_later(demo_gguf: Path) -> None:
    """Every weight to the last bit, in the same layout, and every id of the tokenizer."""
    later = api.load(demo_gguf)
    with GgufPrefetch(demo_gguf, native=True) as read:
        repacked = read._repacked.result()
        assert {name for name, info in read.file.result().tensors.items() if len(info.shape) == 2} == set(repacked)
        sooner = api.load(demo_gguf, early=read)
    assert sooner.tokenizer.pieces == later.tokenizer.pieces
    assert api.jax.tree.structure(sooner.engine.params) == api.jax.tree.structure(later.engine.params)
    expected = weights(later)
    for path, leaf in weights(sooner).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_what_comes_too_late_is_arranged_by_the_load(demo_gguf: Path) -> None:
    with GgufPrefetch(demo_gguf, native=True) as read:
        few = read.repacked()  # stops it
        assert len(few) < 126
        model = api.load(demo_gguf, early=read)
    assert model.generate("Once upon a time", max_tokens=3, temperature=0.0).tokens


@pytest.mark.parametrize("reason", ["dtype", "device", "memory"])
def test_weights_wait_where_they_may_not_be_wanted(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "device":
        monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    if reason == "memory":
        monkeypatch.setattr(machine, "free_memory", lambda: 2 * demo_gguf.stat().st_size)
    with GgufPrefetch(demo_gguf, native=reason != "dtype") as read:
        assert read._repacked.result() == {}


def test_leaving_stops_it(demo_gguf: Path) -> None:
    interval = sys.getswitchinterval()
    with GgufPrefetch(demo_gguf, native=True) as read:
        read.file.result()
    assert read.tokenizer.cancelled() or read.tokenizer.done()
    assert sys.getswitchinterval() == pytest.approx(interval)
    assert not [thread for thread in threading.enumerate() if thread in read._pool._threads]


def test_a_damaged_file_is_told_as_ever(tmp_path: Path, demo_gguf: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(CheckpointError) as told:
        open_gguf(damaged)
    with pytest.raises(CheckpointError) as early_told:
        gemwright.load(damaged)
    assert str(early_told.value) == str(told.value)


@pytest.fixture(scope="module")
def metadata(demo_gguf: Path) -> dict[str, Any]:
    return dict(open_gguf(demo_gguf).metadata)


def test_a_tokenizer_is_kept(tmp_path: Path, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tokenizers"
    made = load_cached_tokenizer(metadata, folder)
    (file,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_cache, "Vocabulary", None)  # nothing is made anew
        read = load_cached_tokenizer(metadata, folder)
    assert read.pieces == made.pieces
    np.testing.assert_array_equal(read.vocabulary.scores, made.vocabulary.scores)
    np.testing.assert_array_equal(read.vocabulary.kinds, made.vocabulary.kinds)
    text = "Once upon a time <b>in Πάτρα</b>\n\n  <end_of_turn>\0"
    assert read.encode(text) == made.encode(text)
    file.write_bytes(b"no model")
    assert load_cached_tokenizer(metadata, folder).encode(text) == made.encode(text)
    assert file.read_bytes() == made.model
    changed = metadata | {"tokenizer.ggml.scores": metadata["tokenizer.ggml.scores"] * np.float32(2)}
    load_cached_tokenizer(changed, folder)
    assert len(list(folder.iterdir())) == 2


def test_a_tokenizer_that_cannot_be_kept_is_made(tmp_path: Path, metadata: dict[str, Any]) -> None:
    (tmp_path / "file").touch()
    assert isinstance(load_cached_tokenizer(metadata, tmp_path / "file" / "folder"), Tokenizer)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_reading_early_needs_no_jax(demo_gguf: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gemwright.loading import reading\n"
        "with reading(Path(sys.argv[1]), native=True) as early:\n"
        "    early._repacked.result(); early.tokenizer.result()\n"
        "sys.exit('jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(demo_gguf)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_memory_that_must_stay_free() -> None:
    assert not prefetch._has_memory_for(10**15)
    assert prefetch._has_memory_for(1)
