"""Pack documents into rows, and rows into batches with an exact position: `batches`.

The documents are packed once, by grain's packers, in an order that is shuffled with the seed; every epoch has the same
rows in another order. So the number of steps is known, and the position is one number.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright.data.dataset import Dataset, Documents
from gemwright.data.images import Images
from gemwright.errors import DataError, GemwrightError
from gemwright.text.image_format import SOFT_TOKEN

Packing: TypeAlias = Literal["best-fit", "first-fit", "concatenate", "none"]
_Ranges: TypeAlias = NDArray[np.int64]
PACKINGS: tuple[Packing, ...] = ("best-fit", "first-fit", "concatenate", "none")
"""Ways to fill a row: with whole documents, with consecutive documents that are cut at its end, or with one."""
WINDOW_TOKENS = 1 << 20
"""Tokens of the documents that are packed together, the longest first."""


class Batch(NamedTuple):
    """A batch of packed rows; every array is [B, T].

    Attributes:
        tokens: int32 ids; 0 in padding, negative for the soft tokens of images.
        targets: int32 ids of the next tokens of the same documents.
        learned: Whether the loss covers a target.
        segments: int32 number of the document in its row, from 1; 0 in padding.
        records: int32 index of the record; -1 in padding.
        extras: Other arrays of an objective by name, whose first axis is B; `pixels` are the images of each row.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    learned: NDArray[np.bool_]
    segments: NDArray[np.int32]
    records: NDArray[np.int32]
    extras: Mapping[str, NDArray[Any]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of documents and parts of documents.

    Attributes:
        ranges: [pieces, 2] range of the inputs of each piece in the ids of all documents; a target is the next id.
        offsets: [rows + 1] first piece of each row, and the number of pieces.
    """

    ranges: _Ranges
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> list[tuple[int, int]]:
        """Return the ranges of a row."""
        return [(start, stop) for start, stop in self.ranges[self.offsets[row] : self.offsets[row + 1]].tolist()]

    @property
    def fingerprint(self) -> str:
        """Return a digest of the rows, in hexadecimal."""
        return hashlib.sha256(self.ranges.tobytes() + self.offsets.tobytes()).hexdigest()

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Return the number of inputs of each row."""
        return np.add.reduceat(self.ranges[:, 1] - self.ranges[:, 0], self.offsets[:-1])

    @property
    def tokens(self) -> int:
        """Return the number of inputs of all rows."""
        return int(np.sum(self.ranges[:, 1] - self.ranges[:, 0]))


def pack(documents: Documents, length: int, packing: Packing, seed: int, group: int = 1) -> Rows:
    """Pack documents into rows of `length` positions.

    Args:
        documents: The documents.
        length: Number of positions of a row.
        packing: How rows are filled; see `PACKINGS`.
        seed: Seed of the order of documents.
        group: Number of consecutive documents that stay together, next to each other in one row.

    Raises:
        GemwrightError: The packing is not known, or would cut a group.
        DataError: A document or a group is longer than a row, and would not be cut.
    """
    if packing not in PACKINGS:
        raise GemwrightError(f"The packing {packing!r} is not known; use one of {', '.join(PACKINGS)}.")
    if group > 1:
        return _pack_groups(documents, length, packing, seed, group)
    longest = int(documents.lengths.max())
    if packing != "concatenate" and longest - 1 > length:
        raise DataError(
            f"A document has {longest:,} tokens, and {length + 1:,} fit into a row; use a larger length, or open the "
            "data with this length as max_length."
        )
    ranges = np.stack([documents.offsets[:-1], documents.offsets[1:] - 1], axis=1)
    return _pack_ranges(ranges[shuffle(len(documents), seed, 0)], length, packing)


def _pack_ranges(ranges: _Ranges, length: int, packing: Packing) -> Rows:
    """Pack shuffled ranges into rows."""
    if packing == "none":
        return Rows(ranges, np.arange(len(ranges) + 1))
    parts = [ranges] if packing == "concatenate" else _windows(ranges)
    rows = [row for part in parts for row in _pack_with_grain(part, length, packing)]
    return Rows(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


def _pack_groups(documents: Documents, length: int, packing: Packing, seed: int, group: int) -> Rows:
    """Pack groups of consecutive documents, each as if it were one document as long as all of its inputs."""
    if packing == "concatenate":
        raise GemwrightError("The packing concatenate cuts pairs of answers; use best-fit, first-fit or none.")
    ranges = np.stack([documents.offsets[:-1], documents.offsets[1:] - 1], axis=1).reshape(-1, group, 2)
    whole = np.stack([ranges[:, 0, 0], ranges[:, 0, 0] + np.sum(ranges[:, :, 1] - ranges[:, :, 0], axis=1)], axis=1)
    longest = int(np.max(whole[:, 1] - whole[:, 0]))
    if longest > length:
        raise DataError(
            f"A pair of answers has {longest:,} tokens, and {length:,} fit into a row; use a larger length."
        )
    rows = _pack_ranges(whole[shuffle(len(whole), seed, 0)], length, packing)
    found = ranges[np.searchsorted(whole[:, 0], rows.ranges[:, 0])]
    return Rows(found.reshape(-1, 2), rows.offsets * group)


def shuffle(count: int, *seed: int) -> NDArray[np.int64]:
    """Return a random order, which is the same with every version of NumPy (its permutations are not)."""
    return np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count), kind="stable")


