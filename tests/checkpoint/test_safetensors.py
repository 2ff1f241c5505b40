import errno
import json
import shutil
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from gemwright.checkpoint.files.safetensors import SafetensorsTensor, open_safetensors, write_safetensors
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.errors import CheckpointError

BF16 = np.dtype(ml_dtypes.bfloat16)


def random_bits(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return every kind of bit pattern: NaN with payloads, infinities, subnormals, signed zeros."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).view(dtype).reshape(shape)


ARRAYS = {
    "half": random_bits((3, 5), np.dtype(np.float16)),
    "brain": random_bits((7, 3, 1), BF16),
    "single": random_bits((2, 2, 2, 2), np.dtype(np.float32)),
    "scalar": random_bits((), BF16),
    "empty": random_bits((0, 4), np.dtype(np.float32)),
    "ключ \n": random_bits((1,), np.dtype(np.float16)),
}


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def as_tensors(arrays: Mapping[str, np.ndarray]) -> list[SafetensorsTensor]:
    return [SafetensorsTensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]


def write_raw(path: Path, header: Any, data: bytes = b"", pad: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) + pad) + text + b" " * pad + data)
    return path


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Reading


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "any name.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, {"format": "np", "note": "ключ"})
    file: TensorFile = open_safetensors(path)
    assert file.path == path
    assert set(file.tensors) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        actual = file.read(name)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert bits(actual) == bits(expected) == file.raw(name).tobytes()
        info = file.tensors[name]
        assert path.read_bytes()[info.offset : info.offset + info.nbytes] == bits(expected)
    assert bits(file.read_rows("brain", 2, 5)) == bits(ARRAYS["brain"][2:5])


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    view = open_safetensors(tmp_path).read("single")
    assert not view.flags.writeable
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    (tmp_path / "model.safetensors").unlink()
    assert bits(view) == bits(ARRAYS["single"])


@pytest.mark.parametrize("pad", range(8))
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
def test_unaligned_data(tmp_path: Path, pad: int, dtype: np.dtype) -> None:
    expected = np.arange(6).astype(dtype).reshape(2, 3)
    encoding = {"float32": "F32", "bfloat16": "BF16"}[str(dtype)]
    header = {"odd": entry("U8", [1], 0, 1), "t": entry(encoding, [2, 3], 1, 1 + expected.nbytes)}
    actual = open_safetensors(write_raw(tmp_path / "f", header, b"\xff" + bits(expected), pad)).read("t")
    np.testing.assert_array_equal(actual.astype(np.float32) + 1, expected.astype(np.float32) + 1)
    assert bits(actual[:, ::-1]) == bits(expected[:, ::-1])


def test_describes_but_does_not_read_other_dtypes(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"ids": np.arange(3), "ok": np.ones(2, np.float32)}, tmp_path / "f")
    file = open_safetensors(tmp_path / "f")
    assert (file.tensors["ids"].encoding, file.tensors["ids"].shape) == ("I64", (3,))
    assert file.raw("ids").tobytes() == np.arange(3).tobytes()
    with pytest.raises(CheckpointError, match=r"f: tensor 'ids' has encoding I64; use a file with F32, F16, BF16\."):
        file.read("ids")
    assert file.read("ok").tolist() == [1, 1]


def test_describes_every_dtype_that_the_package_writes(tmp_path: Path) -> None:
    names = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 complex64"
    names += " float8_e5m2 float8_e4m3fn float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz float4_e2m1fn_x2"
    saved = {name: torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name)) for name in names.split()}
    safetensors.torch.save_file(saved, tmp_path / "f")
    file = open_safetensors(tmp_path / "f")
    assert {name: file.raw(name).tobytes() for name in file.tensors} == dict.fromkeys(saved, bytes(8))


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [1, 2], 8, 12)}


