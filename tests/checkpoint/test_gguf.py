import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files import gguf as own
from gemwright.checkpoint.files.gguf import GgufFile, GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.files.lazy_strings import LazyStrings
from gemwright.checkpoint.files.tensor_file import TensorFile, TensorInfo
from gemwright.errors import CheckpointError
from tests.quick_reader import QuickReader

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def assert_reads_like_gguf_py(file: GgufFile, reader: gguf.GGUFReader) -> None:
    """Compare every key, value, offset, shape and encoding."""
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for key, field in fields.items():
        value = file.metadata[key]
        if isinstance(value, np.ndarray):
            assert value.dtype == reader.gguf_scalar_to_np[field.types[1]]
            np.testing.assert_array_equal(value, np.concatenate([field.parts[i] for i in field.data]))
        else:
            expected = field.contents()
            value = list(value) if isinstance(value, LazyStrings) else value
            assert type(value) is type(expected)
            assert value == expected
    infos = [
        (t.name, TensorInfo(tuple(reversed(t.shape.tolist())), t.tensor_type.name, t.data_offset, t.n_bytes))
        for t in reader.tensors
    ]
    assert list(file.tensors.items()) == infos


def assert_tensor_equals_gguf_py(file: TensorFile, tensor: gguf.ReaderTensor) -> None:
    expected = tensor.data
    if tensor.tensor_type.name == "BF16":
        expected = expected.view(ml_dtypes.bfloat16)
    elif expected.dtype == np.uint8:
        expected = quants.dequantize(expected, tensor.tensor_type)
    actual = file.read(tensor.name)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(file.raw(tensor.name), tensor.data.reshape(-1).view(np.uint8))


# Reading


