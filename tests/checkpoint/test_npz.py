"""Files saved by NumPy are read as NumPy reads them; anything but plain arrays of floats is refused."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemwright.checkpoint.files.npz import open_npz
from gemwright.errors import CheckpointError

RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "params/llm/layers/mlp/linear": RANDOM.normal(size=(3, 5, 7)).astype(np.float32),
    "params/img/head/bias": RANDOM.normal(size=11).astype(np.float16),
    "params/img/pos_embedding": RANDOM.normal(size=(1, 4, 6)).astype(ml_dtypes.bfloat16),
    "scalar": np.float32(3.5),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_saved(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    file = open_npz(tmp_path / "a.npz")
    assert list(file.tensors) == list(ARRAYS)
    for name, value in ARRAYS.items():
        value = np.asarray(value)
        found = file.read(name)
        assert (found.dtype, found.shape, file.tensors[name].shape) == (value.dtype, value.shape, value.shape)
        assert file.tensors[name].nbytes == value.nbytes
        assert found.tobytes() == file.raw(name).tobytes() == value.tobytes()
        assert not found.flags.writeable
        file.release(name)
        assert found.tobytes() == value.tobytes()
    assert np.array_equal(
        file.read_rows("params/llm/layers/mlp/linear", 1, 3), ARRAYS["params/llm/layers/mlp/linear"][1:3]
    )


def test_bfloat16_is_saved_as_two_bytes_without_a_type(tmp_path: Path) -> None:
    name = "params/img/pos_embedding"
    np.savez(tmp_path / "a.npz", **{name: ARRAYS[name].view("V2")})
    assert open_npz(tmp_path / "a.npz").read(name).tobytes() == ARRAYS[name].tobytes()
    assert open_npz(tmp_path / "a.npz").tensors[name].encoding == "BF16"


def test_stored_arrays_are_mapped_and_not_copied(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(4, dtype=np.float32))
    file = open_npz(tmp_path / "a.npz")
    offset = file.tensors["x"].offset
    assert (tmp_path / "a.npz").read_bytes()[offset : offset + 16] == np.arange(4, dtype=np.float32).tobytes()
    assert not file.read("x").flags.owndata


def test_zips_with_numbers_of_64_bits(tmp_path: Path) -> None:
    """As NumPy writes them in local headers, and for files larger than 4 GB."""
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array(member, ARRAYS["params/img/head/bias"])
    small = (tmp_path / "a.npz").read_bytes()
    assert np.array_equal(open_npz(tmp_path / "a.npz").read("x"), ARRAYS["params/img/head/bias"])
    # The same directory with its numbers in the fields of a large file.
    end = small.rindex(b"PK\x05\x06")
    start = small.rindex(b"PK\x01\x02")
    fields = list(struct.unpack_from("<4s4B4H3L5H2L", small, start))
    packed, size, offset = fields[10], fields[11], fields[18]
    name = small[start + 46 : start + 46 + fields[12]]
    extra = struct.pack("<2H3Q", 1, 24, size, packed, offset)
    fields[10] = fields[11] = fields[18] = 0xFFFFFFFF
    fields[13] = len(extra)
    entry = struct.pack("<4s4B4H3L5H2L", *fields) + name + extra
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(entry), 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert end > start
    (tmp_path / "b.npz").write_bytes(small[:start] + entry + record + locator + last)
    assert np.array_equal(np.load(tmp_path / "b.npz")["x"], ARRAYS["params/img/head/bias"])  # it is a sound file
    assert np.array_equal(open_npz(tmp_path / "b.npz").read("x"), ARRAYS["params/img/head/bias"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{"a": 1}], object), r"array 'x' is not a plain array of floats \('\|O'"),
        (np.zeros(3, np.float64), r"not a plain array of floats \('<f8'"),
        (np.zeros(3, ">f4"), r"not a plain array of floats \('>f4'"),
        (np.zeros(3, [("a", "<f4")]), r"not a plain array of floats \(\[\('a', '<f4'\)"),
        (np.zeros(3, np.int32), r"not a plain array of floats"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), r"array 'x' is in Fortran order; save it in C order"),
    ],
)
def test_anything_but_plain_arrays_of_floats_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=value)
    with pytest.raises(CheckpointError, match=message):
        open_npz(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(CheckpointError, match=r"cannot be read .*; check the path"):
        open_npz(path)
    for content in (b"", b"PK", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is empty|is too short to be a zip|is not a zip"):
            open_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CheckpointError, match=r"holds 'notes\.txt', which is not an array"):
        open_npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", "hello")
    with pytest.raises(CheckpointError, match=r"unsupported compression; save it with numpy\.savez"):
        open_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "hello")
    with pytest.raises(CheckpointError, match="array 'x' is not a NumPy array"):
        open_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            with archive.open("x.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="array 'x' appears twice"):
        open_npz(tmp_path / "a.npz")


def test_claims_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    """A header of a 4 TB array in a member that claims to decompress to that size."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000, np.float32))
    data = (tmp_path / "a.npz").read_bytes()
    start = data.rindex(b"PK\x01\x02")
    forged = data[: start + 24] + struct.pack("<L", 0xFFFFFFF0) + data[start + 28 :]
    (tmp_path / "a.npz").write_bytes(forged)
    with pytest.raises(CheckpointError, match=r"'x\.npy' claims 4294967280 bytes, more than it can hold"):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_compressed_array_that_is_damaged_is_noticed(place: float, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=RANDOM.normal(size=5000).astype(np.float32))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[int(len(data) * place)] ^= 0x55
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match="array 'x' is damaged"):
        open_npz(tmp_path / "a.npz").read("x")
