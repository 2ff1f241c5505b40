"""The stages that find duplicates: compare the signatures of all records, join what is alike, drop all but the first.

Of records that are alike, and of those that are alike to them in turn, the first in the order of the input stays.
"""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.data.filters.minhash import SIGNATURE
from gemwright.data.filters.parts import Part
from gemwright.data.filters.recipe import Recipe, is_unsafe
from gemwright.data.filters.screen import describe_removed, read_band
from gemwright.data.filters.tally import Tally
from gemwright.data.filters.texts import find_fields, join_texts
from gemwright.data.sources import Place, Record

_REASONS = {"exact": "equal text", "minhash": "near-duplicate"}
Pairs = NDArray[np.uint64]
"""Pairs of an earlier record and one that is alike [N, 2]: the part in the upper 32 bits, the index in the lower."""


def bands(recipe: Recipe) -> list[int]:
    """Return the bands of signatures that a recipe compares."""
    return [0] * ("exact" in recipe.steps) + list(range(1, SIGNATURE)) * ("minhash" in recipe.steps)


def compare(signatures: Sequence[Path], band: int, share: int, shares: int, target: Path) -> dict[str, Any]:
    """Write the pairs of records that have the same number in a band.

    Args:
        signatures: The file of each part.
        band: The band.
        share: Which share of all numbers to compare, below `shares`; so a process holds only so many.
        shares: A power of two.
        target: The file to write.
    """
    keys: list[NDArray[np.uint64]] = []
    records: list[NDArray[np.uint64]] = []
    for part, path in enumerate(signatures):
        column = read_band(path, band)
        chosen = np.flatnonzero((column != 0) & (column % np.uint64(shares) == share)).astype(np.uint64)
        keys.append(column[chosen])
        records.append(chosen | np.uint64(part << 32))
    pairs = _pair(np.concatenate(keys), np.concatenate(records)) if keys else np.zeros((0, 2), np.uint64)
    with replace_file(target) as file:
        np.save(file, pairs)
    return {"pairs": len(pairs)}


def _pair(keys: NDArray[np.uint64], records: NDArray[np.uint64]) -> Pairs:
    """Pair each record with the first that has the same key; records are in order."""
    order = np.argsort(keys, kind="stable")
    keys, records = keys[order], records[order]
    starts = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    return np.stack([records[first[~starts]], records[~starts]], 1)


def join(pairs: Sequence[tuple[bool, Path]], target: Path) -> dict[str, Any]:
    """Write the records to drop [N, 3], in order: the record, the first that is alike, and whether they are equal.

    Args:
        pairs: Files of `compare`, and whether each compares for equality.
        target: The file to write.
    """
    empty = np.zeros((0, 2), np.uint64)
    equal = join_pairs(np.concatenate([empty, *(np.load(path) for exact, path in pairs if exact)]))
    alike = equal
    for exact, path in pairs:
        if not exact:  # one band at a time, so that memory grows with the duplicates and not with the bands
            alike = join_pairs(np.concatenate([alike, np.load(path)]))
    same = np.isin(alike[:, 1], equal[:, 1])
    alike[same, 0] = equal[:, 0]
    with replace_file(target) as file:
        np.save(file, np.column_stack([alike[:, 1], alike[:, 0], same.astype(np.uint64)]))
    return {"dropped": len(alike)}


def join_pairs(pairs: Pairs) -> Pairs:
    """Return each record that is connected to an earlier one with the first that it is connected to, in order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    records, ends = np.unique(pairs, return_inverse=True)
    if not len(records):
        return pairs
    ends = ends.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (len(records), len(records)))
    labels = connected_components(graph, directed=False)[1]
    first = records[np.unique(labels, return_index=True)[1]][labels]
    later = first != records
    return np.column_stack([first[later], records[later]])


def drop(
    part: int, screened: Sequence[Path], layout: Sequence[Part], dropped: Path, recipe: Recipe, target: Path
) -> dict[str, Any]:
    """Write the records of a part that stay to `target`, and a line about each other one beside its screened ones.

    Args:
        part: The number of the part.
        screened: Files of `screen`, of each part.
        layout: The segments of each part.
        dropped: The file of `join`.
        recipe: The settings.
        target: The file to write; there is none if no record stays.
    """
    table = np.load(dropped, mmap_mode="r")
    low, high = np.searchsorted(table[:, 0], np.array([part << 32, (part + 1) << 32], np.uint64))
    rows = {int(row[0]) & 0xFFFFFFFF: (int(row[1]), bool(row[2])) for row in table[low:high]}
    tallies = {name: Tally() for name in ("exact", "minhash") if name in recipe.steps}
    size = screened[part].stat().st_size
    written = 0
    with replace_file(screened[part].with_suffix(".dropped")) as removed, replace_file(target) as file:
        sink = gzip.GzipFile("", "wb", 6, file, 0) if target.suffix == ".gz" else file
        with screened[part].open("rb") as lines:
            for index, line in enumerate(lines):
                first = rows.get(index)
                removed_by = _count(line, part, index, first, layout, screened, recipe, tallies)
                if removed_by is None:
                    sink.write(line)
                    written += 1
                else:
                    removed.write(removed_by)
        if isinstance(sink, gzip.GzipFile):
            sink.close()
    if not written:
        target.unlink()
    return {"kept": written, "bytes": size, "tallies": {name: vars(tally) for name, tally in tallies.items()}}


def _count(
    line: bytes,
    part: int,
    index: int,
    first: tuple[int, bool] | None,
    layout: Sequence[Part],
    screened: Sequence[Path],
    recipe: Recipe,
    tallies: dict[str, Tally],
) -> bytes | None:
    """Count a record in the steps that compare; return a line about it if it is dropped."""
    if first is None and recipe.label is None:
        for tally in tallies.values():
            tally.see(False)
        return None
    record = Record(_find_place(screened[part], layout[part], index), json.loads(line))
    labelled = recipe.is_labelled(record)
    for name, tally in tallies.items():
        tally.see(labelled)
        if first is not None and (name == "exact") == first[1]:
            because = str(_find_place(screened[first[0] >> 32], layout[first[0] >> 32], first[0] & 0xFFFFFFFF))
            reason, text = _REASONS[name], join_texts(record.fields, find_fields(record, recipe.text_field))
            if tally.remove(reason, text, labelled):
                tally.add_sample(reason, record.place, None if is_unsafe(text, recipe) else text, because)
            return describe_removed(record.place, name, reason, because)
    return None


def _find_place(screened: Path, part: Part, index: int) -> Place:
    """Return where a record of a part was read."""
    with screened.with_suffix(".places").open("rb") as file:
        file.seek(8 * index, io.SEEK_SET)
        segment, number = np.frombuffer(file.read(8), "<u4")
    path = Path(part[int(segment)].path)
    unit = {".json": "item", ".parquet": "row"}.get(path.suffix.lower(), "line")
    return Place(path, int(number), unit)
