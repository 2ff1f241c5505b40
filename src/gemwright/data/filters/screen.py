"""The first stage: read a part, apply the steps that look at one record at a time, and sign what stays."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.data.filters import parts
from gemwright.data.filters.minhash import SIGNATURE, compute_signature
from gemwright.data.filters.recipe import PAGES, Recipe, Step, is_unsafe, make_steps
from gemwright.data.filters.tally import Tally
from gemwright.data.filters.texts import edit_texts, find_fields, join_texts
from gemwright.data.filters.words import Hashes
from gemwright.data.sources import Place, Record
from gemwright.errors import DataError, GemwrightError

BLOCK = 4096
"""Signatures of a block of a file; those of one band are together."""


def screen(part: parts.Part, recipe: Recipe, index: Path, target: Path) -> dict[str, Any]:
    """Apply the steps to a part.

    Writes `target` with the endings `.jsonl` (records that stay), `.removed` (a line about each other one), `.places`
    (segment and line of those that stay) and `.signatures` (their signatures).

    Returns:
        The number of records that stay, and the tallies by step.
    """
    steps = make_steps(recipe, index)
    tallies = {"read": Tally(), **{step.name: Tally() for step in steps}}
    segments = {segment.path: number for number, segment in enumerate(part)}
    signs = bool({"exact", "minhash"} & set(recipe.steps))
    with ExitStack() as files:
        kept, removed, places, signatures = (
            files.enter_context(replace_file(target.with_suffix(ending)))
            for ending in (".jsonl", ".removed", ".places", ".signatures")
        )
        writer = SignatureWriter(signatures)
        count = 0
        for item in parts.read(part):
            screened = _screen_record(item, steps, tallies, recipe, removed)
            if screened is None:
                continue
            record, text, line = screened
            kept.write((line or _encode(record)) + b"\n")
            places.write(np.array([segments[str(item.place.path)], item.place.number], "<u4").tobytes())
            if signs:
                writer.write(compute_signature(text))
            count += 1
        writer.close()
    return {"kept": count, "tallies": {name: vars(tally) for name, tally in tallies.items()}}


def _screen_record(
    item: parts.Read, steps: Sequence[Step], tallies: dict[str, Tally], recipe: Recipe, removed: IO[bytes]
) -> tuple[Record, str, bytes | None] | None:
    """Return a record that stays, its text, and its line if it is unchanged; write why it is removed otherwise."""
    place, record, line = item
    try:
        if isinstance(record, str):
            raise DataError(record)
        names = find_fields(record, recipe.text_field)
        text = join_texts(record.fields, names)
    except (GemwrightError, RecursionError):
        reason = record if isinstance(record, str) else "no valid record of a kind that is known"
        tallies["read"].see(False)
        if tallies["read"].remove(reason, "", False):
            tallies["read"].add_sample(reason, place, None)
        removed.write(describe_removed(place, "read", reason))
        return None
    labelled, is_page = recipe.is_labelled(record), len(names) == 1
    tallies["read"].see(labelled)
    for step in steps:
        if step.name in PAGES and not is_page:
            continue
        tally = tallies[step.name]
        tally.see(labelled)
        if step.edit is not None:
            edited, before = _edit(step, record, names, tally), record
            if edited is not before:
                record, line, tally.edited = edited, None, tally.edited + 1
                text = join_texts(record.fields, names)
        reason = step.judge(text) if step.judge else None
        if reason is not None:
            if tally.remove(reason, text, labelled):
                shown = step.show and not is_unsafe(text, recipe)
                tally.add_sample(reason, place, text if shown else None)
            removed.write(describe_removed(place, step.name, reason))
            return None
    return record, text, line


def _edit(step: Step, record: Record, names: frozenset[str], tally: Tally) -> Record:
    """Return the record edited, or the same one if nothing changes."""
    changes: Counter[str] = Counter()
    assert step.edit is not None
    edit = step.edit
    fields = edit_texts(record.fields, names, lambda text: edit(text, changes))
    tally.found.update(+changes)
    return record if fields == record.fields else Record(record.place, fields)


def _encode(record: Record) -> bytes:
    return json.dumps(record.fields, ensure_ascii=False, default=str).encode(errors="backslashreplace")


def describe_removed(place: Place, step: str, reason: str, because: str = "") -> bytes:
    """Return a line about a record that a step removed."""
    line = {"file": str(place.path), place.unit: place.number, "step": step, "reason": reason}
    return json.dumps(line | ({"because": because} if because else {}), ensure_ascii=False).encode() + b"\n"


class SignatureWriter:
    """Writes signatures in blocks [SIGNATURE, BLOCK], so that one band is read without the others."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._block: list[Hashes] = []

    def write(self, signature: Hashes) -> None:
        """Write the signature of a record."""
        self._block.append(signature)
        if len(self._block) == BLOCK:
            self.close()

    def close(self) -> None:
        """Write what is left, filled up with zeros."""
        if self._block:
            block = np.zeros((SIGNATURE, BLOCK), "<u8")
            block[:, : len(self._block)] = np.stack(self._block, 1)
            self._file.write(block.tobytes())
            self._block.clear()


def read_band(path: Path, band: int) -> Hashes:
    """Return a band of the signatures of a part, in the order of its records; the end is filled up with zeros."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint64)
    blocks = np.memmap(path, "<u8", "r").reshape(-1, SIGNATURE, BLOCK)
    return np.ascontiguousarray(blocks[:, band]).reshape(-1)
