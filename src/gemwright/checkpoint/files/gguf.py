"""GGUF, llama.cpp's single-file format: metadata and tensor descriptions, then the tensors' bytes.

Source: ggml-org/ggml docs/gguf.md; ggml-org/llama.cpp ggml/src/gguf.cpp (the checks of its reader).
"""

import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files.atomic import file_error, map_file, replace_file
from gemwright.checkpoint.files.lazy_strings import LazyStrings
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError

MAGIC = b"GGUF"
VERSION = 3
"""Version that is written. Version 2 differs only in that it has no big-endian files."""
MIN_SIZE = 24
"""Size in bytes of the smallest file: magic, version and two counts."""
MAX_ENTRIES = 1 << 16
"""Maximum number of keys, and of tensors. The largest Gemma has fewer than two thousand tensors."""
MAX_NAME = 63
"""Maximum length of a tensor's name in bytes, as in llama.cpp."""
MAX_AXES = 4
"""Maximum number of axes of a tensor, as in llama.cpp."""
DEFAULT_ALIGNMENT = 32
"""Alignment of tensors in bytes unless the metadata give one."""
MIN_LAZY, MAX_LAZY = 4096, 1 << 20
"""Lengths of a string array that is decoded lazily: that of a vocabulary has up to 262,144 strings."""
LAZY_BYTES = 32
"""Maximum mean size of a lazily decoded string in bytes, with its length. Those of a vocabulary need half of it."""

_NUMBERS = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_KINDS = {dtype: kind for kind, dtype in _NUMBERS.items()}
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_LENGTH = struct.Struct("<Q")
_ENCODING_NAMES = {e.type_id: name for name, e in ggml.ENCODINGS.items()}

Metadata = Mapping[str, bool | int | float | str | Sequence[str] | NDArray[Any]]


@dataclass(frozen=True, eq=False)
class GgufFile:
    """An open GGUF file: a `TensorFile` with metadata.

    Attributes:
        path: The file.
        version: 2 or 3.
        metadata: Python values; read-only numpy arrays for arrays of numbers, lists for arrays of strings.
        tensors: Every tensor, in the file's order. If the model has several files, offsets count from the start of its.
        maps: The mapped file of each tensor.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, mmap.mmap]

    def text(self, key: str) -> str | None:
        """Return a string of the metadata; None if it is absent or something else, such as an array."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return an integer of the metadata; None if it is absent or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, `(nbytes,)`, as a read-only view of the mapped file."""
        info = self.tensors[name]
        return np.frombuffer(self.maps[name], np.uint8, info.nbytes, info.offset)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor: a read-only view for F32, F16 and BF16, else decoded to float32."""
        info = self.tensors[name]
        return _decode_values(info.encoding, self.raw(name), info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]` without decoding other rows."""
        info = self.tensors[name]
        if len(info.shape) < 2:  # a vector may be a single block
            return self.read(name)[start:stop]
        rows = self.raw(name).reshape(info.shape[0], -1)[start:stop]
        return _decode_values(info.encoding, rows.reshape(-1), (len(rows), *info.shape[1:]))

    def release(self, name: str) -> None:
        """Release the pages that reading mapped in, of this tensor and of the others of its file."""
        self.maps[name].madvise(mmap.MADV_DONTNEED)


