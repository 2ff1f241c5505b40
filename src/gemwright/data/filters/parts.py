"""Cut the input into parts, and read one.

A part is some tens of megabytes of lines, or some files. Parts depend on the input alone, so the output does not depend
on the number of workers.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from gemwright.data.sources import MAX_RECORD_BYTES, Place, Record, parse_line, read_records
from gemwright.errors import DataError

PART_BYTES = 64 << 20
"""Size of a part, in bytes."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Segment:
    """Some lines of a file, or all of it.

    Attributes:
        path: The file.
        start: Its first byte.
        stop: The byte after its last, or None for the end of the file.
        line: The number of its first line, from 1.
    """

    path: str
    start: int = 0
    stop: int | None = None
    line: int = 1


Part = Sequence[Segment]


class Read(NamedTuple):
    """A record that was read.

    Attributes:
        place: Where it is.
        record: The record, or why it could not be read.
        line: Its line, if it is one; written as it is unless the record is changed.
    """

    place: Place
    record: Record | str
    line: bytes | None


def cut(files: Sequence[Path], part_bytes: int = PART_BYTES) -> list[list[Segment]]:
    """Return the parts of files: lines of large files of JSON lines, and whole files of other formats.

    Raises:
        DataError: A file cannot be read.
    """
    parts: list[list[Segment]] = []
    room = 0
    for file in files:
        for segment, size in _cut_file(file, part_bytes):
            if not parts or size > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(segment)
            room -= size
    return parts


def _cut_file(file: Path, part_bytes: int) -> Iterator[tuple[Segment, int]]:
    """Yield the segments of a file and their sizes in bytes."""
    try:
        size = file.stat().st_size
        if file.suffix.lower() != ".jsonl" or size <= part_bytes:
            yield Segment(str(file)), size
            return
        with file.open("rb") as opened:
            start, line = 0, 1
            while start < size:
                lines, stop = _skip_lines(opened, start + part_bytes)
                yield Segment(str(file), start, stop, line), stop - start
                start, line = stop, line + lines
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); check the file.") from error


def _skip_lines(file: IO[bytes], target: int) -> tuple[int, int]:
    """Read until the end of the line at `target`; return the number of lines and the position."""
    lines = 0
    while (left := target - file.tell()) > 0 and (chunk := file.read(min(_CHUNK, left))):
        lines += chunk.count(b"\n")
    while chunk := file.readline(_CHUNK):
        if chunk.endswith(b"\n"):
            return lines + 1, file.tell()
    return lines + 1, file.tell()


def read(part: Part) -> Iterator[Read]:
    """Yield the records of a part. A line that is no record gives the reason.

    Raises:
        DataError: A file of another format is malformed, or a file cannot be read.
    """
    for segment in part:
        path = Path(segment.path)
        if path.name.lower().endswith((".jsonl", ".jsonl.gz")):
            yield from _read_lines(path, segment)
        else:
            yield from (Read(record.place, record, None) for record in read_records([path]))


def _read_lines(path: Path, segment: Segment) -> Iterator[Read]:
    opener = cast(Callable[..., IO[bytes]], gzip.open if path.suffix.lower() == ".gz" else open)
    try:
        with opener(path, "rb") as file:
            if segment.start:
                file.seek(segment.start)
            place, position = Place(path, segment.line), segment.start
            while (segment.stop is None or position < segment.stop) and (line := file.readline(MAX_RECORD_BYTES + 1)):
                position += len(line)
                if len(line) > MAX_RECORD_BYTES:
                    yield Read(place, f"more than {MAX_RECORD_BYTES:,} bytes", None)
                    position += _skip_rest(file, line)
                elif line.strip():
                    yield _parse(place, line)
                place = Place(path, place.number + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check the file.") from error


def _skip_rest(file: IO[bytes], line: bytes) -> int:
    """Read the rest of a line; return its length."""
    length = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(_CHUNK)
        length += len(line)
    return length


def _parse(place: Place, line: bytes) -> Read:
    line = line.removeprefix(b"\xef\xbb\xbf") if place.number == 1 else line
    try:
        return Read(place, parse_line(place, line), line.strip())
    except DataError as error:
        return Read(place, _shorten(error, place), None)


def _shorten(error: DataError, place: Place) -> str:
    """Return the reason of an error without its place and without words of the record."""
    reason = str(error).removeprefix(f"{place}: ")
    for sign in (" (", ", not ", ";"):
        reason = reason.partition(sign)[0]
    return reason
