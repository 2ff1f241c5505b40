"""Source code as training data: files, or repositories whose files follow each other, with fill-in-the-middle."""

import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemwright.data.dataset import Dataset, collect
from gemwright.data.documents import Document
from gemwright.data.infill import encode_path, find_places, infill, places_within
from gemwright.data.repository import order_files
from gemwright.data.sources import MAX_TEXT_BYTES, Place, Record, read_json_lines
from gemwright.errors import DataError, GemwrightError
from gemwright.families import FILL_IN_THE_MIDDLE as TOKENS
from gemwright.text.tokenizer import Tokenizer

SUFFIXES = frozenset(
    {
        *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"),
        *(".cu", ".cuh", ".m", ".mm", ".java", ".kt", ".scala", ".go", ".rs", ".js"),
        *(".jsx", ".mjs", ".ts", ".tsx", ".cs", ".swift", ".rb", ".php", ".pl", ".lua"),
        *(".jl", ".r", ".hs", ".ml", ".ex", ".erl", ".clj", ".dart", ".sql", ".sh"),
        *(".bash", ".ps1", ".html", ".css", ".vue"),
    }
)
"""Ends of the names of source files."""
SKIPPED = frozenset({"__pycache__", "node_modules"})
"""Names of folders without source code of their own, besides hidden ones."""
MAX_PATH_SHARE = 0.25
"""Largest share of a row that the path of a file may take; a longer path is left out."""
FILLED = 0.9
"""Share of a row that the parts of a long file take, about."""


class SourceFile(NamedTuple):
    """A file of source code: its repository, its path there, its text and where it was read."""

    repository: str
    path: str
    text: str
    place: Place


class Part(NamedTuple):
    """A part of a file, tokenized: its place, its ids, and the order of its fill-in-the-middle, or None."""

    place: Place
    ids: list[int]
    order: str | None


def open_code(
    paths: Iterable[str | Path], tokenizer: Tokenizer, *, max_length: int, infill: float, repository: bool, seed: int
) -> Dataset:
    """Read and tokenize source code.

    A folder is one repository. In a file of JSON lines, a record is a file: `text` or `content`, `path` and
    `repository` or `repo_name`. A file begins with a line that is its path, and one that is longer than a row is cut
    between lines into parts, each with the path. All tokens are learned.

    Args:
        paths: Folders, files of source code, or files of JSON lines.
        tokenizer: The model's tokenizer, with CodeGemma's fill-in-the-middle tokens.
        max_length: Number of positions of a row.
        infill: Share of the files, or parts of files, that become fill-in-the-middle.
        repository: Whether documents are filled with files in the order of `data.repository`, separated by a token,
            instead of one file each.
        seed: Seed of the choices and cuts.

    Raises:
        GemwrightError: The vocabulary lacks a token.
        DataError: A path cannot be read, or there is no source code.
    """
    for token in (TOKENS.prefix, TOKENS.suffix, TOKENS.middle, TOKENS.separator):
        tokenizer.id_of(token)
    reader = _Reader()
    files = [file for path in map(Path, paths) for file in reader.read(path)]
    files = _in_order(files) if repository else files
    parts, counts = _Parts(tokenizer, max_length - 1, infill, seed), Counter[str]()
    documents = _documents(tokenizer, parts.encode(files, counts), max_length - 1 if repository else 0)
    dataset = collect(reader.files, "code", documents, max_length)
    return replace(dataset, notes=(*_notes(reader, counts), *dataset.notes))


def _notes(reader: "_Reader", counts: Counter[str]) -> Iterator[str]:
    total = counts.total()
    if total > counts["None"]:
        yield (
            f"Fill-in-the-middle: {(total - counts['None']) / total:.1%} of {total:,} parts of files "
            f"({counts['PSM']:,} PSM, {counts['SPM']:,} SPM)."
        )
    if reader.skipped:
        yield f"Not UTF-8 or empty and left out: {reader.skipped:,} files."


def read_source_files(paths: Iterable[str | Path]) -> list[SourceFile]:
    """Return the source files of folders, files of source code or files of JSON lines; see `open_code`.

    Raises:
        DataError: A path cannot be read, or there is no source code.
    """
    reader = _Reader()
    return [file for path in map(Path, paths) for file in reader.read(path)]