@pytest.fixture
def peer_file(tmp_path: Path) -> Path:
    """A file written by gguf-py with every value type and several encodings."""
    path = tmp_path / "peer.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for name, value in [
        ("uint8", 255),
        ("int8", -128),
        ("uint16", 65535),
        ("int16", -2),
        ("uint32", 2**32 - 1),
    ]:
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    for name, value in [
        ("int32", -3),
        ("uint64", 2**64 - 1),
        ("int64", -(2**63)),
        ("float32", 1e-6),
        ("float64", 0.1),
    ]:
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_bool("a.true", True)
    writer.add_bool("a.false", False)
    writer.add_string("a.text", "Ünïcode ▁ \n 🙂")
    writer.add_array("a.texts", ["", "▁the", "<0x00>", "🙂\0", "x" * 300])
    writer.add_array("a.floats", [-1.5, 0.0, 1e-6])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.bools", [True, False, True])
    writer.add_key_value("a.doubles", [0.1, 0.2], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT64)
    writer.add_tensor("f32", values(3, 5, 7))
    writer.add_tensor("f16", values(4, 3).astype(np.float16))
    writer.add_tensor("vector", values(5))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blocks", quants.quantize(values(64), q8_0), raw_dtype=q8_0)
    for encoding in ("BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        kind = gguf.GGMLQuantizationType[encoding]
        writer.add_tensor(encoding, quants.quantize(values(6, 64), kind), raw_dtype=kind)
    for encoding in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        e = ggml.ENCODINGS[encoding]
        raw = np.zeros((6, 2), e.block)
        for field in e.block.names or ():
            raw[field] = 3 if field in ("d", "dmin") else np.arange(raw[field].size).reshape(raw[field].shape) % 100
        writer.add_tensor(encoding, raw.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType[encoding])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_gguf_py_writes(peer_file: Path) -> None:
    file, reader = open_gguf(peer_file), gguf.GGUFReader(peer_file)
    assert file.path == peer_file
    assert file.version == 3
    assert_reads_like_gguf_py(file, reader)
    assert len(reader.tensors) == 15
    for tensor in reader.tensors:
        assert_tensor_equals_gguf_py(file, tensor)


def test_reads_rows(peer_file: Path) -> None:
    file: TensorFile = open_gguf(peer_file)
    for name, info in file.tensors.items():
        whole = file.read(name)
        assert whole.shape == info.shape
        for start, stop in [(0, 1), (1, 3), (2, 2), (0, info.shape[0]), (info.shape[0] - 1, 99)]:
            np.testing.assert_array_equal(file.read_rows(name, start, stop), whole[start:stop])


def test_plain_tensors_are_read_only_views(peer_file: Path) -> None:
    file = open_gguf(peer_file)
    for array in (
        file.read("f32"),
        file.read("f16"),
        file.read("BF16"),
        file.raw("Q4_K"),
        file.read_rows("f32", 1, 2),
    ):
        assert not array.flags.owndata
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_reads_the_demo_file_like_gguf_py(demo_gguf: Path, joined_demo: Path) -> None:
    """Ours reads the installed parts, theirs the joined file."""
    file, reader = open_gguf(demo_gguf), QuickReader(joined_demo)
    assert_reads_like_gguf_py(file, reader)
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 262144
    assert sum(math.prod(info.shape) for info in file.tensors.values()) == 268_098_176
    by_encoding = {tensor.tensor_type.name: tensor for tensor in reader.tensors if tensor.name != "token_embd.weight"}
    assert set(by_encoding) == {"F32", "Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    for tensor in by_encoding.values():
        assert_tensor_equals_gguf_py(file, tensor)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.sampled_from("\0\1\7\x08aé▁🙂"), max_size=8) | st.just("x" * 300), max_size=8),
    many=st.sampled_from([1, own.MIN_LAZY]),
)
def test_reads_any_strings(tmp_path: Path, texts: list[str], many: int) -> None:
    """With zero bytes and small numbers, which lengths consist of too, anywhere in any string."""
    path = tmp_path / "strings.gguf"
    array = struct.pack("<IQ", STRING, len(texts)) + b"".join(text(one.encode()) for one in texts)
    path.write_bytes(gguf_bytes([key(b"texts", ARRAY, array), *ONE_KEY], ONE, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "MIN_LAZY", many)
        file = open_gguf(path)
    assert list(file.metadata["texts"]) == texts
    assert file.metadata == {"texts": texts, "a": 1}
    assert list(file.tensors) == ["t"]


def test_long_string_arrays_are_decoded_lazily(tmp_path: Path) -> None:
    names = [f"piece {index}" for index in range(own.MIN_LAZY)]
    write_gguf(tmp_path / "many.gguf", {"names": names}, [])
    read = open_gguf(tmp_path / "many.gguf").metadata["names"]
    assert isinstance(read, LazyStrings)
    assert (len(read), read[-1], read[2:4]) == (own.MIN_LAZY, names[-1], names[2:4])
    assert read == names
    assert read != names[:-1]
    write_gguf(tmp_path / "copy.gguf", {"names": read}, [])
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    damaged = (tmp_path / "many.gguf").read_bytes().replace(b"piece 7\x07", b"piece \xff\x07")
    (tmp_path / "many.gguf").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is not UTF-8; fetch the file again"):
        list(open_gguf(tmp_path / "many.gguf").metadata["names"])


# Damaged and foreign files


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, dims: tuple[int, ...], type_id: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def gguf_bytes(keys: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3, align: int = 32) -> bytes:
    header = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    return header + bytes(-len(header) % align + data)


ONE_KEY = [key(b"a", UINT32, struct.pack("<I", 1))]
ONE = [tensor(b"t", (8,), 0, 0)]

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"GGUF\3\0\0\0", "too short"),
    "magic": (b"PK\3\4" + bytes(60), "does not start with 'GGUF'"),
    "version 1": (gguf_bytes([], [], version=1), "version 1"),
    "version 4": (gguf_bytes([], [], version=4), "version 4"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "key count": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "9223372036854775808 keys"),
    "tensor count": (struct.pack("<4sIQQ", b"GGUF", 3, 2**64 - 1, 0), "18446744073709551615 tensors"),
    "keys missing": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + ONE_KEY[0], "ends inside the key after 'a'"),
    "key length": (gguf_bytes([struct.pack("<Q", 2**64 - 1)], []), "ends inside the key after 'the header'"),
    "key twice": (gguf_bytes(ONE_KEY * 2, []), "key 'a' appears twice"),
    "key not UTF-8": (gguf_bytes([key(b"\xff", UINT32, bytes(4))], []), "not UTF-8"),
    "value type": (gguf_bytes([key(b"a", 13, bytes(8))], []), "key 'a' has the unknown value type 13"),
    "value not UTF-8": (
        gguf_bytes([key(b"a", STRING, text(b"\xed\xa0\x80"))], []),
        "key 'a' is not UTF-8",
    ),
    "string length": (gguf_bytes([key(b"a", STRING, struct.pack("<Q", 2**63))], []), "ends inside key 'a'"),
    "array length": (
        gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", UINT64, 2**61))], []),
        "ends inside key 'a'",
    ),
    "strings length": (
        gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", STRING, 2**61))], []),
        "ends inside key 'a'",
    ),
    "strings cut short": (
        gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"one") + struct.pack("<Q", 200))], [], 99),
        "ends inside key 'a'",
    ),
    "strings not UTF-8": (
        gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"\xc3") + text(b"\xa9"))], []),
        "key 'a' is not UTF-8",
    ),
    "array of arrays": (
        gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1))], []),
        "unsupported value type 9",
    ),
    "alignment 0": (
        gguf_bytes([key(b"general.alignment", UINT32, bytes(4))], []),
        "is 0, not a power of two",
    ),
    "alignment 48": (
        gguf_bytes([key(b"general.alignment", UINT32, b"\x30\0\0\0")], []),
        "is 48, not a power of two",
    ),
    "alignment 2**31": (
        gguf_bytes([key(b"general.alignment", UINT32, b"\0\0\0\x80")], []),
        "not a power of two from 8",
    ),
    "alignment text": (
        gguf_bytes([key(b"general.alignment", STRING, text(b"32"))], []),
        "is '32', not a power of two",
    ),
    "tensor missing": (
        struct.pack("<4sIQQ", b"GGUF", 3, 2, 0) + ONE[0],
        "ends inside the tensor name after 't'",
    ),
    "tensor twice": (gguf_bytes([], ONE * 2, 64), "tensor 't' appears twice"),
    "axes": (gguf_bytes([], [tensor(b"t", (1,) * 5, 0, 0)], 64), "tensor 't' claims 5 axes"),
    "axes 2**32": (gguf_bytes([], [text(b"t") + b"\xff" * 4], 64), "tensor 't' claims 4294967295 axes"),
    "empty axis": (gguf_bytes([], [tensor(b"t", (8, 0), 0, 0)], 64), r"tensor 't' has shape \(0, 8\)"),
    "rows of part blocks": (
        gguf_bytes([], [tensor(b"t", (48, 2), 8, 0)], 512),
        r"\(2, 48\), which is not valid for Q8_0",
    ),
    "product overflow": (gguf_bytes([], [tensor(b"t", (2**32,) * 4, 0, 0)], 64), "ends inside tensor 't'"),
    "offset overflow": (gguf_bytes([], [tensor(b"t", (8,), 0, 2**64 - 32)], 64), "ends inside tensor 't'"),
    "data missing": (gguf_bytes([], ONE, 31), "ends inside tensor 't'"),
    "unaligned": (gguf_bytes([], [tensor(b"t", (8,), 0, 16)], 64), "tensor 't' is not aligned to 32"),
    "overlap": (
        gguf_bytes([], [tensor(b"u", (9,), 0, 0), tensor(b"t", (8,), 0, 32)], 96),
        "'t' overlaps tensor 'u'",
    ),
    "Q8_K": (
        gguf_bytes([], [tensor(b"t", (256,), 15, 0)], 512),
        "tensor 't' has encoding Q8_K; choose another file of the model, such as one with Q4_K_M",
    ),
    "I32": (gguf_bytes([], [tensor(b"t", (256,), 26, 0)], 1024), "tensor 't' has encoding I32"),
    "unknown encoding": (
        gguf_bytes([], [tensor(b"t", (256,), 999, 0)], 512),
        "tensor 't' has encoding number 999",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_refuses_damaged_files(tmp_path: Path, case: str) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 250


def test_accepts_what_the_damaged_files_are_made_from(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    align = key(b"general.alignment", UINT32, struct.pack("<I", 64))
    path.write_bytes(gguf_bytes([*ONE_KEY, align], [*ONE, tensor(b"s", (), 0, 64)], 68, version=2, align=64))
    file = open_gguf(path)
    assert file.version == 2
    assert file.metadata == {"a": 1, "general.alignment": 64}
    assert file.read("t").shape == (8,)
    assert file.read("s").shape == ()


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_refuses_paths_that_are_not_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(tmp_path / name)


def test_bool_bytes_other_than_one_are_true(tmp_path: Path) -> None:
    path = tmp_path / "bools.gguf"
    path.write_bytes(gguf_bytes([key(b"a", ARRAY, struct.pack("<IQ", 7, 3) + b"\0\1\2")], []))
    bools = open_gguf(path).metadata["a"]
    assert bools.tolist() == [False, True, True]
    np.testing.assert_array_equal(bools.view(np.uint8), [0, 1, 1])


# Writing

METADATA: dict[str, Any] = {
    "general.architecture": "gemma3",
    "uint32": 2**32 - 1,
    "int32": -1,
    "uint64": 2**32,
    "float32": 0.5,
    "true": True,
    "false": False,
    "texts": ["▁a", "", "🙂"],
    "floats": np.array([0.1, -2], np.float32),
    "ints": np.array([1, -2], np.int32),
    "bools": np.array([True, False]),
}


def tensors() -> list[GgufTensor]:
    rows = values(10, 64)
    plain = [GgufTensor(f"blk.{e}", (10, 64), e, (rows[i : i + 3] for i in range(0, 10, 3))) for e in WRITABLE]
    return [
        GgufTensor("odd", (3,), "F32", [values(3)]),
        *plain,
        GgufTensor("cube", (2, 3, 5), "F16", [values(2, 3, 5)]),
    ]


WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_gguf_py_reads_what_is_written(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "model.gguf"
    metadata = METADATA | ({} if alignment is None else {"general.alignment": alignment})
    write_gguf(path, metadata, tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    file, reader = open_gguf(path), gguf.GGUFReader(path)
    assert_reads_like_gguf_py(file, reader)
    assert list(file.metadata) == list(metadata)
    for name, value in metadata.items():
        np.testing.assert_array_equal(file.metadata[name], value)
    kinds = {name: field.types[-1].name.lower() for name, field in reader.fields.items()}
    assert all(kinds[name] == name for name in ("uint32", "int32", "uint64", "float32"))
    assert len(reader.tensors) == 7
    for t in reader.tensors:
        assert_tensor_equals_gguf_py(file, t)
        assert t.data_offset % (alignment or 32) == 0
    for encoding in WRITABLE:
        expected = quants.quantize(values(10, 64), gguf.GGMLQuantizationType[encoding])
        np.testing.assert_array_equal(file.raw(f"blk.{encoding}"), expected.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(file.read("odd"), values(3))
    np.testing.assert_array_equal(file.read("cube"), values(2, 3, 5).astype(np.float16))


def test_metadata_that_was_read_is_written_unchanged(peer_file: Path, tmp_path: Path) -> None:
    metadata = {k: v for k, v in open_gguf(peer_file).metadata.items() if k not in ("a.int64", "a.float64")}
    write_gguf(tmp_path / "copy.gguf", metadata, [])
    copy = open_gguf(tmp_path / "copy.gguf").metadata
    assert list(copy) == list(metadata)
    for name, value in metadata.items():
        np.testing.assert_array_equal(copy[name], value)


def test_one_chunk_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        for i in range(4):
            alive.append(len(list(tmp_path.iterdir())))
            yield np.full((1, 32), i, np.float32)

    write_gguf(tmp_path / "model.gguf", {}, [GgufTensor("t", (4, 32), "F32", chunks())])
    assert alive == [1] * 4  # the temporary file
    np.testing.assert_array_equal(open_gguf(tmp_path / "model.gguf").read("t")[:, 0], [0, 1, 2, 3])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(5, "Input/output error")])
def test_a_failure_leaves_the_old_file(tmp_path: Path, failure: BaseException | type[BaseException]) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield values(1, 32)
        raise failure

    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    expected = CheckpointError if isinstance(failure, OSError) else failure
    with pytest.raises(expected):
        write_gguf(path, METADATA, [GgufTensor("t", (2, 32), "F32", chunks())])
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"old"


def test_free_space_is_checked_before_writing(tmp_path: Path) -> None:
    def chunks() -> Iterator[np.ndarray]:
        raise AssertionError("nothing may be computed")
        yield

    with pytest.raises(CheckpointError, match=r"No space left on device\): it needs 4,503,599,627,\d+,\d+ bytes"):
        write_gguf(tmp_path / "model.gguf", {}, [GgufTensor("t", (1 << 45, 32), "F32", chunks())])
    assert not list(tmp_path.iterdir())


def test_makes_a_missing_folder_unless_a_file_has_its_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "none" / "model.gguf", {"a": 1}, [])
    assert open_gguf(tmp_path / "none" / "model.gguf").metadata == {"a": 1}
    with pytest.raises(CheckpointError, match=r"cannot be written .Not a directory.; choose another place"):
        write_gguf(tmp_path / "none" / "model.gguf" / "a" / "model.gguf", {}, [])


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**31) - 1, 1e39, None, [1, 2], np.zeros((2, 2)), np.zeros(2, np.complex64), "\ud800", [b"x"]],
)
def test_refuses_values_gguf_cannot_hold(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="key 'a' cannot be written"):
        write_gguf(tmp_path / "model.gguf", {"a": value}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            [GgufTensor("t", (2, 256), "IQ1_S", [])],
            "cannot be written as IQ1_S; choose from F32, F16, BF16, Q4_0",
        ),
        ([GgufTensor("t", (2, 48), "Q8_0", [])], r"shape \(2, 48\) cannot be written as Q8_0"),
        ([GgufTensor("t", (), "F32", [])], "cannot be written as F32"),
        ([GgufTensor("t", (1,) * 5, "F32", [])], "cannot be written as F32"),
        ([GgufTensor("t", (0, 2), "F32", [])], "cannot be written as F32"),
        ([GgufTensor("t", (1,), "F32", [values(1)])] * 2, "'t' appears twice"),
        ([GgufTensor("t" * 64, (1,), "F32", [values(1)])], "longer than 63 bytes"),
        (
            [GgufTensor("t", (2,), "F16", [np.full(2, 1e6)])],
            "tensor 't': values that are not finite, or too large for F16",
        ),
    ],
)
def test_refuses_tensors_gguf_cannot_hold(tmp_path: Path, bad: list[GgufTensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_gguf(tmp_path / "model.gguf", {}, bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunks", [[values(1, 32)], [values(3, 32)], [values(2, 16), values(2, 16)]])
def test_chunks_must_add_up_to_the_tensor(tmp_path: Path, chunks: list[np.ndarray]) -> None:
    with pytest.raises(AssertionError, match=r"^t: "):
        write_gguf(tmp_path / "model.gguf", {}, [GgufTensor("t", (2, 32), "F32", chunks)])
    assert not list(tmp_path.iterdir())


@pytest.mark.peer
def test_llama_cpp_runs_a_rewritten_demo(joined_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms in float32 and the rest in 8 bits, the greedy text equals that of the original file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False  # its AMX kernels crash on some virtual machines
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: parameters)
    demo = open_gguf(joined_demo)

    def again(name: str, info: TensorInfo) -> GgufTensor:
        rows = range(0, info.shape[0], 4096)
        encoding = "F32" if len(info.shape) == 1 else "Q8_0"
        return GgufTensor(name, info.shape, encoding, (demo.read_rows(name, i, i + 4096) for i in rows))

    path = tmp_path / "again.gguf"
    write_gguf(path, demo.metadata, [again(name, info) for name, info in demo.tensors.items()])

    def greedy(model: Path) -> str:
        llm = llama_cpp.Llama(str(model), n_ctx=64, n_threads=2, verbose=False)
        return llm("The capital of France is", max_tokens=12, temperature=0)["choices"][0]["text"]

    assert greedy(path) == greedy(joined_demo)
