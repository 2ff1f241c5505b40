"""Opening and reading any file raises nothing but CheckpointError and takes little time and memory."""

import struct
import tracemalloc
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.errors import CheckpointError

PEAK = 4 << 20  # bytes; the files have a few thousand

fuzz = settings(
    max_examples=150,
    deadline=timedelta(seconds=2),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def accepts(path: Path, data: bytes) -> bool:
    """Open and read everything; return whether the file was accepted."""
    path.unlink(missing_ok=True)  # an older file may still be mapped
    path.write_bytes(data)
    tracemalloc.start()
    try:
        file = open_gguf(path)
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
            assert len(file.raw(name)) == info.nbytes
            assert info.offset + info.nbytes <= len(data)
        return True
    except CheckpointError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < PEAK


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "sound.gguf"
    metadata = {
        "general.architecture": "gemma3",
        "general.alignment": 32,
        "a.bool": True,
        "a.float": 0.5,
        "tokens": ["<pad>", "▁the", "🙂", ""],
        "scores": np.arange(4, dtype=np.float32),
        "types": np.arange(4, dtype=np.int32),
    }
    rows = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    tensors = [GgufTensor(e, (3, 64), e, [rows]) for e in ("F32", "F16", "BF16", "Q8_0", "Q4_0")]
    write_gguf(path, metadata, tensors)
    data = path.read_bytes()
    assert accepts(path, data)
    return data


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 31, 2**31 - 1, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 50),
)


@fuzz
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes(tmp_path: Path, sound: bytes, edits: list[tuple[float, int]]) -> None:
    data, header = bytearray(sound), len(sound) // 4
    for where, value in edits:
        data[int(where * header)] = value
    accepts(tmp_path / "file.gguf", bytes(data))


@fuzz
@given(where=st.floats(0, 0.25), number=NUMBERS, width=st.sampled_from("IQ"))
def test_changed_numbers(tmp_path: Path, sound: bytes, where: float, number: int, width: str) -> None:
    packed = struct.pack(f"<{width}", number % (1 << 8 * struct.calcsize(width)))
    start = int(where * len(sound))
    accepts(tmp_path / "file.gguf", sound[:start] + packed + sound[start + len(packed) :])


@fuzz
@given(data=st.data())
def test_cut_and_spliced(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    place = st.integers(0, len(sound))
    a, b, c, d = (data.draw(place) for _ in range(4))
    accepts(tmp_path / "file.gguf", sound[:a] + sound[b : b + c % 200] + sound[d:])


def test_every_truncation(tmp_path: Path, sound: bytes) -> None:
    needed = len(sound.rstrip(b"\0")) - 32
    assert not any(accepts(tmp_path / "file.gguf", sound[:length]) for length in range(0, needed, 7))


TEXT = st.binary(max_size=8)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the number types
NAMES = st.sampled_from([b"a", b"b", b"general.alignment", b"\xff", b""])
TYPE_IDS = st.one_of(st.sampled_from([e.type_id for e in ggml.ENCODINGS.values()]), st.integers(0, 2**32 - 1))


@st.composite
def length_and(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a length, usually the right one, and its contents."""
    length = len(content) if draw(st.integers(0, 9)) else draw(NUMBERS)
    return struct.pack("<Q", length) + content


@st.composite
def key_and_value(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 13))
    if kind == 8:
        value = draw(TEXT.flatmap(length_and))
    elif kind == 9:
        value = struct.pack("<IQ", draw(st.integers(0, 13)), draw(NUMBERS)) + draw(st.binary(max_size=40))
    else:
        value = draw(st.binary(min_size=SIZES.get(kind, 1), max_size=SIZES.get(kind, 8)))
    return draw(NAMES.flatmap(length_and)) + struct.pack("<I", kind) + value


@st.composite
def tensor(draw: st.DrawFn) -> bytes:
    dims = draw(st.lists(st.one_of(NUMBERS, st.sampled_from([32, 64, 256])), max_size=5))
    offset = draw(st.one_of(st.sampled_from([0, 32, 64, 256]), NUMBERS))
    packed = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, draw(TYPE_IDS), offset)
    return draw(NAMES.flatmap(length_and)) + packed


@fuzz
@given(
    keys=st.lists(key_and_value(), max_size=4),
    tensors=st.lists(tensor(), max_size=4),
    counts=st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS)),
    version=st.sampled_from([2, 3]),
    tail=st.integers(0, 4096),
)
def test_random_headers(
    tmp_path: Path,
    keys: list[bytes],
    tensors: list[bytes],
    counts: tuple[int, int] | None,
    version: int,
    tail: int,
) -> None:
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    header = struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_keys)
    accepts(tmp_path / "file.gguf", header + b"".join(keys) + b"".join(tensors) + bytes(tail))