class _Reader:
    """Reads source files, and counts those that are left out."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.skipped = 0

    def read(self, path: Path) -> Iterator[SourceFile]:
        """Yield the source files of a path.

        Raises:
            DataError: It cannot be read, or is neither source code nor JSON lines.
        """
        if path.is_dir():
            found = sorted(_walk(path))
            if not found:
                raise DataError(f"{path} has no source code, such as files that end with .py; give another folder.")
            for file in found:
                yield from self._read_file(file, str(path), file.relative_to(path).as_posix())
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            self.files.append(path)
            try:
                for record in read_json_lines(path):
                    yield from self._keep(_from_record(record))
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file.") from error
        elif path.suffix in SUFFIXES:
            yield from self._read_file(path, str(path.parent), path.name)
        else:
            raise DataError(f"{path} is neither source code nor JSON lines; give a folder, or a file of either.")

    def _read_file(self, file: Path, repository: str, path: str) -> Iterator[SourceFile]:
        self.files.append(file)
        try:
            if file.stat().st_size > MAX_TEXT_BYTES:
                raise DataError(f"{file} has more than {MAX_TEXT_BYTES:,} bytes; leave it out.")
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}); check the path.") from error
        try:
            yield from self._keep(SourceFile(repository, path, data.decode(), Place(file, 1)))
        except UnicodeDecodeError:
            self.skipped += 1

    def _keep(self, file: SourceFile) -> Iterator[SourceFile]:
        if file.text.strip():
            yield file
        else:
            self.skipped += 1


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the source files of a folder; links to folders are not followed."""
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        for name in names:
            file = Path(here, name)
            if file.suffix in SUFFIXES and not name.startswith(".") and file.is_file():
                yield file


def _from_record(record: Record) -> SourceFile:
    def find(*keys: str) -> Any:
        return next((record.fields[key] for key in keys if record.fields.get(key) is not None), None)

    text, path = find("text", "content"), find("path")
    values = {"text": text, "path": path, "repository": find("repository", "repo_name")}
    for name, value in values.items():
        if (value is None and name == "text") or not isinstance(value, str | None):
            raise record.place.error(f"{name} must be a text; correct the record.")
    return SourceFile(values["repository"] or "", path or "", text, record.place)


def _in_order(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Return the files of each repository in the order of their imports."""
    repositories: dict[str, dict[str, SourceFile]] = {}
    for number, file in enumerate(files):
        found = repositories.setdefault(file.repository, {})
        found[f"{file.path}#{number}" if not file.path or file.path in found else file.path] = file
    return [
        found[path]
        for found in repositories.values()
        for path in order_files({path: file.text for path, file in found.items()})
    ]


class _Parts:
    """Tokenizes files, those longer than `room` in parts."""

    def __init__(self, tokenizer: Tokenizer, room: int, rate: float, seed: int):
        self._tokenizer, self._room, self._rate, self._seed = tokenizer, room, rate, seed

    def encode(self, files: Iterable[SourceFile], counts: Counter[str]) -> Iterator[Part]:
        """Yield the parts of files, and count their orders."""
        for file in files:
            for part in self._encode_file(file):
                counts[str(part.order)] += 1
                yield part

    def _encode_file(self, file: SourceFile) -> Iterator[Part]:
        try:
            path = file.path or None
            if len(encode_path(self._tokenizer, path)) > MAX_PATH_SHARE * self._room:
                path = None
            places = find_places(file.text, file.path)
            count = -(-len(self._tokenizer.encode(file.text)) // max(1, int(FILLED * self._room)))
            ends = [_line_end(file.text, len(file.text) * n // count) for n in range(count + 1)]
            for start, stop in itertools.pairwise(ends):
                yield from self._fit(file, path, places, start, stop)
        except DataError:
            raise
        except GemwrightError as error:
            raise file.place.error(str(error)) from error

    def _fit(self, file: SourceFile, path: str | None, places: Sequence[int], start: int, stop: int) -> Iterator[Part]:
        """Yield a part of a file, or two if it is too long."""
        text = file.text[start:stop]
        if not text:
            return
        numbers = random.Random(f"{self._seed} {file.repository} {file.path} {start} {stop}")
        ids, order = infill(self._tokenizer, text, places_within(places, start, stop), self._rate, numbers, path)
        if len(ids) <= self._room:
            line = file.text.count("\n", 0, start) if file.place.path.suffix in SUFFIXES else 0
            yield Part(replace(file.place, number=file.place.number + line), ids, order)
            return
        if len(text) < 2:
            raise GemwrightError("not even one character fits into a row; use a larger length.")
        half = _line_end(file.text, (start + stop) // 2)
        half = half if start < half < stop else (start + stop) // 2
        yield from self._fit(file, path, places, start, half)
        yield from self._fit(file, path, places, half, stop)


def _line_end(text: str, place: int) -> int:
    """Return the end of the line before a place, or the place if it is an end of the text."""
    return place if place in (0, len(text)) else text.rfind("\n", 0, place) + 1


def _documents(tokenizer: Tokenizer, parts: Iterable[Part], room: int) -> Iterator[tuple[Place, Document]]:
    """Yield documents of as many parts as have room, a token between them, or of one part each."""
    separator, first, ids = tokenizer.id_of(TOKENS.separator), None, list[int]()
    for part in parts:
        if first is not None and len(ids) + 1 + len(part.ids) > room:
            yield first, _document(tokenizer, ids)
            first, ids = None, []
        if first is None:
            first, ids = part.place, list(part.ids)
        else:
            ids += [separator, *part.ids]
    if first is not None:
        yield first, _document(tokenizer, ids)


def _document(tokenizer: Tokenizer, ids: Sequence[int]) -> Document:
    whole = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32)
    return Document(whole, np.arange(len(whole)) > 0)
