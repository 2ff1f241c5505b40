"""Safetensors, Hugging Face's format: a u64 header length, a JSON header, then the tensors' bytes.

Source: huggingface/safetensors README.md ("Format") and its reader's checks; sharded folders as
`transformers` writes them, with `model.safetensors.index.json` naming the shard of every tensor.

Our own quantised tensors lie in such a file as bytes (U8) in panels (`gemwright.kernels.panels`), filled up with zeros
to a multiple of 64. An entry of `__metadata__` under the tensor's name says what they stand for, by encoding, rows and
inputs: "Q8_0 2048 640".
"""

import errno
import json
import math
import mmap
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.kernels import panels

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_VALUES = 1 << 20  # JSON values in a header; the largest Gemma has some ten thousand
MAX_AXES = 8
ALIGNMENT = 64
"""Bytes. Where data and panels begin, so that a device on the CPU can use them where they are mapped."""

_LENGTH = struct.Struct("<Q")
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_ENCODINGS = {dtype: encoding for encoding, dtype in _DTYPES.items()} | {np.dtype(np.uint8): "U8"}
_PANELS = re.compile(rf"({'|'.join(panels.BITS)}) (\d{{1,10}}) (\d{{1,10}})", re.ASCII)
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """An open safetensors file, or folder of shards: a `TensorFile`.

    Attributes:
        path: The file, or the folder.
        tensors: Every tensor, in the order of the file, or of the shards; offsets count within a shard.
        maps: The mapped file that each tensor lies in.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, mmap.mmap]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Returns a tensor's bytes, `(nbytes,)`, as a read-only view of the mapped file."""
        info = self.tensors[name]
        return np.frombuffer(self.maps[name], np.uint8, info.nbytes, info.offset)

    def read(self, name: str) -> NDArray[Any]:
        """Returns a whole tensor: a read-only view of the mapped file, not necessarily aligned, or decoded panels.

        Raises:
            CheckpointError: Its encoding is not F32, F16 or BF16, nor are there panels.
        """
        info = self.tensors[name]
        if info.panels:
            return self.read_rows(name, 0, info.shape[0])
        if info.encoding not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has encoding {info.encoding}; use a file with {_choices()}."
            )
        return self.raw(name).view(_DTYPES[info.encoding]).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Returns `read(name)[start:stop]`."""
        info = self.tensors[name]
        if not info.panels:
            return self.read(name)[start:stop]
        first, last = start // panels.LANES, -(-stop // panels.LANES)
        size = panels.packed_bytes(info.encoding, panels.LANES, info.shape[1])
        with np.errstate(all="ignore"):  # a file may hold infinite scales; the values then show it
            rows = panels.decode(self.raw(name)[first * size : last * size], info.encoding, info.shape[1])
        return rows[start - first * panels.LANES :][: stop - start]

    def release(self, name: str) -> None:
        """Gives back the memory that reading has mapped in, be it of this tensor or another of its file."""
        self.maps[name].madvise(mmap.MADV_DONTNEED)


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Opens a file, or a folder with `model.safetensors` or with an index and its shards; reads headers only.

    Raises:
        CheckpointError: Something is missing, damaged, or uses what this reader does not know.
    """
    path = Path(path)
    if not path.is_dir():
        return _open_file(path)
    if (path / SINGLE).exists():
        return _open_file(path / SINGLE)
    if (path / INDEX).exists():
        return _open_shards(path)
    raise CheckpointError(f"{path}: holds neither {SINGLE} nor {INDEX}; fetch or convert the model again.")


def _error(path: Path, what: str, remedy: str = "fetch or convert it again") -> CheckpointError:
    return CheckpointError(f"{path}: {what}; {remedy}.")


def _choices() -> str:
    return ", ".join(_DTYPES)