def _windows(ranges: _Ranges) -> Iterator[_Ranges]:
    """Yield the ranges of about `WINDOW_TOKENS` tokens at a time, the longest first, which leaves little padding."""
    lengths = ranges[:, 1] - ranges[:, 0]
    for window in np.split(ranges, np.flatnonzero(np.diff(np.cumsum(lengths) // WINDOW_TOKENS)) + 1):
        yield window[np.argsort(window[:, 0] - window[:, 1], kind="stable")]


def _pack_with_grain(ranges: _Ranges, length: int, packing: Packing) -> Iterator[_Ranges]:
    """Yield the ranges of each row. An element of grain holds the indices of its ids, of which a row is made."""
    try:
        from grain import MapDataset, ReadOptions, experimental
    except ImportError:
        raise GemwrightError("Packing needs grain; run: pip install grain") from None

    def indices(piece: int) -> dict[str, NDArray[np.int64]]:
        return {"ids": np.arange(*ranges[piece])}

    elements = MapDataset.range(len(ranges)).map(indices).to_iter_dataset(ReadOptions(num_threads=0))
    if packing == "concatenate":
        packed = experimental.ConcatThenSplitIterDataset(elements, length_struct={"ids": length})
    else:
        packer = experimental.BestFitPackIterDataset if packing == "best-fit" else experimental.FirstFitPackIterDataset
        rows = 2 * (int(np.sum(ranges[:, 1] - ranges[:, 0])) // length + 1)  # two rows together are more than one full
        packed = packer(elements, length_struct={"ids": length}, num_packing_bins=rows, shuffle_bins=False)
    for row in packed:
        segments = row["ids_segment_ids"]
        firsts = np.flatnonzero(np.diff(segments, prepend=0) > 0)
        lasts = np.append(firsts[1:], np.count_nonzero(segments)) - 1
        yield np.stack([row["ids"][firsts], row["ids"][lasts] + 1], axis=1)


def _read_pixels(images: Images, batch: Batch) -> NDArray[np.float32]:
    """Return the images [B, n, P, P, 3] of rows of one document each, and zeros where a row has fewer."""
    pixels = np.zeros((len(batch.tokens), images.most, images.reader.size, images.reader.size, 3), np.float32)
    for row, tokens in enumerate(batch.tokens):
        if count := int(np.count_nonzero(tokens == SOFT_TOKEN)) // images.reader.format.soft_tokens:
            pixels[row, :count] = images.read(int(batch.records[row, 0]), count)
    return pixels


class Batches(Iterator[Batch]):
    """An iterator of batches; `batches` makes one.

    The last batch of an epoch is filled up with rows of padding.

    Attributes:
        steps_per_epoch: Number of batches of an epoch.
        steps: Number of batches of all epochs.
        padding: Share of padding in the positions of an epoch.
        step: Number of batches that were returned.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: Rows,
        *,
        batch_size: int,
        length: int,
        seed: int,
        epochs: int,
        process: tuple[int, int],
        made_with: Mapping[str, Any],
    ):
        self._documents, self._images, self._rows = dataset.documents, dataset.images, rows
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._process, self._made_with = process, dict(made_with)
        self.steps_per_epoch = -(-len(rows) // batch_size)
        self.steps = self.steps_per_epoch * epochs
        positions = self.steps_per_epoch * batch_size * length
        self.padding = 1 - rows.tokens / positions
        self.step = 0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> Batch:
        """Return the next batch."""
        if self.step >= self.steps:
            raise StopIteration
        batch = self[self.step]
        self.step += 1
        return batch

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, without moving."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        index, count = self._process
        size = self._batch_size // count
        return self._gather(self._rows_of(step)[index * size : (index + 1) * size], size)

    def metrics(self) -> dict[str, float]:
        """Return measures of the batches that were returned, by name."""
        return {}

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        """Return the rows of a step, over all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place * self._batch_size : (place + 1) * self._batch_size]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the rows in an epoch."""
        if self._order[0] != epoch:
            self._order = epoch, shuffle(len(self._rows), self._seed, 1, epoch)
        return self._order[1]

    def _gather(self, rows: NDArray[np.int64], size: int) -> Batch:
        """Return the batch of some rows, padded to `size`."""
        documents, shape = self._documents, (size, self._length)
        batch = Batch(
            tokens=np.zeros(shape, np.int32),
            targets=np.zeros(shape, np.int32),
            learned=np.zeros(shape, bool),
            segments=np.zeros(shape, np.int32),
            records=np.full(shape, -1, np.int32),
        )
        for row, index in enumerate(rows.tolist()):
            begin = 0
            for segment, (start, stop) in enumerate(self._rows[index], 1):
                place = row, slice(begin, begin := begin + stop - start)
                batch.tokens[place] = documents.ids[start:stop]
                batch.targets[place] = documents.ids[start + 1 : stop + 1]
                batch.learned[place] = documents.learned[start + 1 : stop + 1]
                batch.segments[place] = segment
                batch.records[place] = documents.record_at(start)
        return batch if self._images is None else batch._replace(extras={"pixels": _read_pixels(self._images, batch)})

    def get_state(self) -> dict[str, Any]:
        """Return the position, as values of JSON."""
        return {"step": self.step, "made_with": self._made_with}

    def set_state(self, state: Mapping[str, Any], *, allow_changes: bool = False) -> None:
        """Move to a position that `get_state` returned.

        Args:
            state: The position.
            allow_changes: Whether to accept a position of other data or options, at the same step.

        Raises:
            DataError: The state is not valid, or of other data or options.
        """
        made_with, step = state.get("made_with"), state.get("step")
        if made_with != self._made_with and not allow_changes:
            given: Mapping[str, Any] = made_with if isinstance(made_with, Mapping) else {}
            changed = [name for name, value in self._made_with.items() if given.get(name) != value]
            raise DataError(
                f"The position is of other training data or options ({', '.join(changed) or 'unknown'}); continue with "
                "the same ones."
            )
        if not isinstance(step, int) or not 0 <= step <= self.steps:
            raise DataError(
                f"The position {step!r:.40} is not one of {self.steps:,} steps; continue with the same epochs."
            )
        self.step = step


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    length: int,
    packing: Packing = "best-fit",
    seed: int = 0,
    epochs: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Return the batches of a dataset.

    Args:
        dataset: The data.
        batch_size: Number of rows of a batch, over all processes.
        length: Number of positions of a row.
        packing: How rows are filled; see `PACKINGS`. With images a row holds one document.
        seed: Seed of the order of documents and rows.
        epochs: Number of passes over the data.
        process_index: Index of this process, which gets its share of the rows of each batch.
        process_count: Number of processes, which divides `batch_size`.

    Raises:
        GemwrightError: A number is out of range, or the packing is not known or would cut pairs.
        DataError: A document or a pair is longer than a row.
    """
    if min(batch_size, length, epochs, process_count) < 1 or seed < 0:
        raise GemwrightError("batch_size, length and epochs must be positive, and seed at least 0.")
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise GemwrightError(f"batch_size is {batch_size}; use a multiple of the number of processes, {process_count}.")
    packing = packing if dataset.images is None else "none"
    rows = pack(dataset.documents, length, packing, seed, dataset.group)
    made_with = {
        "data": dataset.fingerprint,
        "batch_size": batch_size,
        "length": length,
        "packing": packing,
        "seed": seed,
        "rows": rows.fingerprint,
    }
    return Batches(
        dataset,
        rows,
        batch_size=batch_size,
        length=length,
        seed=seed,
        epochs=epochs,
        process=(process_index, process_count),
        made_with=made_with,
    )