def _decode_values(encoding: str, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[Any]:
    block = ggml.ENCODINGS[encoding].block
    if block.names is None:
        return raw.view(block).reshape(shape)
    out = np.empty(shape, np.float32)
    ggml.decode(encoding, raw, out)
    return out


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Open a GGUF file: read its header and map the rest.

    Raises:
        CheckpointError: The file cannot be opened, is damaged, or uses a feature that is not supported.
    """
    header = _Header(Path(path))
    version = header.version()
    n_tensors, n_keys = header.number(_UINT64, "the header"), header.number(_UINT64, "the header")
    if max(n_tensors, n_keys) > MAX_ENTRIES:
        raise header.error(f"claims {n_tensors} tensors and {n_keys} keys")
    metadata = header.metadata(n_keys)
    tensors = header.tensors(n_tensors, _read_alignment(header.path, metadata))
    return GgufFile(header.path, version, metadata, tensors, dict.fromkeys(tensors, header.data))


def _read_alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(value, int) and 8 <= value <= 1 << 20 and value.bit_count() == 1:
        return value
    raise file_error(path, f"key 'general.alignment' is {value!r:.40}, not a power of two from 8 to 2**20")


def _align(position: int, alignment: int) -> int:
    """Round a position up to a multiple of `alignment`."""
    return -(-position // alignment) * alignment


class _Header:
    """A reader of headers, front to back. It checks every length against the file before using it."""

    def __init__(self, path: Path):
        self.path = path
        self.position = 0
        self.data = map_file(path)
        self.size = len(self.data)
        if self.size < MIN_SIZE:
            raise self.error("is too short to be a GGUF file")

    def error(self, problem: str) -> CheckpointError:
        return file_error(self.path, problem)

    def skip(self, nbytes: int, where: str) -> int:
        """Move past `nbytes` and return the position of the first."""
        start = self.position
        if nbytes > self.size - start:
            raise self.error(f"ends inside {where}; it is truncated or damaged")
        self.position = start + nbytes
        return start

    def number(self, kind: int, where: str) -> Any:
        dtype = _NUMBERS[kind]
        return np.frombuffer(self.data, dtype, 1, self.skip(dtype.itemsize, where))[0].item()

    def string(self, where: str) -> str:
        return self.any_strings(1, where)[0]

    def strings(self, count: int, where: str) -> Sequence[str]:
        lazy = self.lazy_strings(count) if MIN_LAZY <= count <= MAX_LAZY else None
        return self.any_strings(count, where) if lazy is None else lazy

    def lazy_strings(self, count: int) -> LazyStrings | None:
        """Find the starts of strings of 1 to 255 bytes; return None if one has another length or is damaged.

        The lengths are found all at once: seven zero bytes in a row occur only in a length of 1 to 255, or in a string
        that the chain of lengths skips. Opening the demo, with a vocabulary of 262,144 strings, takes 19 ms of CPU
        time instead of 132 ms with a loop.
        """
        window = min(LAZY_BYTES * count, self.size - self.position)
        content = np.frombuffer(self.data, np.uint8, window, self.position)
        zeros = content == 0
        for shift in (1, 2, 3):  # runs of two, then four, then seven zero bytes
            zeros = zeros[:-shift] & zeros[shift:]
        starts = np.flatnonzero(zeros[1:])
        lengths = content[starts].astype(np.int64)
        starts, lengths = starts[lengths > 0][:count], lengths[lengths > 0][:count]
        ends = starts + 8 + lengths
        if len(starts) < count or starts[0] or (ends[:-1] != starts[1:]).any() or ends[-1] > len(content):
            return None
        self.position += int(ends[-1])
        return LazyStrings(content[: ends[-1]], starts)

    def any_strings(self, count: int, where: str) -> list[str]:
        data, size, length, position = self.data, self.size, _LENGTH.unpack_from, self.position
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):
                start = position + 8
                position = start + length(data, position)[0] if start <= size else start
                if position > size:
                    self.skip(position - self.position, where)
                append(data[start:position].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"{where} is not UTF-8 near byte {position}") from error
        self.position = position
        return strings

    def version(self) -> int:
        magic = self.data[: self.skip(4, "the header") + 4]
        version = self.number(_UINT32, "the header")
        if magic != MAGIC:
            raise self.error("does not start with 'GGUF'")
        if version & 0xFFFF == 0:
            raise file_error(self.path, "is a big-endian GGUF file", "convert the model on a little-endian machine")
        if version not in (2, VERSION):
            raise self.error(f"has GGUF version {version} instead of 2 or 3")
        return version

    def metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string(f"the key after {next(reversed(metadata), 'the header')!r:.80}")
            if key in metadata:
                raise self.error(f"key {key!r:.80} appears twice")
            metadata[key] = self.value(f"key {key!r:.80}")
        return metadata

    def value(self, where: str) -> Any:
        kind = self.number(_UINT32, where)
        if kind == _STRING:
            return self.string(where)
        if kind in _NUMBERS:
            return self.number(kind, where)
        if kind != _ARRAY:
            raise self.error(f"{where} has the unknown value type {kind}")
        kind, count = self.number(_UINT32, where), self.number(_UINT64, where)
        if kind == _STRING:
            return self.strings(count, where)
        if kind not in _NUMBERS:
            raise self.error(f"{where} is an array of the unsupported value type {kind}")
        dtype = _NUMBERS[kind]
        array = np.frombuffer(self.data, dtype, count, self.skip(count * dtype.itemsize, where))
        return array.view(np.uint8) != 0 if kind == _BOOL else array

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self.string(f"the tensor name after {next(reversed(tensors), 'the keys')!r:.80}")
            if name in tensors:
                raise self.error(f"tensor {name!r:.80} appears twice")
            tensors[name] = self.tensor(f"tensor {name!r:.80}")
        start = _align(self.position, alignment)
        tensors = {name: replace(info, offset=start + info.offset) for name, info in tensors.items()}
        end, last = start, ""
        for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
            if (info.offset - start) % alignment:
                raise self.error(f"tensor {name!r:.80} is not aligned to {alignment} bytes")
            if info.offset < end:
                raise self.error(f"tensor {name!r:.80} overlaps tensor {last!r:.80}")
            end, last = info.offset + info.nbytes, name
            if end > self.size:
                raise self.error(f"ends inside tensor {name!r:.80}: {self.size} bytes instead of {end} or more")
        return tensors

    def tensor(self, where: str) -> TensorInfo:
        """Read a description, whose offset counts from the first tensor."""
        n_axes = self.number(_UINT32, where)
        if n_axes > MAX_AXES:
            raise self.error(f"{where} claims {n_axes} axes, more than {MAX_AXES}")
        shape = tuple(self.number(_UINT64, where) for _ in range(n_axes))[::-1]
        type_id, offset = self.number(_UINT32, where), self.number(_UINT64, where)
        encoding = _ENCODING_NAMES.get(type_id)
        if encoding is None:
            unknown = ggml.UNSUPPORTED.get(type_id, f"number {type_id}")
            remedy = "choose another file of the model, such as one with Q4_K_M or Q8_0"
            raise file_error(self.path, f"{where} has encoding {unknown}", remedy)
        e = ggml.ENCODINGS[encoding]
        if 0 in shape or math.prod(shape[-1:]) % e.elements:
            raise self.error(f"{where} has shape {shape}, which is not valid for {encoding}")
        return TensorInfo(shape, encoding, offset, e.nbytes(math.prod(shape)))


class GgufTensor(NamedTuple):
    """A tensor to write.

    Attributes:
        name: At most 63 bytes of UTF-8.
        shape: Row-major, one to four axes.
        encoding: A key of `ggml.ENCODINGS` that can be written.
        chunks: Float arrays that give the tensor when joined along the first axis. A generator makes them one by one
            while the file is written, so that memory holds only one.
        importance: The weight of errors in each column, for the choice of scales.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    chunks: Iterable[NDArray[Any]]
    importance: NDArray[np.float32] | None = None


def write_gguf(path: str | os.PathLike[str], metadata: Metadata, tensors: Iterable[GgufTensor]) -> None:
    """Write a GGUF file completely or not at all.

    Args:
        path: The file to make or replace.
        metadata: Values by key. An int is stored as the first of uint32, int32 and uint64 that fits, a float as
            float32, a list of strings as such, and a numpy array of one axis in its own dtype.
        tensors: The tensors in the order of the file.

    Raises:
        CheckpointError: A key or tensor cannot be written, or the disk is full or not writable.
    """
    path = Path(path)
    tensors = list(tensors)
    alignment = _read_alignment(path, metadata)
    keys = _pack_metadata(path, metadata)
    infos = _lay_out(path, tensors, alignment)
    header = MAGIC + struct.pack("<IQQ", VERSION, len(infos), len(metadata)) + keys + _pack_infos(infos)
    total = _align(len(header), alignment) + sum(_align(info.nbytes, alignment) for info in infos.values())
    with replace_file(path, total) as file:
        file.write(header + bytes(-len(header) % alignment))
        for tensor in tensors:
            for encoded in _encode_chunks(path, tensor):
                file.write(encoded.data)
            file.write(bytes(-file.tell() % alignment))


def _pack_metadata(path: Path, metadata: Metadata) -> bytes:
    parts: list[bytes] = []
    for key, value in metadata.items():
        try:
            parts += [_pack_string(key), _pack_value(value)]
        except (TypeError, UnicodeEncodeError) as error:
            raise CheckpointError(f"{path}: key {key!r} cannot be written: {error}.") from error
    return b"".join(parts)


def _pack_string(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _pack_value(value: Any) -> bytes:
    """Pack a value after its type."""
    match value:
        case str():
            return struct.pack("<I", _STRING) + _pack_string(value)
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int() if 0 <= value < 1 << 32:
            return struct.pack("<II", _UINT32, value)
        case int() if -(1 << 31) <= value < 0:
            return struct.pack("<Ii", _INT32, value)
        case int() if 0 <= value < 1 << 64:
            return struct.pack("<IQ", _UINT64, value)
        case float() if not abs(value) > _MAX_FLOAT32:
            return struct.pack("<If", _FLOAT32, value)
        case np.ndarray() if value.ndim == 1 and value.dtype in _KINDS:
            return struct.pack("<IIQ", _ARRAY, _KINDS[value.dtype], len(value)) + value.tobytes()
        case list() | LazyStrings() if all(isinstance(item, str) for item in value):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_pack_string, value))
        case _:
            raise TypeError(f"{value!r:.40} is not a number, string, list of strings or flat array that GGUF can hold")


