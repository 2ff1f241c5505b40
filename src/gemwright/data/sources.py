"""Read records from files of JSON lines, JSON, tables and text, one at a time.

A file is read in one pass, and no more than a record of it is in memory.
"""

import csv
import gzip
import hashlib
import json
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from gemwright.errors import DataError

MAX_RECORD_BYTES = 16 << 20
"""Maximum size of a line of a file of records, in bytes."""
MAX_TEXT_BYTES = 256 << 20
"""Maximum size of a text file, which is one document, in bytes."""
MAX_DEPTH = 200
"""Maximum nesting of the items of a JSON list."""
_TABLE_ROWS = 64
"""Rows of a Parquet file that are decoded at once."""
_BOM = b"\xef\xbb\xbf"
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{},]', re.DOTALL)
"""The strings and brackets of JSON, in linear time."""
_SPLITS = ("train", "test", "dev", "val", "eval")


@dataclass(frozen=True)
class Place:
    """The place of a record.

    Attributes:
        path: Its file.
        number: Its first line, or its row or item, from 1.
        unit: What `number` counts: "line", "row" or "item".
    """

    path: Path
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"

    def error(self, problem: str) -> DataError:
        """Return an error about the record."""
        return DataError(f"{self}: {problem}")


class Places:
    """The places of records, stored as arrays."""

    def __init__(self) -> None:
        self._first: list[tuple[int, Place]] = []  # index of the first record of each file
        self._numbers = bytearray()

    def __len__(self) -> int:
        return len(self._numbers) // 8

    def extend(self, others: "Places") -> None:
        """Add the places of other records."""
        self._first += [(len(self) + first, place) for first, place in others._first]
        self._numbers += others._numbers

    def append(self, place: Place) -> None:
        """Add the place of the next record."""
        if not self._first or self._first[-1][1].path != place.path:
            self._first.append((len(self), place))
        self._numbers += np.int64(place.number).tobytes()

    def __getitem__(self, index: int) -> Place:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = next(place for first, place in reversed(self._first) if first <= index)
        return Place(place.path, int(np.frombuffer(self._numbers, np.int64)[index]), place.unit)


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        place: Where it is.
        fields: Its fields by name.
    """

    place: Place
    fields: Mapping[str, Any]


def find_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files to read, in order; a folder gives those of its files that hold records, by name.

    Raises:
        DataError: A path does not exist or is of a format that is not supported, or a folder has no records, or has
            both training and test files.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    try:
        files = [file for path in map(Path, given) for file in (_list_folder(path) if path.is_dir() else [path])]
        missing = [file for file in files if not file.is_file()]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); check the path.") from error
    if not files:
        raise DataError("There are no training data: pass a file or a folder.")
    if missing:
        raise DataError(f"{missing[0]} does not exist or is not a file; check the path of the training data.")
    for file in files:
        if _suffix(file) not in READERS:
            raise DataError(f"{file} is of a format that is not supported; use one of {', '.join(READERS)}.")
    return files


def _list_folder(folder: Path) -> list[Path]:
    """Return the files of records in a folder, or its text files if it has none."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and _suffix(file) in READERS]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    found = [file for file in found if _suffix(file) != ".json" or _first_character(file) == b"["]
    files = [file for file in found if READERS[_suffix(file)] is not _read_text]
    files = files or [file for file in found if not file.stem.upper().startswith(("README", "LICENSE"))]
    if not files:
        raise DataError(f"{folder} has no training data; it needs files that end with one of {', '.join(READERS)}.")
    splits = {split for file in files for split in _SPLITS if file.stem.lower().startswith(split)}
    if "train" in splits and len(splits) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise DataError(f"{folder} has training and test files ({names}); pass the files to train on.")
    return files


def _first_character(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4096).removeprefix(_BOM).lstrip()[:1]


def _suffix(file: Path) -> str:
    return "".join(file.suffixes[-2:]).lower() if file.suffix.lower() == ".gz" else file.suffix.lower()


def digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, in hexadecimal, which changes if one of them does."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_records(files: Sequence[Path]) -> Iterator[Record]:
    """Yield the records of files in order.

    Raises:
        DataError: A record is malformed; the message names its file and line.
    """
    for file in files:
        try:
            yield from READERS[_suffix(file)](file)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read ({error}); check the file.") from error


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a file of JSON lines, which may be compressed.

    Raises:
        DataError: A line is malformed.
    """
    opener = cast(Callable[..., IO[bytes]], gzip.open if path.suffix.lower() == ".gz" else open)
    with opener(path, "rb") as file:
        for place, line in _lines(path, file):
            if line.strip():
                yield parse_line(place, line)


def parse_line(place: Place, line: bytes) -> Record:
    """Return the record of a line of JSON.

    Raises:
        DataError: It is not a JSON object.
    """
    return _as_record(place, _parse(place, line))


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[Place, bytes]]:
    """Yield the lines of a file with their places."""
    number = 1
    while line := file.readline(MAX_RECORD_BYTES + 1):
        place = Place(path, number)
        if len(line) > MAX_RECORD_BYTES:
            raise place.error(f"the line has more than {MAX_RECORD_BYTES:,} bytes; split the record.")
        yield place, line.removeprefix(_BOM) if number == 1 else line
        number += 1


def _parse(place: Place, data: bytes) -> Any:
    """Return the value of a JSON text."""
    text = _decode(place, data)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        whole = "; a record is one line" if place.unit == "line" else ""
        raise place.error(
            f"this is not valid JSON ({error.msg}, character {error.pos + 1}{whole}); correct the record."
        ) from error
    except RecursionError as error:
        raise place.error("the record is nested too deeply; correct the record.") from error
    except ValueError as error:
        raise place.error("a number has thousands of digits; correct the record.") from error


def _decode(place: Place, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise place.error(f"this is not UTF-8 (byte {error.start + 1}); save the file as UTF-8.") from error


def _as_record(place: Place, value: Any) -> Record:
    if not isinstance(value, dict):
        raise place.error(f"a record is a JSON object with named fields, not {_name(value)}; correct the record.")
    return Record(place, cast(Mapping[str, Any], value))


def _name(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _read_json(path: Path) -> Iterator[Record]:
    """Yield the objects of a list; a file that begins with an object holds lines."""
    if _first_character(path) != b"[":
        yield from read_json_lines(path)
        return
    for place, item in _items(path):
        yield _as_record(place, _parse(place, item))


def _items(path: Path) -> Iterator[tuple[Place, bytes]]:
    """Yield the items of a JSON list with their places, without reading the whole file into memory."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    place, depth, start = Place(path, 1, "item"), 0, 0
    for token in _TOKENS.finditer(data):
        character, stop = data[token.start()], token.start()
        if stop - start > MAX_RECORD_BYTES or depth > MAX_DEPTH:
            raise place.error(f"the item has more than {MAX_RECORD_BYTES:,} bytes or {MAX_DEPTH} levels; split it.")
        if depth == 1 and character in b",]":
            item = data[start:stop]
            if character == ord(b",") or item.strip() or place.number > 1:
                yield place, item
            place, start = Place(path, place.number + 1, "item"), stop + 1
        if character in b"[{":
            depth += 1
            start = stop + 1 if depth == 1 else start
        elif character in b"]}":
            depth -= 1
        if depth == 0 and character != ord(b'"'):
            break
    if depth or data[start:].strip():
        raise place.error("the list does not end as JSON does; correct the file.")


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"Reading {path} needs pyarrow; run: pip install pyarrow") from None
    number = 1
    try:
        with parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(_TABLE_ROWS):
                for row in rows.to_pylist():
                    yield Record(Place(path, number, "row"), row)
                    number += 1
    except (ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise Place(path, number, "row").error(f"the row cannot be read ({reason:.200}); check the file.") from error


def _read_table(path: Path) -> Iterator[Record]:
    """Yield the rows of comma- or tab-separated values, whose first line has the names of the columns."""
    places: list[Place] = []

    def lines(file: IO[bytes]) -> Iterator[str]:
        for place, line in _lines(path, file):
            places.append(place)
            yield _decode(place, line)

    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    with path.open("rb") as file:
        rows = csv.reader(lines(file), delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
        try:
            names = next(rows, [])
            if len(set(names)) < len(names):
                raise Place(path, 1).error("two columns have the same name; rename one.")
            places.clear()
            for row in rows:
                place = places[0]
                places.clear()
                if row and len(row) != len(names):
                    raise place.error(f"the row has {len(row)} columns for {len(names)} names; correct the row.")
                if row:
                    yield Record(place, dict(zip(names, row, strict=True)))
        except csv.Error as error:
            place = places[0] if places else Place(path, 1)
            raise place.error(f"this is not a valid row ({error}); correct the row.") from error


def _read_text(path: Path) -> Iterator[Record]:
    place = Place(path, 1)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(f"{path} has more than {MAX_TEXT_BYTES:,} bytes; split the document into several files.")
    yield Record(place, {"text": _decode(place, path.read_bytes().removeprefix(_BOM))})


READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_json_lines,
    ".jsonl.gz": read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_text,
    ".md": _read_text,
}
"""Reader of each format, by the end of a file's name."""
