"""Safetensors, Hugging Face's format: a u64 header length, a JSON header, then the tensors' bytes.

Source: huggingface/safetensors README.md ("Format") and its reader's checks; sharded folders as
`transformers` writes them, with `model.safetensors.index.json` naming the shard of every tensor.

Our own quantized tensors are stored as bytes (U8) in the panel layout of `gemwright.kernels.panels`, padded with zeros
to a multiple of 64. An entry of `__metadata__` under the tensor's name gives their encoding, rows and inputs:
"Q8_0 2048 640".
"""

import json
import math
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error, map_file, sync_files, temporary_path
from gemwright.checkpoint.files.shards import INDEX, MAX_HEADER, SINGLE, list_shards, parse_json
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.kernels import panels

MAX_AXES = 8
"""Maximum number of axes of a tensor."""
ALIGNMENT = 64
"""Alignment in bytes of the data and of each panel tensor: a CPU device then uses the mapped bytes without a copy."""
SHARD_BYTES = 5_000_000_000
"""Maximum size of a shard in bytes, as in `transformers` 4."""
METADATA = MappingProxyType({"format": "pt"})
"""Metadata of a file. `transformers` refuses a file without a format."""

_LENGTH = struct.Struct("<Q")
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_ENCODINGS = {dtype: encoding for encoding, dtype in _DTYPES.items()} | {
    np.dtype(np.uint8): "U8",
    np.dtype(np.uint32): "U32",
}
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
        path: The file or folder.
        tensors: Every tensor, in the order of the file or shards. Offsets count from the start of a shard.
        maps: The mapped file of each tensor.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, mmap.mmap]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, `(nbytes,)`, as a read-only view of the mapped file."""
        info = self.tensors[name]
        return np.frombuffer(self.maps[name], np.uint8, info.nbytes, info.offset)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor: a read-only view of the mapped file, possibly unaligned, or decoded panels.

        Raises:
            CheckpointError: Its encoding is neither F32, F16 or BF16 nor a panel layout.
        """
        info = self.tensors[name]
        if info.panels:
            return self.read_rows(name, 0, info.shape[0])
        if info.encoding not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has encoding {info.encoding}; use a file with {_list_dtypes()}."
            )
        return self.raw(name).view(_DTYPES[info.encoding]).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]`."""
        info = self.tensors[name]
        if not info.panels:
            return self.read(name)[start:stop]
        first, last = start // panels.LANES, -(-stop // panels.LANES)
        size = panels.packed_bytes(info.encoding, panels.LANES, info.shape[1])
        with np.errstate(all="ignore"):  # infinite scales give values that are not finite
            rows = panels.decode(self.raw(name)[first * size : last * size], info.encoding, info.shape[1])
        return rows[start - first * panels.LANES :][: stop - start]

    def release(self, name: str) -> None:
        """Release the pages that reading mapped in, of this tensor and of the others of its shard."""
        self.maps[name].madvise(mmap.MADV_DONTNEED)


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a file, or all shards of a folder; read the headers only.

    Raises:
        CheckpointError: A file is missing, damaged, or uses a feature that is not supported.
    """
    path = Path(path)
    if not path.is_dir():
        return _open_file(path)
    shards = list_shards(path)
    return _open_file(shards[0]) if len(shards) == 1 else _open_shards(path, shards)


def _list_dtypes() -> str:
    return ", ".join(_DTYPES)


def _open_file(path: Path) -> SafetensorsFile:
    data = map_file(path)
    if len(data) < _LENGTH.size:
        raise file_error(path, "is too short to be a safetensors file")
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    if length > min(MAX_HEADER, len(data) - _LENGTH.size):
        raise file_error(path, f"claims a header of {length} bytes; it is truncated or not a safetensors file")
    start = _LENGTH.size + length
    header = parse_json(path, data[_LENGTH.size : start])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise file_error(path, "'__metadata__' is not an object of strings")
    tensors = {name: _check_info(path, name, entry, start, metadata.get(name)) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = start
    for name, info in tensors.items():
        if info.offset != end:
            raise file_error(path, f"tensor {name!r} does not start where the one before it ends")
        end += info.nbytes
    if end != len(data):
        raise file_error(path, f"has {len(data)} bytes instead of {end}")
    return SafetensorsFile(path, tensors, dict.fromkeys(tensors, data))


def _check_info(path: Path, name: str, entry: Any, start: int, panels_description: str | None) -> TensorInfo:
    """Check the description of a tensor.

    Args:
        path: The file.
        name: The tensor.
        entry: Its description.
        start: Offset of the data in the file.
        panels_description: The tensor's entry in `__metadata__`.
    """
    where = f"tensor {name!r:.200}"
    match entry:
        case {"dtype": str(encoding), "shape": list(shape), "data_offsets": [begin, end], **rest} if not rest:
            pass
        case _:
            raise file_error(path, f"{where} needs a dtype, a shape and two data_offsets")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)):
        raise file_error(path, f"{where} has an invalid shape or offset")
    if encoding not in _BITS:
        raise file_error(path, f"{where} has the unknown dtype {encoding!r:.40}", f"use {_list_dtypes()}")
    if len(shape) > MAX_AXES:
        raise file_error(path, f"{where} has {len(shape)} axes, more than {MAX_AXES}")
    if math.prod(shape) * _BITS[encoding] != (end - begin) * 8:
        raise file_error(path, f"{where} of {encoding} {shape} does not match its {end - begin} bytes")
    info = TensorInfo(tuple(shape), encoding, start + begin, end - begin)
    if panels_description is None or encoding != "U8":
        return info
    return _check_panels_info(path, where, info, panels_description)


def _check_panels_info(path: Path, where: str, info: TensorInfo, described: str) -> TensorInfo:
    """Return the tensor that is stored in panels."""
    match = _PANELS.fullmatch(described)
    if match is None or int(match[3]) % panels.GROUP or not int(match[2]) * int(match[3]):
        raise file_error(path, f"{where} is described as {described!r:.80}; it needs an encoding, rows and inputs")
    encoding, rows, width = match[1], int(match[2]), int(match[3])
    if info.nbytes != stored_bytes(encoding, rows, width):
        raise file_error(path, f"{where} of {described} does not match its {info.nbytes} bytes")
    return TensorInfo((rows, width), encoding, info.offset, info.nbytes, panels=True)


def stored_bytes(encoding: str, rows: int, width: int) -> int:
    """Return the size of a panel tensor in the file, with padding."""
    return -(-panels.packed_bytes(encoding, rows, width) // ALIGNMENT) * ALIGNMENT


def _open_shards(folder: Path, shards: Sequence[Path]) -> SafetensorsFile:
    tensors: dict[str, TensorInfo] = {}
    maps: dict[str, mmap.mmap] = {}
    home: dict[str, str] = {}
    for shard in shards:
        file = _open_file(shard)
        for name, info in file.tensors.items():
            if name in tensors:
                raise file_error(folder, f"tensor {name!r} is in {home[name]} and in {shard.name}", "give one of them")
            tensors[name], maps[name], home[name] = info, file.maps[name], shard.name
    return SafetensorsFile(folder, tensors, maps)


class SafetensorsTensor(NamedTuple):
    """A tensor to write.

    Attributes:
        name: Unique in the checkpoint.
        shape: Row-major.
        dtype: float32, float16 or bfloat16; uint8 for panels, uint32 for packed integers.
        produce: Makes the tensor when it is written, so that memory holds only one.
        described: Encoding, rows and inputs of a panel tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    produce: Callable[[], NDArray[Any]]
    described: str | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: str | os.PathLike[str],
    tensors: Iterable[SafetensorsTensor],
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write `model.safetensors`, or shards with an index, into a folder and replace a checkpoint that is there.

    The files are written to a temporary folder and moved once all are complete: a failure leaves an older checkpoint
    unchanged and nothing else behind.

    Args:
        folder: The folder, made if it does not exist.
        tensors: Assigned to shards in this order. Within a shard panels come first, then the wider dtypes.
        shard_bytes: Maximum size of a shard in bytes; a larger tensor gets a shard of its own.
        metadata: Metadata of each file.

    Raises:
        CheckpointError: A tensor cannot be written, or the disk is full or not writable.
    """
    folder, tensors = Path(folder), list(tensors)
    with temporary_path(folder, folder, sum(tensor.nbytes for tensor in tensors)) as temporary:
        temporary.mkdir()
        names = write_shards(temporary, tensors, shard_bytes, metadata)
        sync_files(temporary)
        _publish(temporary, folder, names)


def write_shards(
    folder: Path,
    tensors: Sequence[SafetensorsTensor],
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] = METADATA,
) -> list[str]:
    """Write tensors to an empty folder and return the names of the shards.

    Args:
        folder: The folder, which exists.
        tensors: As for `write_safetensors`.
        shard_bytes: As for `write_safetensors`.
        metadata: As for `write_safetensors`.

    Raises:
        CheckpointError: A tensor cannot be written.
        OSError: The disk is full or not writable.
    """
    shards = _split_into_shards(folder, tensors, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, _pack_header(shard, metadata), shard)
    if len(shards) > 1:
        _write(folder / INDEX, _pack_index(names, shards))
    return names


def _split_into_shards(
    folder: Path, tensors: Sequence[SafetensorsTensor], shard_bytes: int
) -> list[list[SafetensorsTensor]]:
    shards: list[list[SafetensorsTensor]] = [[]]
    seen, size = {"__metadata__"}, 0
    for tensor in tensors:
        if tensor.name in seen:
            raise file_error(folder, f"tensor {tensor.name!r} cannot be written twice", "give it another name")
        if tensor.dtype not in _ENCODINGS:
            raise file_error(
                folder, f"tensor {tensor.name!r} cannot be written as {tensor.dtype}", f"use {_list_dtypes()}"
            )
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        seen.add(tensor.name)
        size += tensor.nbytes
    return [sorted(shard, key=place_in_shard) for shard in shards]


def place_in_shard(tensor: SafetensorsTensor) -> tuple[bool, int]:
    """Return the sort key of a shard's tensors: all are then aligned, as torch's views of the mapped file must be."""
    return tensor.described is None, -tensor.dtype.itemsize


def _pack_header(shard: Sequence[SafetensorsTensor], metadata: Mapping[str, str]) -> bytes:
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


def _pack_index(names: Sequence[str], shards: Sequence[Sequence[SafetensorsTensor]]) -> bytes:
    shard_of = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": shard_of}, indent=2).encode()


def _write(path: Path, head: bytes, tensors: Sequence[SafetensorsTensor] = ()) -> None:
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors:
            file.write(_produce(tensor))


def _produce(tensor: SafetensorsTensor) -> memoryview:
    array = tensor.produce()
    assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), (
        f"{tensor.name}: {array.dtype}{array.shape} instead of {tensor.dtype}{tensor.shape}"
    )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _publish(temporary: Path, folder: Path, names: Sequence[str]) -> None:
    """Move complete files to their places; at no moment can old and new shards be opened together."""
    if names == [SINGLE]:
        (temporary / SINGLE).replace(folder / SINGLE)
        (folder / INDEX).unlink(missing_ok=True)
        return
    for name in (SINGLE, INDEX):
        (folder / name).unlink(missing_ok=True)
    for name in (*names, INDEX):
        (temporary / name).replace(folder / name)
