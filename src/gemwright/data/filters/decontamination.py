"""Find texts that contain items of evaluation sets: a run of 13 words, as in GPT-3 (Brown et al. 2020, appendix C).

Items of 8 to 12 words are found whole. Shorter ones are not looked for, as they occur everywhere.
"""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from gemwright.data.filters.words import Hashes, hash_runs, hash_words, normalize_words
from gemwright.data.sources import MAX_TEXT_BYTES
from gemwright.errors import DataError

RUN = 13
"""Words of a run that texts must not share with an item."""
SHORTEST = 8
"""Words of the shortest item that is looked for."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_OPENERS: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}


def find_items(paths: Iterable[Path]) -> list[Path]:
    """Return the files of evaluation sets, of which a folder gives all it has.

    Raises:
        DataError: There are none, or a path does not exist.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path of the evaluation sets.")
    found = [file for file in files if file.is_file() and _format(file) in SUFFIXES]
    found = [file for file in found if not file.stem.upper().startswith(("ORIGIN", "README", "LICENSE"))]
    if not found:
        raise DataError(f"There are no evaluation sets; pass files that end with one of {', '.join(SUFFIXES)}.")
    return found


def _format(file: Path) -> str:
    return Path(file.stem).suffix.lower() if file.suffix in _OPENERS else file.suffix.lower()


def build_index(files: Iterable[Path]) -> tuple[dict[str, Hashes], int, int]:
    """Return the hashes of the runs of all items by their number of words, the number of items, and of those too short.

    Raises:
        DataError: A file cannot be read.
    """
    hashes: dict[int, list[Hashes]] = {length: [] for length in range(SHORTEST, RUN + 1)}
    items = short = 0
    for file in files:
        for text in _read_texts(file):
            words = normalize_words(text)
            items += 1
            if len(words) < SHORTEST:
                short += 1
                continue
            length = min(RUN, len(words))
            hashes[length].append(hash_runs(hash_words(words), length))
    empty = np.zeros(0, np.uint64)
    return {str(length): np.unique(np.concatenate([empty, *found])) for length, found in hashes.items()}, items, short


def is_contaminated(text: str, index: Mapping[str, Hashes]) -> bool:
    """Return whether a text has a run of words of an item."""
    words = hash_words(normalize_words(text))
    for length, hashes in index.items():
        if len(hashes) and len(runs := hash_runs(words, int(length))):
            places = np.searchsorted(hashes, runs)
            if (hashes[np.minimum(places, len(hashes) - 1)] == runs).any():
                return True
    return False


def _read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file: the strings of JSON, the cells of a table, or the lines."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as opened:
            data = cast(IO[bytes], opened).read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {MAX_TEXT_BYTES:,} bytes")
        text = data.decode()
        if _format(path) == ".json":
            yield from _find_strings(json.loads(text))
        elif _format(path) == ".jsonl":
            for line in filter(str.strip, text.split("\n")):
                yield from _find_strings(json.loads(line))
        elif _format(path) in (".csv", ".tsv"):
            csv.field_size_limit(MAX_TEXT_BYTES)
            for row in csv.reader(io.StringIO(text), delimiter="\t" if _format(path) == ".tsv" else ","):
                yield from row
        else:
            yield from text.splitlines()
    except (OSError, EOFError, ValueError, RecursionError, csv.Error) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as an evaluation set ({reason:.150}); correct or leave out.") from error


def _find_strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            pending += cast(Any, value).values() if isinstance(value, dict) else value
