"""NumPy's `.npz`, a zip of arrays: big_vision's format of PaliGemma and its mask decoder. Nothing is unpickled.

Source: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3; numpy `lib/format.py`. NumPy has no bfloat16 and writes it as two bytes
without a type.
"""

import math
import mmap
import os
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error, map_file
from gemwright.checkpoint.files.tensor_file import TensorInfo

MAX_DIRECTORY = 1 << 22
"""Maximum size of the zip's directory in bytes. PaliGemma has about fifty arrays."""
MAX_HEADER = 10_000
"""Maximum size of an array's header in bytes, as in NumPy."""
MAX_AXES = 8
"""Maximum number of axes of an array."""
MAX_RATIO = 1032
"""Maximum number of bytes that one byte of deflate decompresses to."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_TYPES = {"<f4": ("F32", np.dtype("<f4")), "<f2": ("F16", np.dtype("<f2")), "|V2": ("BF16", _BFLOAT16)}
_TYPES["<V2"] = _TYPES["|V2"]
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s4B4H3L5H2L"), struct.Struct("<4s2B4H3L2H")
_HEADER = re.compile(
    r"\{'descr': '([<>|=][a-zA-Z]\d{1,3})', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), *\} *\n"
)
_STORED, _DEFLATED = 0, 8
_UNKNOWN = 0xFFFFFFFF
"""Value of a 32-bit field whose number needs 64 bits and follows in the extra field."""


@dataclass(frozen=True)
class _Member:
    """A file of the zip: the place of its bytes, and the size of the array's header in the decompressed bytes."""

    method: int
    crc: int
    start: int
    compressed: int
    size: int
    header: int = 0


@dataclass(frozen=True, eq=False)
class NpzFile:
    """An open `.npz`: a `TensorFile`.

    Attributes:
        path: The file.
        tensors: Every array, in the order of the zip's directory. The offset of a compressed array is that of its first
            compressed byte.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    _members: Mapping[str, _Member]
    _map: mmap.mmap
    _last: dict[str, NDArray[np.uint8]] = field(default_factory=dict[str, NDArray[np.uint8]])
    _lock: Lock = field(default_factory=Lock)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return an array's bytes, `(nbytes,)`, read-only: a view of the mapped file, or decompressed.

        The last decompressed array is cached, because the layers of a stacked array are read one by one.

        Raises:
            CheckpointError: The array is compressed and damaged.
        """
        info, member = self.tensors[name], self._members[name]
        if member.method == _STORED:
            return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        with self._lock:
            if name not in self._last:
                self._last.clear()
                self._last[name] = np.frombuffer(_decompress(self.path, name, self._map, member), np.uint8)
            return self._last[name][member.header :]

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole array, read-only and possibly unaligned.

        Raises:
            CheckpointError: As for `raw`.
        """
        info = self.tensors[name]
        dtype = next(dtype for encoding, dtype in _TYPES.values() if encoding == info.encoding)
        return self.raw(name).view(dtype).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]`."""
        return self.read(name)[start:stop]

    def release(self, name: str) -> None:
        """Release the pages that reading mapped in."""
        if self._members[name].method == _STORED:
            self._map.madvise(mmap.MADV_DONTNEED)


def open_npz(path: str | os.PathLike[str], only: Collection[str] | None = None) -> NpzFile:
    """Open a file: read the zip's directory and the arrays' headers only.

    Args:
        path: The file.
        only: Names of the arrays to read; the other files of the zip are not checked. None reads all.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but plain arrays of floats.
    """
    path = Path(path)
    data = map_file(path)
    if len(data) < _END.size:
        raise file_error(path, "is too short to be a zip")
    tensors: dict[str, TensorInfo] = {}
    members: dict[str, _Member] = {}
    for file_name, member in _iterate_entries(path, data):
        name = file_name.removesuffix(".npy")
        if only is not None and name not in only:
            continue
        if name == file_name:
            raise file_error(path, f"holds {file_name!r:.80}, which is not an array")
        if name in tensors:
            raise file_error(path, f"array {name!r:.80} appears twice")
        tensors[name], members[name] = _read_array_header(path, name, data, member)
    return NpzFile(path, tensors, members, data)


def _iterate_entries(path: Path, data: mmap.mmap) -> Iterator[tuple[str, _Member]]:
    """Yield the name and the place of each file in the zip's directory."""
    place, end = _find_directory(path, data)
    while place < end:
        if place + _ENTRY.size > end:
            raise file_error(path, "has a truncated zip directory")
        sign, *_, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size, _, _, _, start = (
            _ENTRY.unpack_from(data, place)
        )
        after_name = place + _ENTRY.size + name_size
        place = after_name + extra_size + comment_size
        if sign != b"PK\x01\x02" or place > end:
            raise file_error(path, "has a damaged zip directory")
        name = data[after_name - name_size : after_name].decode("utf-8", "replace")
        large = _read_64_bit_numbers(data[after_name : after_name + extra_size])
        size, packed, start = (next(large, 0) if number == _UNKNOWN else number for number in (size, packed, start))
        if flags & 1 or method not in (_STORED, _DEFLATED):
            problem = f"{name!r:.80} is encrypted or uses an unsupported compression"
            raise file_error(path, problem, "save it with numpy.savez")
        yield name, _locate_member(path, name, data, _Member(method, crc, start, packed, size))


