"""Weights of every format reach the device unchanged, with little memory beyond their own."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from orbax import checkpoint as ocp
from safetensors.numpy import load_file, save_file

from gemwright import tree
from gemwright.checkpoint import load
from gemwright.checkpoint.arena import ALIGNMENT, HUGE_PAGE, LARGE_BUFFER, SHARED_BUFFER, Arena
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.orbax import open_orbax
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_safetensors
from gemwright.checkpoint.load import load_weights, read_weights, row_chunks
from gemwright.checkpoint.names.flax import map_deepmind
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.config import Mlp
from tests.tiny.config import make_config
from tests.tiny.flax import make_flax_tree
from tests.tiny.hf import TEXT_KINDS, write_model


def test_every_weight_of_a_folder_arrives_unchanged(tmp_path: Path) -> None:
    for kind in TEXT_KINDS:
        checkpoint = open_checkpoint(write_model(tmp_path / kind, kind))
        expected = load_file(tmp_path / kind / "model.safetensors")
        weights = tree.flatten(load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32"))
        assert {checkpoint.mapping[path].name for path in weights} == expected.keys()
        for path, weight in weights.items():
            reference = expected[checkpoint.mapping[path].name]
            assert weight.dtype == jnp.float32
            np.testing.assert_array_equal(np.asarray(weight).reshape(reference.shape), reference, err_msg=path)


@pytest.mark.parametrize("swapped", [False, True], ids=["[2, D, F]", "[2, F, D]"])
@pytest.mark.parametrize("kind", [kind for kind in TEXT_KINDS if kind != "vaultgemma"])
def test_a_flax_tree_loads_as_the_folder_of_the_same_weights(kind: str, swapped: bool, tmp_path: Path) -> None:
    folder = open_checkpoint(write_model(tmp_path / "folder", kind))
    mixer = folder.config.layers[0].mixer
    original = load_file(tmp_path / "folder" / "model.safetensors")
    with ocp.PyTreeCheckpointer() as checkpointer:
        made = make_flax_tree(original, mixer.heads, mixer.kv_heads, swapped=swapped, padding=128)
        checkpointer.save(tmp_path / "flax", made)
    file = open_orbax(tmp_path / "flax")
    mapping = map_deepmind(folder.config, {name: info.shape for name, info in file.tensors.items()})
    stacked = {tensor.name for tensor in mapping.values() if "qkv_einsum" in tensor.name}
    assert bool(stacked) == (kind == "gemma, full heads")

    ours = dict(read_weights(file, mapping, folder.config, np.float32))
    expected = dict(read_weights(folder.file, folder.mapping, folder.config, np.float32))
    assert ours.keys() == expected.keys()
    for path, weight in ours.items():
        np.testing.assert_array_equal(weight, expected[path], err_msg=path)


def test_a_stack_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = open_checkpoint(write_model(tmp_path / "folder", "gemma"))
    made = make_flax_tree(load_file(tmp_path / "folder" / "model.safetensors"), 2, 1, swapped=False)
    made["transformer/layer_1/attn/kv_einsum"]["w"] = np.zeros((3, 1, 64, 32), np.float32)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flax", made)
    file = open_orbax(tmp_path / "flax")
    mapping = map_deepmind(folder.config, {name: info.shape for name, info in file.tensors.items()})
    with pytest.raises(CheckpointError, match=r"layer_1/attn/kv_einsum/w has shape \[3, 1, 64, 32\] .* \[2, 1, 64"):
        load_weights(file, mapping, folder.config, "float32")


def test_rounding_to_bfloat16_is_that_of_torch(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path))
    expected = load_file(tmp_path / "model.safetensors")
    for path, weight in read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, ml_dtypes.bfloat16):
        reference = torch.tensor(expected[checkpoint.mapping[path].name]).bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(weight.view(np.int16).reshape(reference.shape), reference)


def test_rows_beyond_the_vocabulary_are_not_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path))
    config = replace(checkpoint.config, vocab=checkpoint.config.vocab - 7)
    weights = dict(read_weights(checkpoint.file, map_huggingface(config), config, np.float32))
    expected = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(weights["embed"], expected[: config.vocab])


def test_chunks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path))
    whole = dict(read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32"))
    monkeypatch.setattr(load, "READ_CHUNK", 200)  # three rows of most matrices
    assert [chunk.stop - chunk.start for chunk in row_chunks((10, 64))] == [3, 3, 3, 1]
    for path, weight in read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32"):
        np.testing.assert_array_equal(weight, whole[path])


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path))
    calls: list[tuple[int, int]] = []
    load_weights(
        checkpoint.file,
        checkpoint.mapping,
        checkpoint.config,
        "float32",
        lambda done, all_: calls.append((done, all_)),
    )
    total = sum(info.nbytes for info in checkpoint.file.tensors.values())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    tensors["language_model.model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight appears under two names"):
        load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


def test_a_host_buffer_becomes_the_device_s_without_a_copy(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path))
    for _, host in read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32"):
        device = jax.device_put(host, jax.devices("cpu")[0])
        assert device.unsafe_buffer_pointer() == host.ctypes.data


def test_small_weights_share_a_buffer_and_large_ones_have_their_own() -> None:
    arena = Arena()
    small = [arena.allocate(nbytes) for nbytes in (1, 64, 1000)]
    places = [buffer.ctypes.data for buffer in small]
    assert [buffer.size for buffer in small] == [1, 64, 1000]
    assert [place - places[0] for place in places] == [0, 64, 128]
    assert places[0] % HUGE_PAGE == 0
    large, after = arena.allocate(LARGE_BUFFER), arena.allocate(5)
    assert large.ctypes.data % ALIGNMENT == 0
    assert after.ctypes.data == places[2] + 1024
    full = [arena.allocate(LARGE_BUFFER - 1) for _ in range(SHARED_BUFFER // LARGE_BUFFER)]  # the last does not fit
    assert full[-1].ctypes.data % HUGE_PAGE == 0
    for place, buffer in enumerate([*small, large, after, *full]):
        buffer[:] = place
    assert all((buffer == place).all() for place, buffer in enumerate([*small, large, after, *full]))


MEASURE = """
import ctypes
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint

def memory(key):
    status = dict(line.split(":") for line in open("/proc/self/status"))
    return int(status[key].split()[0]) * 1024

jnp.zeros(3).block_until_ready()
checkpoint = open_checkpoint(Path(sys.argv[1]))
ctypes.CDLL(None).malloc_trim(0)  # or memory freed by opening would be reused
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
before = memory("VmRSS")
weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, sys.argv[2])
print(memory("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(weights)))
"""
RUNTIME = 40_000_000
"""Memory in bytes of threads, their chunks and JAX's first transfer."""


def _peak_and_weights(path: Path, dtype: str) -> tuple[int, int]:
    command = [sys.executable, "-c", MEASURE, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    peak, weights = map(int, done.stdout.split())
    return peak, weights


def _write(path: Path, encoding: str) -> None:
    """Write a model of 150 MB in bfloat16, most of it in one tensor, so that a second copy of it would be noticed."""
    config = replace(make_config(), width=1024, vocab=55_000, tied=True)
    config = replace(config, layers=tuple(replace(layer, mlp=Mlp(3072)) for layer in config.layers))
    random, bfloat16 = np.random.default_rng(0), np.dtype(ml_dtypes.bfloat16)

    def values(tensor: TensorMapping) -> Any:
        return random.integers(0, 0x4000, tensor.shape, np.uint16).view(bfloat16)

    if path.suffix == ".gguf":
        stored_as = [(s, "F32" if len(s.shape) == 1 else encoding) for s in map_gguf(config).values()]
        write_gguf(path, to_gguf(config), [GgufTensor(s.name, s.shape, e, iter([values(s)])) for s, e in stored_as])
        return
    mapping = map_huggingface(config).values()
    write_safetensors(path, [SafetensorsTensor(s.name, s.shape, bfloat16, lambda s=s: values(s)) for s in mapping])
    (path / "config.json").write_text(json.dumps(to_huggingface(config, "bfloat16")))


@pytest.mark.parametrize(("name", "encoding"), [("a.gguf", "BF16"), ("b.gguf", "Q8_0"), ("folder", "BF16")])
def test_loading_takes_little_more_than_the_weights(name: str, encoding: str, tmp_path: Path) -> None:
    _write(tmp_path / name, encoding)
    peak, weights = _peak_and_weights(tmp_path / name, "bfloat16")
    shutil.rmtree(tmp_path)
    assert 140e6 < weights < 160e6
    assert weights < peak < 1.2 * weights + RUNTIME


def test_loading_the_demo_takes_little_more_than_the_weights(demo_gguf: Path) -> None:
    peak, weights = _peak_and_weights(demo_gguf, "float32")
    assert weights == 1_072_392_704
    assert weights < peak < 1.2 * weights