def _lay_out(path: Path, tensors: Sequence[GgufTensor], alignment: int) -> dict[str, TensorInfo]:
    """Place the tensors one after the other; offsets count from the first."""
    infos: dict[str, TensorInfo] = {}
    offset = 0
    for name, shape, encoding, *_ in tensors:
        e = ggml.ENCODINGS.get(encoding)
        if e is None or e.encode is None:
            writable = ", ".join(name for name, e in ggml.ENCODINGS.items() if e.encode)
            raise CheckpointError(f"{path}: tensor {name!r} cannot be written as {encoding}; choose from {writable}.")
        if not 1 <= len(shape) <= MAX_AXES or 0 in shape or shape[-1] % e.elements:
            raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} cannot be written as {encoding}.")
        if name in infos or len(name.encode()) > MAX_NAME:
            raise CheckpointError(f"{path}: tensor name {name!r} appears twice or is longer than {MAX_NAME} bytes.")
        infos[name] = TensorInfo(shape, encoding, offset, e.nbytes(math.prod(shape)))
        offset = _align(offset + infos[name].nbytes, alignment)
    return infos


def _pack_infos(infos: Mapping[str, TensorInfo]) -> bytes:
    parts: list[bytes] = []
    for name, info in infos.items():
        type_id = ggml.ENCODINGS[info.encoding].type_id
        axes = len(info.shape)
        parts += [_pack_string(name), struct.pack(f"<I{axes}Q", axes, *reversed(info.shape))]
        parts += [struct.pack("<IQ", type_id, info.offset)]
    return b"".join(parts)


def _encode_chunks(path: Path, tensor: GgufTensor) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of each chunk of a tensor."""
    rows = 0
    for chunk in tensor.chunks:
        assert chunk.shape[1:] == tensor.shape[1:], f"{tensor.name}: {chunk.shape} does not fit into {tensor.shape}"
        rows += len(chunk)
        try:
            yield ggml.encode(tensor.encoding, chunk, tensor.importance)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: tensor {tensor.name!r}: {error}.") from error
    assert rows == tensor.shape[0], f"{tensor.name}: {rows} rows instead of {tensor.shape[0]}"