def variation(**changes: Any) -> dict[str, Any]:
    return {"a": GOOD["a"], "b": {**GOOD["b"], **changes}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "does not hold a JSON object"),
        (b"[]", "does not hold a JSON object"),
        (b" {}", "does not hold a JSON object"),
        (b"{", "damaged JSON header"),
        (b'{"a": 1, "a": 2}', "damaged JSON header .*'a' appears twice"),
        (b'{"\xff": 1}', "damaged JSON header"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged JSON header"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "damaged JSON header"),
        (b'{"a": [' + b"[]," * 600_000 + b"[]]}", "too large"),
        ({"a": 1}, "'a' needs a dtype, a shape and"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "'a' needs a dtype, a shape and"),
        (variation(extra=1), "'b' needs a dtype, a shape and"),
        (variation(dtype=16), "'b' needs a dtype, a shape and"),
        (variation(dtype="BF17"), "'b' has the unknown dtype 'BF17'"),
        (variation(shape=2), "'b' needs a dtype, a shape and"),
        (variation(shape=[-1, -2]), "invalid shape or offset"),
        (variation(shape=[1.0, 2]), "invalid shape or offset"),
        (variation(shape=[True, 2]), "invalid shape or offset"),
        (variation(shape=[1 << 63, 2]), "invalid shape or offset"),
        (variation(shape=[1] * 8 + [2]), "9 axes"),
        (variation(shape=[3]), "does not match its 4 bytes"),
        (variation(shape=[1 << 62, 1 << 62]), "does not match its 4 bytes"),
        (variation(data_offsets=[8]), "'b' needs a dtype, a shape and"),
        (variation(data_offsets=[8, "12"]), "invalid shape or offset"),
        (variation(data_offsets=[12, 8]), "does not match its -4 bytes"),
        (variation(data_offsets=[4, 8]), "'b' does not start where"),
        (variation(data_offsets=[9, 13]), "'b' does not start where"),
        (variation(shape=[1 << 40], data_offsets=[8, 8 + (1 << 41)]), r"has \d+ bytes instead of"),
        ({"a": GOOD["a"]}, r"has \d+ bytes instead of"),
        ({**GOOD, "__metadata__": {"format": 1}}, "'__metadata__'"),
        ({**GOOD, "__metadata__": []}, "'__metadata__'"),
    ],
    ids=range(31),
)
def test_refuses_damaged_headers(tmp_path: Path, header: Any, message: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, bytes(12))
    with pytest.raises(CheckpointError, match=f"^{path}: .*{message}") as raised:
        open_safetensors(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert open_safetensors(write_raw(path, GOOD, bytes(12))).read("b").tolist() == [[0, 0]]


def test_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            open_safetensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="bytes instead of"):
        open_safetensors(path)


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 64) - 1])
def test_refuses_an_absurd_header_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # sparse, so that even the first length is inside the file
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"header of {length} bytes"):
        open_safetensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_refuses_other_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(CheckpointError, match=r"cannot be read .*; check the path"):
            open_safetensors(path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor model\.safetensors\.index"):
        open_safetensors(tmp_path)


# Shards


def write_shards(folder: Path) -> dict[str, str]:
    """Two shards, written by the safetensors package, and their index."""
    homes = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(ARRAYS)}
    for shard in sorted(set(homes.values())):
        arrays = {name: ARRAYS[name] for name, home in homes.items() if home == shard}
        safetensors.numpy.save_file(arrays, folder / shard)
    write_index(folder, homes)
    return homes


