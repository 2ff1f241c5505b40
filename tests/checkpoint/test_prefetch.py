import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import gemwright
from gemwright import tree
from gemwright.checkpoint import prefetch, tokenizer_cache
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.checkpoint.tokenizer_cache import load_cached_tokenizer
from gemwright.errors import CheckpointError
from gemwright.loading.model import load_model
from gemwright.runtime import machine
from gemwright.text.tokenizer import Tokenizer
from tests.helpers import run_in_new_process


def weights(model: gemwright.Model) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(model.engine.params).items()}


def test_prefetched_weights_and_tokenizer_equal_those_read_later(demo_gguf: Path) -> None:
    """Bit by bit, in the same layout, with every piece of the tokenizer."""
    run_in_new_process(check_prefetch, demo_gguf)


def check_prefetch(path: Path) -> None:
    later = load_model(path)
    with GgufPrefetch(path, native=True) as read:
        repacked = read._repacked.result()
        assert {name for name, info in read.file.result().tensors.items() if len(info.shape) == 2} == set(repacked)
        sooner = load_model(path, prefetch=read)
    assert sooner.tokenizer.pieces == later.tokenizer.pieces
    assert jax.tree.structure(sooner.engine.params) == jax.tree.structure(later.engine.params)
    expected = weights(later)
    for path, leaf in weights(sooner).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_the_load_repacks_the_remaining_weights(demo_gguf: Path) -> None:
    with GgufPrefetch(demo_gguf, native=True) as read:
        repacked = read.repacked()  # stops the thread
        assert len(repacked) < 126
        model = load_model(demo_gguf, prefetch=read)
    assert model.generate("Once upon a time", max_tokens=3, temperature=0.0).tokens


@pytest.mark.parametrize("reason", ["dtype", "device", "memory"])
def test_weights_are_not_repacked_for_another(demo_gguf: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "device":
        monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    if reason == "memory":
        monkeypatch.setattr(machine, "free_memory", lambda: 2 * demo_gguf.stat().st_size)
    with GgufPrefetch(demo_gguf, native=reason != "dtype") as read:
        assert read._repacked.result() == {}


def test_leaving_the_block_stops_the_thread(demo_gguf: Path) -> None:
    interval = sys.getswitchinterval()
    with GgufPrefetch(demo_gguf, native=True) as read:
        read.file.result()
    assert read.tokenizer.cancelled() or read.tokenizer.done()
    assert sys.getswitchinterval() == pytest.approx(interval)
    assert not [thread for thread in threading.enumerate() if thread in read._pool._threads]


def test_a_damaged_file_gives_the_same_error(tmp_path: Path, demo_gguf: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(CheckpointError) as direct:
        open_gguf(damaged)
    with pytest.raises(CheckpointError) as prefetched:
        gemwright.load(damaged)
    assert str(prefetched.value) == str(direct.value)


@pytest.fixture(scope="module")
def metadata(demo_gguf: Path) -> dict[str, Any]:
    return dict(open_gguf(demo_gguf).metadata)


def test_a_tokenizer_is_cached(tmp_path: Path, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tokenizers"
    made = load_cached_tokenizer(metadata, folder)
    (file,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_cache, "Vocabulary", None)  # nothing is made again
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


def test_a_tokenizer_that_cannot_be_cached_is_made(tmp_path: Path, metadata: dict[str, Any]) -> None:
    (tmp_path / "file").touch()
    assert isinstance(load_cached_tokenizer(metadata, tmp_path / "file" / "folder"), Tokenizer)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_prefetching_does_not_import_jax(demo_gguf: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gemwright.loading import reading\n"
        "with reading(Path(sys.argv[1]), native=True) as prefetch:\n"
        "    prefetch._repacked.result(); prefetch.tokenizer.result()\n"
        "sys.exit('jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(demo_gguf)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_free_memory_is_required() -> None:
    assert not prefetch._has_memory_for(10**15)
    assert prefetch._has_memory_for(1)
