"""Folders written by Orbax in every layout are read under the names of the releases."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax import checkpoint as ocp

from gemwright.checkpoint.files.orbax import is_orbax, open_orbax
from gemwright.errors import CheckpointError

SHAPES = {
    "transformer/embedder/input_embedding": (7, 4),
    "transformer/final_norm/scale": (4,),
    "transformer/layer_0/attn/q_einsum/w": (2, 4, 6),
    "transformer/layer_0/attn/kv_einsum/w": (2, 1, 4, 6),
    "transformer/layer_0/attn/_query_norm/scale": (6,),
    "transformer/layer_0/mlp/gating_einsum/w": (2, 4, 5),
    "transformer/layer_0/mlp/linear/w": (5, 4),
    "transformer/layer_10/pre_attention_norm/scale": (4,),
    "SigLiPFromPatches_0/siglip_encoder/embedding/kernel": (2, 2, 3, 8),
}
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


def values(encoding: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(DTYPES[encoding]) for name, shape in SHAPES.items()}


def flat(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the released layout: a dict whose keys contain slashes, with a small dict under each."""
    tree: dict[str, Any] = {}
    for name, weight in weights.items():
        key, leaf = name.rsplit("/", 1)
        tree.setdefault(key, {})[leaf] = weight
    return tree


def nested(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the layout of the modules: nested dicts without `transformer` and without the MLP's `w`."""
    tree: dict[str, Any] = {}
    for name, weight in weights.items():
        name = name.removeprefix("transformer/").replace("SigLiPFromPatches_0", "vision_encoder")
        *path, leaf = name.removesuffix("/w").split("/") if "/mlp/" in name else name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = weight
    return tree


LAYOUTS = {
    "flat": flat,
    "nested": nested,
    "nested under transformer": lambda weights: {
        "transformer": nested({k: v for k, v in weights.items() if k.startswith("transformer/")}),
        "SigLiPFromPatches_0": nested(weights)["vision_encoder"],
    },
    "trainer": lambda weights: {"params": nested(weights), "step": 3, "opt_state": [np.ones(3), {"mu": np.ones(2)}]},
    "exported policy": lambda weights: {f"rlx_networks/policy_network/{k}": v for k, v in flat(weights).items()},
}


def save(path: Path, tree: Any) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("orbax") / "m", flat(values("F32")))


@pytest.mark.parametrize("encoding", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_the_same(layout: str, encoding: str, tmp_path: Path) -> None:
    weights = values(encoding)
    file = open_orbax(save(tmp_path / "m", LAYOUTS[layout](weights)))
    assert {name: info.shape for name, info in file.tensors.items()} == SHAPES
    for name, info in file.tensors.items():
        read = file.read(name)
        assert info.encoding == encoding
        assert info.nbytes == read.nbytes
        assert read.dtype == DTYPES[encoding]
        assert not read.flags.writeable
        np.testing.assert_array_equal(read, weights[name], strict=True)
        np.testing.assert_array_equal(file.read_rows(name, 1, 3), weights[name][1:3], strict=True)
        assert file.raw(name).tobytes() == weights[name].tobytes()


def test_the_present_writer_of_the_gemma_library(tmp_path: Path) -> None:
    weights = {name: jnp.asarray(weight) for name, weight in values("BF16").items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "m", nested(weights))
    file = open_orbax(tmp_path / "m")
    assert {name: info.shape for name, info in file.tensors.items()} == SHAPES
    for name, weight in weights.items():
        np.testing.assert_array_equal(file.read(name), np.asarray(weight), strict=True)


def test_a_folder_is_recognized_by_its_files(folder: Path) -> None:
    assert is_orbax(folder)
    assert not is_orbax(folder.parent)


def test_a_folder_without_ocdbt(tmp_path: Path) -> None:
    """A zarr folder per tensor, as early versions of Orbax wrote."""
    weights = values("BF16")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "m", args=ocp.args.PyTreeSave(flat(weights)))
    file = open_orbax(tmp_path / "m")
    for name, weight in weights.items():
        np.testing.assert_array_equal(file.read(name), weight, strict=True)


def test_only_the_requested_tensor_is_read(folder: Path) -> None:
    """A tensor is read although the bytes of all others are missing."""
    weights = values("F32")
    path = folder.with_name("single")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(flat(weights)))
    file = open_orbax(path)
    name = "transformer/layer_0/attn/q_einsum/w"
    for chunk in [p for p in path.rglob("*") if p.is_file() and p.name[0].isdigit() and "q_einsum" not in str(p)]:
        chunk.write_bytes(b"damaged")
    np.testing.assert_array_equal(file.read(name), weights[name])
    with pytest.raises(CheckpointError, match="'transformer/final_norm/scale' cannot be read"):
        file.read("transformer/final_norm/scale")


def test_threads_share_an_open_folder(folder: Path) -> None:
    file, weights = open_orbax(folder), values("F32")
    with ThreadPoolExecutor(4) as pool:
        for name, read in zip(SHAPES, pool.map(lambda name: file.read_rows(name, 0, 2), SHAPES), strict=True):
            np.testing.assert_array_equal(read, weights[name][:2])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for name in ("missing", "file", "other"):
        assert not is_orbax(tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            open_orbax(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"tree_metadata": 3}', '{"tree_metadata": {"x": {}}}', "\0\xff", '{"a":' * 10**5],
    ids=range(8),
)
def test_a_damaged_description_is_refused(text: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m", flat(values("F32")))
    (path / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match=str(path)):
        open_orbax(path)


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m", flat(values("F32")))
    file = open_orbax(path)
    for data in path.rglob("d/*"):
        data.write_bytes(data.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        sum(file.read(name).size for name in file.tensors)


def test_a_leaf_of_another_dtype_is_refused(tmp_path: Path) -> None:
    for name, leaf in {"ids": np.arange(3), "count": 3, "text": "abc"}.items():
        path = save(tmp_path / name, {"transformer/embedder": {"input_embedding": leaf}})
        with pytest.raises(CheckpointError, match="input_embedding' is not a float tensor"):
            open_orbax(path)


def test_a_tensor_in_two_layouts_is_refused(tmp_path: Path) -> None:
    weight = np.ones(3, np.float32)
    tree = {"transformer/final_norm": {"scale": weight}, "final_norm": {"scale": weight}}
    with pytest.raises(CheckpointError, match="'transformer/final_norm/scale' appears twice"):
        open_orbax(save(tmp_path / "m", tree))


def test_orbax_is_imported_late_and_its_absence_names_the_extra(folder: Path) -> None:
    program = f"""
import sys
from gemwright.checkpoint.files.orbax import open_orbax
assert not {{"orbax", "jax"}} & sys.modules.keys()
sys.modules["orbax"] = None
try:
    open_orbax({str(folder)!r})
except ValueError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("GemwrightError ")
    assert "[orbax]" in done.stdout