def write_index(folder: Path, homes: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def test_reads_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    file = open_safetensors(tmp_path)
    assert set(file.tensors) == set(ARRAYS)
    assert all(bits(file.read(name)) == bits(array) for name, array in ARRAYS.items())


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        open_safetensors(tmp_path)


def test_the_index_names_shards_and_the_shards_their_tensors(tmp_path: Path) -> None:
    """Whether a tensor that the index alone names is missing depends on the model: a tied head is not."""
    homes = write_shards(tmp_path)
    for index in ({**homes, "lm_head.weight": homes["half"]}, {**homes, "half": homes["brain"]}):
        write_index(tmp_path, index)
        assert set(open_safetensors(tmp_path).tensors) == set(ARRAYS)


@pytest.mark.parametrize("index", [None, "model.safetensors.index.json", "other.safetensors.index.json"])
def test_reads_shards_without_an_index_or_with_one_of_another_name(index: str | None, tmp_path: Path) -> None:
    homes = write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    if index:
        write_index(tmp_path, homes)
        (tmp_path / "model.safetensors.index.json").rename(tmp_path / index)
    assert set(open_safetensors(tmp_path).tensors) == set(ARRAYS)


@pytest.mark.parametrize("names", [["weights.safetensors"], ["a.SAFETENSORS", "b.safetensors", "c.safetensors"]])
def test_reads_files_of_any_name_and_not_an_adapter(names: list[str], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        arrays = {key: array for j, (key, array) in enumerate(ARRAYS.items()) if j % len(names) == i}
        safetensors.numpy.save_file(arrays, tmp_path / name)
    safetensors.numpy.save_file({"half": ARRAYS["half"]}, tmp_path / "adapter_model.safetensors")
    assert set(open_safetensors(tmp_path).tensors) == set(ARRAYS)


def test_names_the_missing_shard_without_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard 1 of 2 is missing; fetch the whole folder\.$"):
        open_safetensors(tmp_path)
    (tmp_path / "other-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"shards of several models \(model-\*-of-00002.*, other-\*-of-00002"):
        open_safetensors(tmp_path)


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    homes = write_shards(tmp_path)
    safetensors.numpy.save_file(
        {name: ARRAYS[name] for name in (*[n for n in homes if homes[n] == homes["brain"]], "half")},
        tmp_path / homes["brain"],
    )
    with pytest.raises(CheckpointError, match=r"tensor 'half' is in model-.* and in model-.*; give one of them"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", "a\0.safetensors", 3, None],
)
def test_refuses_shards_outside_the_folder(tmp_path: Path, shard: Any) -> None:
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    folder = tmp_path / "inner"
    folder.mkdir()
    write_index(folder, {"half": shard})
    with pytest.raises(CheckpointError, match=r"index\.json: tensor 'half' is listed in"):
        open_safetensors(folder)


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map'])
def test_refuses_a_damaged_index(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: (is|has|does not hold) "):
        open_safetensors(tmp_path)


# Writing


def test_the_safetensors_package_reads_one_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "new" / "folder", as_tensors(ARRAYS))
    folder = tmp_path / "new" / "folder"
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    loaded = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {name: (a.shape, bits(a)) for name, a in loaded.items()} == {
        name: (a.shape, bits(a)) for name, a in ARRAYS.items()
    }
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:  # maps; refuses unaligned tensors
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("brain").view(torch.int16).numpy().tobytes() == bits(ARRAYS["brain"])
    ours = open_safetensors(folder)
    assert all(bits(ours.read(name)) == bits(array) for name, array in ARRAYS.items())


def test_shards_agree_with_the_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path, as_tensors(ARRAYS), shard_bytes=64, metadata={"format": "pt", "by": "test"})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in ARRAYS.values())
    shards = sorted({*contents(tmp_path)} - {"model.safetensors.index.json"})
    count = len(shards)
    assert count == 4
    assert shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    loaded = {shard: safetensors.numpy.load_file(tmp_path / shard) for shard in shards}
    assert index["weight_map"] == {name: shard for shard, arrays in loaded.items() for name in arrays}
    for arrays in loaded.values():
        assert len(arrays) == 1 or sum(array.nbytes for array in arrays.values()) <= 64
        assert all(bits(array) == bits(ARRAYS[name]) for name, array in arrays.items())
    assert all(bits(open_safetensors(tmp_path).read(name)) == bits(array) for name, array in ARRAYS.items())


@pytest.mark.parametrize("shard_bytes", [10_000_000, 20_000], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_loads_what_is_written(tmp_path: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    torch.manual_seed(0)
    config = transformers.GemmaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    transformers.GemmaForCausalLM(config).to(dtype).save_pretrained(tmp_path / "theirs")
    theirs = open_safetensors(tmp_path / "theirs")
    ours = {name: theirs.read(name) for name in theirs.tensors}
    write_safetensors(tmp_path / "ours", as_tensors(ours), shard_bytes=shard_bytes)
    shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)
    reference, loaded = (
        transformers.GemmaForCausalLM.from_pretrained(tmp_path / which, dtype=dtype).eval()
        for which in ("theirs", "ours")
    )
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)
    assert bits(loaded.model.norm.weight.detach().float().numpy()) == bits(ours["model.norm.weight"].astype("f4"))


def test_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    shape, nbytes = (1024, 1024), 4 << 20
    tensors = [
        SafetensorsTensor(f"t{i}", shape, np.dtype(np.float32), lambda i=i: np.full(shape, i, np.float32))
        for i in range(4)
    ]
    tracemalloc.start()
    write_safetensors(tmp_path, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert nbytes <= peak < 1.1 * nbytes
    assert [open_safetensors(tmp_path).read(f"t{i}")[0, 0] for i in range(4)] == [0, 1, 2, 3]


def test_writes_strided_arrays_in_row_major_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path, as_tensors({"t": array}))
    assert open_safetensors(tmp_path).read("t").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_the_last_write_wins(tmp_path: Path) -> None:
    for arrays, shard_bytes in [
        ({"a": np.float32([1])}, 9),
        ({"a": np.float32([2]), "b": np.float32([3])}, 4),
    ] * 2:
        write_safetensors(tmp_path, as_tensors(arrays), shard_bytes=shard_bytes)
        file = open_safetensors(tmp_path)
        assert {name: file.read(name).tolist() for name in file.tensors} == {
            name: array.tolist() for name, array in arrays.items()
        }


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("shard_bytes", [4, 100], ids=["shards", "one file"])
def test_a_failure_leaves_the_older_checkpoint(tmp_path: Path, failure: Any, shard_bytes: int) -> None:
    def fail() -> np.ndarray:
        raise failure

    older = {"a": np.float32([1]), "b": np.float32([2]), "c": np.float32([3])}
    write_safetensors(tmp_path, as_tensors(older), shard_bytes=shard_bytes)
    before = contents(tmp_path)
    tensors = as_tensors({name: -array for name, array in older.items()})
    tensors[2] = tensors[2]._replace(produce=fail)
    expected = CheckpointError if isinstance(failure, OSError) else failure
    with pytest.raises(expected):
        write_safetensors(tmp_path, tensors, shard_bytes=shard_bytes)
    assert contents(tmp_path) == before


def test_checks_the_free_space_before_it_starts(tmp_path: Path) -> None:
    def produce() -> np.ndarray:
        pytest.fail("nothing may be produced")

    tensor = SafetensorsTensor("t", (1 << 30, 1 << 22), np.dtype(np.float32), produce)
    with pytest.raises(CheckpointError, match=r"needs 18,014,398,509,\d+,\d+ bytes, and [\d,]+ are free; make room"):
        write_safetensors(tmp_path, [tensor])
    assert not contents(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/folder: cannot be written \(Not a directory\)"):
        write_safetensors(tmp_path / "file" / "folder", as_tensors(ARRAYS))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (as_tensors(ARRAYS) + as_tensors(ARRAYS), "'half' cannot be written twice"),
        (as_tensors({"ids": np.arange(3)}), "'ids' cannot be written as int64"),
        (as_tensors({"__metadata__": np.float32([1])}), "'__metadata__' cannot be written"),
    ],
)
def test_refuses_tensors_that_cannot_be_written(tmp_path: Path, tensors: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path, tensors)
    assert not contents(tmp_path)


def test_a_produced_tensor_must_have_the_described_shape_and_dtype(tmp_path: Path) -> None:
    tensor = as_tensors({"t": np.float32([1, 2])})[0]
    for array in (np.float32([1]), np.float64([1, 2])):
        with pytest.raises(AssertionError, match="t: "):
            write_safetensors(tmp_path, [tensor._replace(produce=lambda array=array: array)])
    assert not contents(tmp_path)
