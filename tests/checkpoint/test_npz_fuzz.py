"""Any `.npz` file gives the arrays that NumPy reads, or a one-sentence error."""

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.files.npz import open_npz
from gemwright.errors import CheckpointError

ARRAYS: dict[str, Any] = {
    "a/b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "bits": np.arange(6, dtype=np.uint16).view("V2").reshape(2, 3),
}


def saved(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **ARRAYS)
    return buffer.getvalue()


SOUND = [saved(np.savez), saved(np.savez_compressed)]


def survives(path: Path) -> dict[str, bytes] | None:
    """Return the arrays of a file, or None if it is refused in one sentence; check the memory."""
    tracemalloc.start()
    try:
        file = open_npz(path)
        held = {name: file.read(name).tobytes() for name in file.tensors}
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert message.endswith(".")
        assert len(message) < len(str(path)) + 300
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 22
    return held


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.npz"


def test_the_sound_files_are_sound(path: Path) -> None:
    for data in SOUND:
        path.write_bytes(data)
        assert survives(path) == {name: value.tobytes() for name, value in ARRAYS.items()}


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_files_with_some_bytes_changed(data: st.DataObject, path: Path) -> None:
    content = bytearray(data.draw(st.sampled_from(SOUND)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    survives(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_files_cut_and_joined(data: st.DataObject, path: Path) -> None:
    content = data.draw(st.sampled_from(SOUND))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    path.write_bytes(data.draw(st.sampled_from([content[:start], content[start:], content[:start] + content[stop:]])))
    survives(path)


@given(content=st.binary(max_size=200), tail=st.sampled_from(SOUND))
@settings(max_examples=100, deadline=None)
def test_random_bytes(content: bytes, tail: bytes, path: Path) -> None:
    path.write_bytes(content)
    survives(path)
    path.write_bytes(tail[:-22] + content + tail[-22:])
    survives(path)


HEADERS = st.one_of(
    st.text("{}'(),: defshapcrotn_Ol<f4|V20123456789TrueFalse\n", max_size=60),
    st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': ({}), }}\n".format,
        st.sampled_from(["'<f4'", "'|O'", "'|V2'", "'<f999'", "[('a', '<f4')]", "__import__('os')"]),
        st.sampled_from(["True", "False", "None", "1"]),
        st.lists(st.integers(0, 10**20), max_size=10).map(lambda n: ", ".join(map(str, n))),
    ),
)


@given(header=HEADERS, version=st.integers(0, 4), length=st.none() | st.integers(0, 2**16 - 1), body=st.binary())
@settings(max_examples=200, deadline=None)
def test_arrays_with_any_header(header: str, version: int, length: int | None, body: bytes, path: Path) -> None:
    size = len(header) if length is None else length
    content = b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if version == 2 else zipfile.ZIP_STORED) as archive:
        archive.writestr("x.npy", content + header.encode() + body)
    survives(path)


def test_a_bomb_is_refused(path: Path) -> None:
    """A member that decompresses to more than it claims, and one that is only a header."""
    data = bytearray(saved(lambda file, **_: np.savez_compressed(file, x=np.zeros(1 << 22, np.float32))))
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (4128).to_bytes(4, "little")
    path.write_bytes(data)
    assert survives(path) is None
