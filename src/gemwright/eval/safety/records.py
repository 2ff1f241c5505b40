"""Read the files of published safety sets: JSON, JSON lines, CSV, TSV, Parquet or text, also gzipped or in a ZIP file.

Fields are read by name, without regard to case; other fields may be there. A message names the file, the record and the
field, and never quotes a text.
"""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from gemwright.errors import DataError

MAX_BYTES = 1 << 29
"""Maximum size of a file or of a member of an archive, in bytes."""
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
"""Kinds of files that are read, also with .gz after them."""
_ABOUT = ("origin", "readme", "license", "licence", "dataset_info", "dataset_infos", "metadata")
"""Names of files that are about a set."""


@dataclass(frozen=True)
class Source:
    """A file, or a member of a ZIP file.

    Attributes:
        name: Its path in the data folder; a member follows the path of its archive.
        open: Returns its bytes.
    """

    name: str
    open: Callable[[], bytes]


@dataclass(frozen=True)
class Record:
    """A record of a file; the names of its fields are in lower case."""

    fields: Mapping[str, Any]
    source: str
    number: int

    def get(self, *names: str) -> Any:
        """Return the first of some fields that is there and is not empty, or None."""
        return next((self.fields[name] for name in names if self.fields.get(name) not in (None, "", [])), None)

    def value(self, *names: str) -> Any:
        """Return the first of some fields.

        Raises:
            DataError: None of them is there.
        """
        found = self.get(*names)
        if found is None:
            there = ", ".join(sorted(self.fields)[:12]) or "no fields"
            raise DataError(f"{self.place} needs the field {' or '.join(names)}; it has {there}.")
        return found

    def text(self, *names: str) -> str:
        """Return the first of some fields as text.

        Raises:
            DataError: None of them is there, or it is no text or number.
        """
        found = self.value(*names)
        if isinstance(found, Mapping | list):
            raise DataError(f"{self.place} has no text in the field {names[0]}; correct the file.")
        return str(found)

    @property
    def name(self) -> str:
        """A name for the samples: the file's without its folder and suffix, and the number."""
        return f"{PurePosixPath(self.source).name.split('.')[0]} {self.number}"

    @property
    def place(self) -> str:
        """Where the record is, for messages."""
        return f"{self.source}, record {self.number}"


def list_sources(data: Path) -> list[Source]:
    """Return the readable files of a folder, with the members of its ZIP files.

    Raises:
        DataError: The folder does not exist, or an archive is damaged.
    """
    if not data.is_dir():
        raise DataError(f"The data folder {data} does not exist; give the folder that holds the sets.")
    sources: list[Source] = []
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if path.suffix.lower() == ".zip" and path.is_file():
            sources += _list_members(path, name)
        elif _is_readable(name) and path.is_file():
            sources.append(Source(name, lambda path=path: _read_bytes(path)))
    return sources


def _is_readable(name: str) -> bool:
    path = PurePosixPath(name.lower().removesuffix(".gz"))
    return path.suffix in SUFFIXES and path.name.split(".")[0] not in ("", *_ABOUT)


def _list_members(path: Path, name: str) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and _is_readable(info.filename)]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} is no readable ZIP file ({error}); copy it again.") from None

    def read(member: zipfile.ZipInfo) -> bytes:
        if member.file_size > MAX_BYTES:
            raise DataError(f"{name}/{member.filename} is larger than {MAX_BYTES >> 20} MiB; split it.")
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(member)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise DataError(f"{name}/{member.filename} cannot be read ({error}); copy it again.") from None

    return [Source(f"{name}/{member.filename}", lambda member=member: read(member)) for member in members]


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB; split it.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def match(sources: Sequence[Source], patterns: Sequence[str]) -> list[Source]:
    """Return the sources of the first pattern that matches any.

    Case, hyphens and underscores do not matter, and `*` also matches slashes. If no pattern matches a whole path, each
    is tried for a part of it, so that `xstest/*` also finds `XSTest-v2.csv`.
    """
    names = [(_plain(source.name), source) for source in sources]
    wanted = [_plain(pattern) for pattern in patterns]
    for pattern in (*wanted, *(f"*{pattern.replace('/', '*')}" for pattern in wanted)):
        if found := [source for name, source in names if fnmatchcase(name, pattern)]:
            return found
    return []


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def read_json(source: Source) -> Any:
    """Return the value of a JSON file.

    Raises:
        DataError: It is not JSON in UTF-8.
    """
    return _parse(_decode(source), source.name)


def read_records(source: Source, columns: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the records of a file.

    A list of texts gives records with the field `text`; mappings of categories to lists give the path as `category`.

    Args:
        source: The file.
        columns: Names of the columns of a CSV or TSV file without a header.

    Raises:
        DataError: The file is not what its name says.
    """
    kind = PurePosixPath(source.name.lower().removesuffix(".gz")).suffix
    match kind:
        case ".csv" | ".tsv":
            rows = _read_table(source, "\t" if kind == ".tsv" else ",", columns)
        case ".txt":
            rows = ({"text": line.strip()} for line in _decode(source).splitlines() if line.strip())
        case ".parquet":
            rows = _read_parquet(source)
        case ".json":
            rows = _flatten(read_json(source), ())
        case _:
            rows = _read_lines(source)
    for number, row in enumerate(rows, 1):
        yield Record({str(name).strip().lower(): value for name, value in row.items()}, source.name, number)


def _decode(source: Source) -> str:
    content = source.open()
    try:
        if source.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise DataError(f"{source.name} is larger than {MAX_BYTES >> 20} MiB when unpacked; split it.")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError):
        raise DataError(f"{source.name} is no text in UTF-8; convert it.") from None


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place} is not valid JSON; correct it or remove it.") from None


def _read_lines(source: Source) -> Iterator[Mapping[str, Any]]:
    text = _decode(source)
    if text.lstrip().startswith("["):
        yield from _flatten(_parse(text, source.name), ())
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield from _flatten([_parse(line, f"{source.name}, line {number},")], ())


def _read_table(source: Source, delimiter: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    lines = io.StringIO(_decode(source), newline="")
    # A tab-separated file has no quoted fields: a quotation mark is text.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(MAX_BYTES)
    try:
        for row in csv.DictReader(lines, columns or None, delimiter=delimiter, quoting=quoting):
            yield {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise DataError(f"{source.name} is no valid table ({error}); correct it.") from None


def _read_parquet(source: Source) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(io.BytesIO(source.open())).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{source.name} is no valid Parquet file ({error}); copy it again.") from None


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a JSON value."""
    if isinstance(value, list):
        for one in value:
            if isinstance(one, Mapping):
                yield {"category": " / ".join(path), **one} if path else one
            elif isinstance(one, str):
                yield {"text": one, "category": " / ".join(path)}
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flatten(part, (*path, str(name).strip(" :")))
