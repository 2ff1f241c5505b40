"""Files that were cut into parts of bytes, such as `model.gguf.part1of2`, mapped as one file without joining them.

Publishers cut files at the size limit of a host. Parts made by llama.cpp (`gguf_model`) are GGUF files themselves.
"""

import mmap
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemwright.checkpoint.files.formats import list_files, refuse_pointer
from gemwright.errors import CheckpointError

MAX_SHOWN = 8
"""Maximum number of parts in the command that joins them."""

_NAME = re.compile(
    r"(?P<file>.+\.(?:gguf|safetensors|npz))"
    r"(?P<word>[.-](?:part|split|chunk)[._-]?|[.-](?=\d\d|a?[a-z]$))"
    r"(?P<number>\d{1,5}|[a-z]{1,2})(?:[._-]?of[._-]?(?P<count>\d{1,5}))?",
    re.ASCII | re.IGNORECASE,
)
"""A part's name: `x.gguf.part00`, `x.gguf.part1of2`, `x.gguf-split-a`, `x.gguf.aa` (of `split`), `x.gguf.001`."""
_PACKAGE = re.compile(r"(.*\D)(\d{1,5})", re.ASCII)
_MAP_FIXED = 0x10  # of Linux on all processors that JAX supports, and of macOS


def is_part(path: Path) -> bool:
    """Return whether a name is that of a part of a file."""
    return _NAME.fullmatch(path.name) is not None


def pattern_of_parts(name: str) -> str:
    """Return the shell pattern that matches the names of all parts of a file, by that of one."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    start, end = match.span("number")
    return name[:start] + ("[0-9]*" if match["number"].isdigit() else "[a-z]*") + name[end:]


def find_parts(path: Path) -> list[Path]:
    """Return all parts of a file by its first part; a file that was not cut is its only part.

    They lie in one folder, or in a folder such as `data` of packages that are numbered: `x_part1/data`, `x_part2/data`.

    Raises:
        CheckpointError: A part is missing, or the path is that of a later part.
    """
    given = _NAME.fullmatch(path.name)
    if given is None:
        return [path]
    parts = {_number(given): path}
    for place in _neighbours(path):
        name = _NAME.fullmatch(place.name)
        if name is not None and _series(name) == _series(given) and place.is_file():
            parts.setdefault(_number(name), place)
    if len(parts) == 1 and not given["count"]:
        return [path]
    first = min(*parts, 1)
    last = max(*parts, first + int(given["count"] or 1) - 1)
    if missing := [number for number in range(first, last + 1) if number not in parts]:
        raise CheckpointError(
            f"{path} is a part of {given['file']}, of which part {missing[0] - first + 1} is missing; "
            "put all parts into one folder."
        )
    if path != parts[first]:
        raise CheckpointError(f"{path} is not the first part of {given['file']}; give {parts[first].name}.")
    return [parts[number] for number in sorted(parts)]


def _series(name: re.Match[str]) -> tuple[str | int, ...]:
    """Return what the names of all parts of a file have in common."""
    return name["file"], name["word"], int(name["count"] or 0), name["number"].isdigit()


def _number(name: re.Match[str]) -> int:
    """Return the number of a part: digits, or letters that count from `a` or `aa`, which are 0."""
    number = name["number"].lower()
    if number.isdigit():
        return int(number)
    return sum((ord(letter) - ord("a")) * 26**place for place, letter in enumerate(reversed(number)))


def _neighbours(path: Path) -> Iterator[Path]:
    """Yield the files in the folder of a part, and in the same folder of the packages that follow its own."""
    folder = path.absolute().parent
    yield from (path.parent / file.name for file in list_files(folder))
    if package := _PACKAGE.fullmatch(folder.parent.name):
        number = int(package[2]) + 1
        while (other := folder.parent.with_name(f"{package[1]}{number}") / folder.name).is_dir():
            yield from list_files(other)
            number += 1


def require_mappable(parts: Sequence[Path]) -> None:
    """Check that the parts of a file can be mapped one after the other.

    Raises:
        CheckpointError: The size of one but the last is not a multiple of that of a page, or this Python has no ctypes.
    """
    sizes = [part.stat().st_size for part in parts]
    reason = ""
    if any(size % mmap.PAGESIZE or not size for size in sizes[:-1]):
        reason = f"their sizes are not multiples of {mmap.PAGESIZE} bytes"
    elif not _has_ctypes():
        reason = "this Python has no ctypes"
    if reason:
        name = _NAME.fullmatch(parts[0].name)
        names = " ".join(shlex.quote(part.name) for part in parts[:MAX_SHOWN]) + " ..." * (len(parts) > MAX_SHOWN)
        whole = shlex.quote(name["file"]) if name else "FILE"
        raise CheckpointError(
            f"{parts[0]} and its other parts cannot be read as one file, as {reason}; "
            f"join them in their folder: cat {names} > {whole}."
        )


def _has_ctypes() -> bool:
    try:
        import ctypes
    except ImportError:
        return False
    return hasattr(ctypes.CDLL(None), "mmap")


def map_parts(parts: Sequence[Path]) -> mmap.mmap:
    """Map the parts of a file one after the other, read-only.

    An anonymous map reserves the addresses, and each part replaces its pages. So the result is a map as any other: it
    is unmapped as a whole when it and all arrays in it are freed.

    Raises:
        CheckpointError: The parts cannot be mapped, or one is a Git LFS pointer.
        OSError: A part cannot be read, or addresses are short.
    """
    require_mappable(parts)
    sizes = [part.stat().st_size for part in parts]
    whole = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    import numpy as np  # help imports this module

    address = np.frombuffer(whole, np.uint8).ctypes.data
    for part, size in zip(parts, sizes, strict=True):
        refuse_pointer(part)
        with part.open("rb") as file:
            _map_at(address, size, file.fileno())
        address += size
    return whole


def _map_at(address: int, size: int, file: int) -> None:
    """Map `size` bytes of an open file at an address, in place of its pages there."""
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if size and function(address, size, mmap.PROT_READ, flags, file, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
