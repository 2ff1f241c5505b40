"""Recognize the format of a file by its first bytes, whatever its name, and explain why another cannot be read.

Sources: the formats' own documents. ONNX and MessagePack have no magic number and are recognized by their names.
"""

import os
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gemwright.errors import CheckpointError

HEAD_BYTES = 1 << 16
"""Bytes of the start of a file, and of the end of a zip, that are read to recognize it."""
MAX_LISTED = 4096
"""Maximum number of files of a folder that are looked at."""

PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.ASCII | re.IGNORECASE)
"""The number of a part of a split GGUF model, from 1, and the number of parts in a name."""

_ELSEWHERE = "use the model's safetensors folder or a GGUF file, from https://huggingface.co or Kaggle"
_AGAIN = "download the model again, logged in if its license must be accepted"


class Format(NamedTuple):
    """A format: its name with an article, and the remedy if it is not supported; an empty one if it is."""

    name: str
    remedy: str = _ELSEWHERE


GGUF = Format("a GGUF file", "")
SAFETENSORS = Format("a safetensors file", "")
NPZ = Format("an .npz file", "")
PYTORCH = Format("a PyTorch checkpoint")
HDF5 = Format("a Keras or HDF5 file (.h5)", f"{_ELSEWHERE}, or a Keras preset with its config.json")
POINTER = Format("a Git LFS pointer, not the file itself", "run `git lfs pull` in its folder")
HTML = Format("a web page, not a model", _AGAIN)
EMPTY = Format("empty", "download it again")

_GGUF = b"GGUF"
_POINTER = b"version https://git-lfs.github.com/spec/"
_UNPACK = "unpack it and give the folder or file inside"
_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    (0, _GGUF, GGUF),
    (0, _POINTER, POINTER),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"LITERTLM", Format("a LiteRT-LM model (.litertlm)")),
    (4, b"TFL3", Format("a LiteRT or TensorFlow Lite model (.tflite)")),
    (0, b"SBS\n", Format("a gemma.cpp model (.sbs)")),
    (0, b"\x1f\x8b", Format("a gzip archive", _UNPACK)),
    (0, b"BZh", Format("a bzip2 archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", Format("an xz archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Format("a zstd archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7-Zip archive", _UNPACK)),
    (257, b"ustar", Format("a tar archive", _UNPACK)),
    *((0, magic, Format("a GGML file of before GGUF")) for magic in (b"lmgg", b"fmgg", b"tjgg")),
    *((0, bytes([0x80, protocol]), PYTORCH) for protocol in (2, 3, 4, 5)),  # a pickle
)
_ZIP = (
    (re.compile(rb"\bdata\.pkl"), PYTORCH),
    (re.compile(rb"model\.weights\.h5"), Format("a Keras model (.keras)")),
    (re.compile(rb"TF_LITE_|\.tflite"), Format("a MediaPipe task bundle (.task)")),
    (re.compile(rb"\.npy"), NPZ),
)
SETTINGS = (".json", ".jinja", ".model", ".txt", ".md", ".py", ".yaml")
"""Suffixes of files beside the weights."""
_SUFFIXES = {
    ".gguf": GGUF,
    ".safetensors": SAFETENSORS,
    ".npz": NPZ,
    ".bin": PYTORCH,
    ".ckpt": PYTORCH,
    ".pt": PYTORCH,
    ".pth": PYTORCH,
    ".sbs": Format("a gemma.cpp model (.sbs)"),
    ".task": Format("a MediaPipe task bundle (.task)"),
    ".msgpack": Format("a Flax MessagePack checkpoint (.msgpack)"),
    ".onnx": Format("an ONNX model (.onnx)"),
    ".h5": HDF5,
    ".keras": Format("a Keras model (.keras)"),
    ".mlpackage": Format("a Core ML model"),
    ".json": Format("a JSON file, not weights", "give the folder that holds the weights"),
    ".jinja": Format("a chat template, not weights", "give the folder that holds the weights"),
    ".model": Format("a tokenizer, not weights", "give the folder that holds the weights"),
}
"""Formats by the suffix of the name, for files whose content does not tell."""
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<error>)", re.IGNORECASE)
_ANSWERS = (b"Entry not found", b"Repository not found", b"Invalid username or password", b"Access to model ")
"""Starts of the hub's refusals, which tools save as the file that was asked for."""


def recognize(path: Path) -> Format | None:
    """Return the format of a file, or None if it is unknown.

    Raises:
        CheckpointError: The file cannot be read.
    """
    head, tail = _read(path, 0, HEAD_BYTES), _read(path, -HEAD_BYTES, HEAD_BYTES)
    if not head:
        return EMPTY
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return kind
    if _PAGE.match(head) or head.startswith(_ANSWERS):
        return HTML
    if head[:2] == b"PK":
        found = next((kind for pattern, kind in _ZIP if pattern.search(head) or pattern.search(tail)), None)
        return found or _SUFFIXES.get(path.suffix.lower(), Format("a zip archive", _UNPACK))
    if head[8:9] == b"{" and head[6:8] == b"\0\0":  # the length of a JSON header and its start
        return SAFETENSORS
    return _SUFFIXES.get(path.suffix.lower())


def unsupported(path: Path, kind: Format | None) -> CheckpointError:
    """Return the error for a file whose format is not supported."""
    if kind is None:
        return CheckpointError(
            f"{path} is not a checkpoint; give a GGUF, safetensors or .npz file, or a folder with one."
        )
    return CheckpointError(f"{path} is {kind.name}; {kind.remedy}.")


def refuse_pointer(path: Path, head: bytes | None = None) -> None:
    """Raise if a file is a Git LFS pointer, or a web page that was saved in its place.

    Args:
        path: The file.
        head: Its first bytes, if they are read already.

    Raises:
        CheckpointError: It is, or cannot be read.
    """
    head = _read(path, 0, 64) if head is None else head[:64]
    if head.startswith(_POINTER):
        raise unsupported(path, POINTER)
    if _PAGE.match(head):
        raise unsupported(path, HTML)


def is_gguf(path: Path) -> bool:
    """Return whether a file holds GGUF, or claims to by its name."""
    if not path.is_file():
        return False
    return path.suffix.lower() == ".gguf" or _read(path, 0, len(_GGUF)) == _GGUF


def gguf_keys(path: Path) -> dict[str, str]:
    """Return the strings among the first keys of a GGUF file, such as `general.architecture` and `general.type`."""
    head = _read(path, 0, HEAD_BYTES)
    keys = re.finditer(rb"(general\.[a-z_]{1,40})\x08\0\0\0(.)\0{7}", head, re.DOTALL)
    return {key[1].decode(): head[key.end() : key.end() + key[2][0]].decode("utf-8", "replace") for key in keys}


def list_files(folder: Path) -> list[Path]:
    """Return the files and folders in a folder by name, `MAX_LISTED` at most.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in islice(entries, MAX_LISTED))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}); check the path.") from error


def _read(path: Path, start: int, count: int) -> bytes:
    """Return at most `count` bytes from `start`, or from the end if it is negative."""
    if not path.is_file():  # opening a named pipe would wait for its writer
        raise CheckpointError(f"{path} is not a regular file; check the path.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start if start >= 0 else max(0, size + start))
            return file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path.") from error