def _find_directory(path: Path, data: mmap.mmap) -> tuple[int, int]:
    """Return the start and the end of the zip's directory."""
    place = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - 0xFFFF))
    if place < 0 or place + _END.size > len(data):
        raise file_error(path, "is not a zip, or is truncated")
    *_, size, start, _ = _END.unpack_from(data, place)
    if place >= _LOCATOR.size and data[place - _LOCATOR.size : place - _LOCATOR.size + 4] == b"PK\x06\x07":
        _, _, record, _ = _LOCATOR.unpack_from(data, place - _LOCATOR.size)
        if record + _END64.size > place:
            raise file_error(path, "has a damaged zip directory")
        *_, size, start = _END64.unpack_from(data, record)
    if size > MAX_DIRECTORY or start + size > place:
        raise file_error(path, "has a zip directory that is truncated, or too large for a Gemma model")
    return start, start + size


def _read_64_bit_numbers(extra: bytes) -> Iterator[int]:
    """Return the 64-bit numbers in an entry's extra field."""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        content = extra[place + 4 : place + 4 + size]
        if kind == 1:
            return iter(struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8]))
        place += 4 + size
    return iter(())


def _locate_member(path: Path, name: str, data: mmap.mmap, entry: _Member) -> _Member:
    """Return an entry whose start is that of its bytes instead of the header before them."""
    if entry.start + _LOCAL.size > len(data):
        raise file_error(path, f"{name!r:.80} starts after the end of the file")
    sign, *_, name_size, extra_size = _LOCAL.unpack_from(data, entry.start)
    start = entry.start + _LOCAL.size + name_size + extra_size
    if sign != b"PK\x03\x04" or start + entry.compressed > len(data):
        raise file_error(path, f"{name!r:.80} is truncated or damaged")
    if entry.size > entry.compressed * (1 if entry.method == _STORED else MAX_RATIO):
        raise file_error(path, f"{name!r:.80} claims {entry.size} bytes, more than it can hold")
    return _Member(entry.method, entry.crc, start, entry.compressed, entry.size)


def _read_array_header(path: Path, name: str, data: mmap.mmap, member: _Member) -> tuple[TensorInfo, _Member]:
    """Read an array's header."""
    where = f"array {name!r:.80}"
    start = memoryview(data)[member.start : member.start + min(member.compressed, 2 * MAX_HEADER)]
    try:
        head = bytes(start) if member.method == _STORED else zlib.decompressobj(-15).decompress(start, 2 * MAX_HEADER)
    except zlib.error as error:
        raise file_error(path, f"{where} is damaged ({error})") from error
    head = head[: member.size]
    if len(head) < 12 or head[:6] != b"\x93NUMPY" or head[6] not in (1, 2, 3):
        raise file_error(path, f"{where} is not a NumPy array")
    text_start = 10 if head[6] == 1 else 12
    text_size = int.from_bytes(head[8:text_start], "little")
    text = head[text_start : text_start + text_size].decode("latin-1")
    match = _HEADER.fullmatch(text)
    if text_size > MAX_HEADER or match is None or match[1] not in _TYPES:
        kind = re.search(r"'descr': (.{1,20})", text)
        raise file_error(path, f"{where} is not a plain array of floats ({kind[1] if kind else 'damaged'})")
    if match[2] == "True":
        raise file_error(path, f"{where} is in Fortran order", "save it in C order")
    encoding, dtype = _TYPES[match[1]]
    lengths = re.findall(r"\d+", match[3])
    if len(lengths) > MAX_AXES or any(len(length) > 18 for length in lengths):
        raise file_error(path, f"{where} has an invalid shape")
    shape, header = tuple(map(int, lengths)), text_start + text_size
    nbytes = math.prod(shape) * dtype.itemsize
    if header + nbytes != member.size:
        raise file_error(path, f"{where} of {encoding} {list(shape)} does not match its {member.size} bytes")
    offset = member.start + (header if member.method == _STORED else 0)
    placed = _Member(member.method, member.crc, member.start, member.compressed, member.size, header)
    return TensorInfo(shape, encoding, offset, nbytes), placed


def _decompress(path: Path, name: str, data: mmap.mmap, member: _Member) -> bytes:
    packed = memoryview(data)[member.start : member.start + member.compressed]
    try:
        values = zlib.decompressobj(-15).decompress(packed, member.size + 1)
    except zlib.error as error:
        raise file_error(path, f"array {name!r:.80} is damaged ({error})") from error
    if len(values) != member.size or zlib.crc32(values) != member.crc:
        raise file_error(path, f"array {name!r:.80} is damaged")
    return values