def _open_file(path: Path) -> SafetensorsFile:
    data = _map(path)
    if data is None or len(data) < _LENGTH.size:
        raise _error(path, "is too short to be a safetensors file")
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    if length > min(MAX_HEADER, len(data) - _LENGTH.size):
        raise _error(path, f"claims a header of {length} bytes, but is cut off or no safetensors file")
    start = _LENGTH.size + length
    header = _parse(path, data[_LENGTH.size : start])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _error(path, "'__metadata__' is no object of texts")
    tensors = {name: _info(path, name, entry, start, metadata.get(name)) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = start
    for name, info in tensors.items():
        if info.offset != end:
            raise _error(path, f"tensor {name!r} does not start where the one before it ends")
        end += info.nbytes
    if end != len(data):
        raise _error(path, f"has {len(data)} bytes instead of {end}")
    return SafetensorsFile(path, tensors, dict.fromkeys(tensors, data))


def _map(path: Path) -> mmap.mmap | None:
    """Maps a file read-only; an empty file, which cannot be mapped, gives None."""
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            return None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror})", "check the path") from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """Parses a JSON object whose size in memory is bounded by `MAX_HEADER` and `MAX_VALUES`."""
    if not text.startswith(b"{"):
        raise _error(path, "has no JSON object where one must be")
    if len(text) > MAX_HEADER or sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise _error(path, "has a header too large to be a Gemma's")
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"has a damaged JSON header ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"{counts.most_common(1)[0][0]!r:.80} is there twice")
    return dict(pairs)


def _info(path: Path, name: str, entry: Any, start: int, panelled: str | None) -> TensorInfo:
    """Checks one tensor's description.

    Args:
        path: The file.
        name: Of the tensor.
        entry: Its description.
        start: Where the data begins in the file.
        panelled: What `__metadata__` says of it.
    """
    where = f"tensor {name!r:.200}"
    match entry:
        case {"dtype": str(encoding), "shape": list(shape), "data_offsets": [begin, end], **rest} if not rest:
            pass
        case _:
            raise _error(path, f"{where} is not described by dtype, shape and two data_offsets")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)):
        raise _error(path, f"{where} has a shape or offset that is no reasonable whole number")
    if encoding not in _BITS:
        raise _error(path, f"{where} has the unknown dtype {encoding!r:.40}", f"use {_choices()}")
    if len(shape) > MAX_AXES:
        raise _error(path, f"{where} has {len(shape)} axes, more than {MAX_AXES}")
    if math.prod(shape) * _BITS[encoding] != (end - begin) * 8:
        raise _error(path, f"{where} of {encoding} {shape} does not fit its {end - begin} bytes")
    info = TensorInfo(tuple(shape), encoding, start + begin, end - begin)
    return info if panelled is None or encoding != "U8" else _panels_info(path, where, info, panelled)


def _panels_info(path: Path, where: str, info: TensorInfo, described: str) -> TensorInfo:
    """The tensor that bytes in panels stand for."""
    match = _PANELS.fullmatch(described)
    if match is None or int(match[3]) % panels.GROUP or not int(match[2]) * int(match[3]):
        raise _error(path, f"{where} is described as {described!r:.80}, not by an encoding, rows and inputs")
    encoding, rows, width = match[1], int(match[2]), int(match[3])
    if info.nbytes != stored_bytes(encoding, rows, width):
        raise _error(path, f"{where} of {described} does not fit its {info.nbytes} bytes")
    return TensorInfo((rows, width), encoding, info.offset, info.nbytes, panels=True)


def stored_bytes(encoding: str, rows: int, width: int) -> int:
    """Bytes of a tensor in panels as it is stored, filled up."""
    return -(-panels.packed_bytes(encoding, rows, width) // ALIGNMENT) * ALIGNMENT


def _open_shards(folder: Path) -> SafetensorsFile:
    shard_of = _shard_names(folder / INDEX)
    tensors: dict[str, TensorInfo] = {}
    maps: dict[str, mmap.mmap] = {}
    for shard in sorted(set(shard_of.values())):
        file = _open_file(folder / shard)
        for name, info in file.tensors.items():
            if name in tensors:
                raise _error(folder, f"tensor {name!r} is in {shard} and in another shard")
            tensors[name], maps[name] = info, file.maps[name]
        for name in (name for name, home in shard_of.items() if home == shard and name not in file.tensors):
            raise _error(folder / shard, f"tensor {name!r} is missing, though {INDEX} names it")
    return SafetensorsFile(folder, tensors, maps)


def _shard_names(index: Path) -> dict[str, str]:
    """Returns the shard of each tensor, a plain file name."""
    shard_of = _parse(index, (_map(index) or b"")[: MAX_HEADER + 1].lstrip()).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise _error(index, "has no 'weight_map'")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard, re.ASCII):
            raise _error(index, f"tensor {name!r:.200} is said to be in {shard!r:.80}, not in a shard beside it")
    return shard_of


class SafetensorsTensor(NamedTuple):
    """A tensor to write.

    Attributes:
        name: Unique in the checkpoint.
        shape: Row-major.
        dtype: float32, float16 or bfloat16, or uint8 for panels.
        produce: Makes the tensor when its turn comes, so that only one is ever held.
        described: What panels stand for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    produce: Callable[[], NDArray[Any]]
    described: str | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: str | os.PathLike[str],
    tensors: Iterable[SafetensorsTensor],
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
) -> None:
    """Writes `model.safetensors`, or shards with an index, into `folder` and replaces what was there.

    Everything is written beside its place and moved there at the end: a failure leaves nothing behind, and an
    older checkpoint untouched.

    Args:
        folder: Made if it does not exist.
        tensors: Filled into shards in this order; within a shard panels come first, then the wider dtypes.
        shard_bytes: A shard holds at most so many bytes, or one tensor.
        metadata: What each file says of itself; `transformers` asks for a format.

    Raises:
        CheckpointError: A tensor cannot be written, or the disk is full or not writable.
    """
    folder = Path(folder)
    shards = _shards(folder, list(tensors), shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    headers = [_header(shard, metadata) for shard in shards]
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    needed = total + sum(map(len, headers))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partials = {name: folder / f"{name}.partial" for name in (*names, INDEX)}
        try:
            for name, header, shard in zip(names, headers, shards, strict=True):
                _write(partials[name], header, shard)
            if len(shards) > 1:
                _write(partials[INDEX], _index(names, shards, total))
            _publish(folder, names, partials)
        except BaseException:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise _error(folder, f"cannot be written ({error.strerror})", "choose another place") from error
        free = shutil.disk_usage(folder).free
        raise _error(
            folder, f"needs {needed:,} bytes where {free:,} are free", "make room or choose another disk"
        ) from error


def _shards(folder: Path, tensors: Sequence[SafetensorsTensor], shard_bytes: int) -> list[list[SafetensorsTensor]]:
    shards: list[list[SafetensorsTensor]] = [[]]
    seen, size = {"__metadata__"}, 0
    for tensor in tensors:
        if tensor.name in seen:
            raise _error(folder, f"tensor {tensor.name!r} cannot be written twice", "give it another name")
        if tensor.dtype not in _ENCODINGS:
            raise _error(folder, f"tensor {tensor.name!r} cannot be written as {tensor.dtype}", f"use {_choices()}")
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        seen.add(tensor.name)
        size += tensor.nbytes
    return [sorted(shard, key=place_in_shard) for shard in shards]


def place_in_shard(tensor: SafetensorsTensor) -> tuple[bool, int]:
    """What the tensors of a shard are sorted by: so all are aligned, which torch's views of the mapped file need."""
    return tensor.described is None, -tensor.dtype.itemsize


def _header(shard: Sequence[SafetensorsTensor], metadata: Mapping[str, str]) -> bytes:
    described = {tensor.name: tensor.described for tensor in shard if tensor.described is not None}
    entries: dict[str, Any] = {"__metadata__": {**metadata, **described}}
    offset = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": _ENCODINGS[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (offset, offset + tensor.nbytes),
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _index(names: Sequence[str], shards: Sequence[Sequence[SafetensorsTensor]], total: int) -> bytes:
    shard_of = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": shard_of}, indent=2).encode()


def _write(path: Path, head: bytes, tensors: Sequence[SafetensorsTensor] = ()) -> None:
    with path.open("wb") as file:
        file.write(head)
        for tensor in tensors:
            file.write(_produced(tensor))
        file.flush()
        os.fsync(file.fileno())


def _produced(tensor: SafetensorsTensor) -> memoryview:
    array = tensor.produce()
    assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), (
        f"{tensor.name}: {array.dtype}{array.shape} instead of {tensor.dtype}{tensor.shape}"
    )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _publish(folder: Path, names: Sequence[str], partials: Mapping[str, Path]) -> None:
    """Moves finished files to their places; at no instant can old and new shards be opened together."""
    if names == [SINGLE]:
        partials[SINGLE].replace(folder / SINGLE)
        (folder / INDEX).unlink(missing_ok=True)
        return
    for entry in (SINGLE, INDEX):
        (folder / entry).unlink(missing_ok=True)
    for name in (*names, INDEX):
        partials[name].replace(folder / name)
