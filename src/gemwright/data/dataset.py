"""The documents of training data, tokenized: `open_dataset`.

All ids are in memory, at 5 bytes each: a billion tokens take 5 GB.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright.data.documents import Document, Encoder
from gemwright.data.images import ImageReader, Images, Source, join_images, open_images
from gemwright.data.records import Example, Form, Kind, Text, find_kind, form, read_examples
from gemwright.data.sources import Place, Places, Record, digest, find_files, read_records
from gemwright.errors import DataError, GemwrightError
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer

TooLong: TypeAlias = Literal["split", "drop", "refuse"]
"""How a document that is longer than a row is treated."""
TOO_LONG: tuple[TooLong, ...] = ("split", "drop", "refuse")
NAMED_RECORDS = 8
"""Number of records of a batch that a message names."""
_NAMED = 3
"""Number of places that a message names."""
_REFUSED: dict[bool, Form] = {True: "text", False: "chat"}
_NOT_ASKED = {
    True: "a text cannot be a conversation; give messages, or leave out chat=True.",
    False: "the record is a conversation; give a prompt and its completion, or leave out chat=False.",
}


@dataclass(frozen=True)
class Statistics:
    """The size of training data.

    Attributes:
        records: Number of records.
        documents: Number of documents, after long ones were split.
        tokens: Number of tokens of all documents.
        learned: Number of tokens that the loss covers.
        longest: Number of tokens of the longest document.
    """

    records: int
    documents: int
    tokens: int
    learned: int
    longest: int


class Documents:
    """A sequence of documents, stored as flat arrays.

    Attributes:
        ids: [tokens] ids of all documents.
        learned: [tokens] whether the loss covers an id.
        offsets: [documents + 1] start of each document in `ids`, and the end.
        records: [documents] index of the record of each document.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        learned: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        records: NDArray[np.int32],
    ):
        self.ids, self.learned, self.offsets, self.records = ids, learned, offsets, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        """Return a document, as views."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Document(self.ids[part], self.learned[part])

    def record_at(self, place: int) -> int:
        """Return the index of the record of an id, by its place in `ids`."""
        return int(self.records[np.searchsorted(self.offsets, place, side="right") - 1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of ids of each document."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training data, tokenized; `open_dataset` makes one.

    Attributes:
        files: The files, in order.
        kind: The kind of the records; several, joined by commas, if files differ.
        form: How they are encoded: "text", "prompted" or "chat".
        documents: Their documents.
        statistics: Their size.
        notes: Sentences about all that was split, dropped or not learned.
        digest: SHA-256 of the files.
        images: Their images, if there are any.
        group: Number of consecutive documents that stay together in a row: 2 for the answers of a pair.
    """

    files: tuple[Path, ...]
    kind: str
    form: Form
    documents: Documents
    statistics: Statistics
    notes: tuple[str, ...]
    digest: str
    _places: Places = field(repr=False)
    group: int = field(default=1, kw_only=True)
    images: Images | None = field(default=None, kw_only=True)

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the documents, which also changes with the tokenizer, the template and the options."""
        total = hashlib.sha256()
        for array in (self.documents.ids, self.documents.learned, self.documents.offsets):
            total.update(np.ascontiguousarray(array).view(np.uint8).data)
        if self.images is not None:
            total.update(self.images.digest.encode())
        return total.hexdigest()

    def place(self, record: int) -> Place:
        """Return the place of a record, by its index."""
        return self._places[record]

    def name_records(self, records: NDArray[np.int32]) -> str:
        """Return the places of the records of a batch, the first few."""
        indices = np.unique(records[records >= 0]).tolist()
        names = "; ".join(str(self.place(index)) for index in indices[:NAMED_RECORDS])
        return f"{names} and {len(indices) - NAMED_RECORDS} more" if len(indices) > NAMED_RECORDS else names


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Return the documents of several data in order.

    Raises:
        DataError: They are of different forms, or only some are pairs.
    """
    if len(datasets) == 1:
        return datasets[0]
    first, places, counts = datasets[0], Places(), list[int]()
    for other in datasets:
        if (other.form, other.group) != (first.form, first.group):
            raise _mixed(first.kind, first.place(0), other.kind, other.place(0))
        counts.append(len(places))
        places.extend(other._places)  # pyright: ignore[reportPrivateUsage]
    starts = np.cumsum([0, *(len(data.documents.ids) for data in datasets)])
    parts = [data.documents for data in datasets]
    documents = Documents(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.learned for part in parts]),
        np.concatenate([*(part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)), starts[-1:]]),
        np.concatenate([part.records + count for part, count in zip(parts, counts, strict=True)]).astype(np.int32),
    )
    sizes = [data.statistics for data in datasets]
    return Dataset(
        files=tuple(file for data in datasets for file in data.files),
        kind=", ".join(dict.fromkeys(data.kind for data in datasets)),
        form=first.form,
        documents=documents,
        statistics=Statistics(
            records=sum(size.records for size in sizes),
            documents=sum(size.documents for size in sizes),
            tokens=sum(size.tokens for size in sizes),
            learned=sum(size.learned for size in sizes),
            longest=max(size.longest for size in sizes),
        ),
        notes=tuple(note for data in datasets for note in data.notes),
        digest=hashlib.sha256("".join(data.digest for data in datasets).encode()).hexdigest(),
        _places=places,
        group=first.group,
        images=join_images([data.images for data in datasets], counts),
    )


def open_dataset(
    paths: str | Path | Iterable[str | Path],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    *,
    max_length: int,
    chat: bool | None = None,
    tuned: bool = False,
    too_long: TooLong = "split",
    images: ImageReader | None = None,
) -> Dataset:
    """Read and tokenize training data.

    Args:
        paths: A file or folder, or several.
        tokenizer: The model's tokenizer.
        chat_template: The model's chat template.
        max_length: Number of positions of a row. A document of one id more fits, as its last id is only predicted.
        chat: Whether a prompt and its completion are a conversation; by default if the model is tuned on them.
        tuned: Whether the model is tuned on conversations.
        too_long: How a longer document is treated: "split" into documents that begin with BOS, "drop" or "refuse".
            With images it is dropped or refused.
        images: What the model makes of images; None if it reads text only.

    Raises:
        DataError: The data cannot be read, are empty, malformed or of mixed kinds, hold nothing to learn, or have a
            document that is too long and refused.
    """
    if max_length < 1 or too_long not in TOO_LONG:
        raise GemwrightError(f"max_length must be positive and too_long one of {', '.join(TOO_LONG)}.")
    files = find_files(paths)
    encoder = Encoder(tokenizer, chat_template, None if images is None else images.format)
    builder = Builder(max_length, too_long)
    for record, examples in _read_all(files, builder, tuned if chat is None else chat):
        if chat is not None and any(form(example) == _REFUSED[chat] for example in examples):
            raise record.place.error(_NOT_ASKED[chat])
        builder.add(record.place, _encode(encoder, record, examples), _sources(examples))
    return builder.finish(files, images)


def collect(files: Sequence[Path], kind: str, documents: Iterable[tuple[Place, Document]], max_length: int) -> Dataset:
    """Return the dataset of documents that are text, each with its place.

    Args:
        files: The files that they are made of.
        kind: Name of their kind.
        documents: The documents.
        max_length: Number of positions of a row; a longer document is split.

    Raises:
        DataError: There are none.
    """
    builder = Builder(max_length, "split")
    for place, document in documents:
        builder.check_form("text", kind, place)
        builder.add(place, [[document]])
    return builder.finish(list(files))


def _encode(encoder: Encoder, record: Record, examples: Iterable[Example]) -> list[list[Document]]:
    try:
        return [encoder.encode(example) for example in examples]
    except DataError:
        raise
    except GemwrightError as error:
        raise record.place.error(str(error)) from error


def _sources(examples: Iterable[Example]) -> tuple[Source, ...]:
    return tuple(image for example in examples if not isinstance(example, Text) for image in example.images)


def _read_all(files: list[Path], builder: "Builder", chat: bool) -> Iterator[tuple[Record, Iterable[Example]]]:
    """Yield the records and their examples, those of a file of one kind and all of one form."""
    first: dict[Path, tuple[Kind, Place]] = {}
    for record in read_records(files):
        kind = find_kind(record)
        known, place = first.setdefault(record.place.path, (kind, record.place))
        if kind is not known:
            raise _mixed(known.name, place, kind.name, record.place)
        examples = read_examples(kind, record, chat)
        for example in examples:
            builder.check_form(form(example), kind.name, record.place)
        yield record, examples


def _mixed(first: str, where: Place, second: str, there: Place) -> DataError:
    return DataError(
        f"The records are of mixed kinds: {first} ({where}) and {second} ({there}); train on one kind at a time."
    )


class Builder:
    """Documents that are being collected."""

    def __init__(self, max_length: int, too_long: TooLong):
        self.max_length, self.too_long = max_length, too_long
        self.places = Places()
        self.kinds: dict[str, tuple[Form, Place]] = {}
        self.ids, self.learned = bytearray(), bytearray()
        self.lengths, self.records = bytearray(), bytearray()
        self.sources: dict[int, tuple[Source, ...]] = {}
        self.unlearned = Counter()
        self.split, self.dropped, self.separate = Counter(), Counter(), Counter()

    def check_form(self, found: Form, kind: str, place: Place) -> None:
        """Refuse records of another form than the first."""
        for other, (known, where) in self.kinds.items():
            if known != found:
                raise _mixed(other, where, kind, place)
        self.kinds.setdefault(kind, (found, place))

    def add(self, place: Place, documents: Sequence[Sequence[Document]], images: tuple[Source, ...] = ()) -> None:
        """Add the documents of the examples of a record, and its images."""
        index = len(self.places)
        self.places.append(place)
        if images:
            self.sources[index] = images
        if any(len(parts) > 1 for parts in documents):
            self.separate.add(place)
        learning = [document for parts in documents for document in parts if document.learned.any()]
        if not learning:
            self.unlearned.add(place)
        for document in learning:
            for part in self._fit(document, place):
                self.append(part, index)

    def _fit(self, document: Document, place: Place) -> list[Document]:
        """Return a document, or the parts of a long one in which something is learned."""
        length = len(document.ids)
        if length - 1 <= self.max_length:
            return [document]
        if self.too_long == "refuse" or (self.too_long == "split" and document.ids.min() < 0):
            raise place.error(
                f"the document has {length:,} tokens, and {self.max_length + 1:,} fit; use a larger length, or split "
                "or drop long documents."
            )
        if self.too_long == "drop":
            self.dropped.add(place)
            return []
        self.split.add(place)
        parts: list[Document] = []
        for start in range(1, length, self.max_length):
            part = slice(start, start + self.max_length)
            if document.learned[part].any():
                ids = np.append(document.ids[:1], document.ids[part])
                parts.append(Document(ids, np.append(False, document.learned[part])))
        return parts

    def append(self, document: Document, record: int) -> None:
        """Add a document of a record."""
        self.ids += document.ids.astype(np.int32).tobytes()
        self.learned += document.learned.astype(bool).tobytes()
        self.lengths += np.int64(len(document.ids)).tobytes()
        self.records += np.int32(record).tobytes()

    def finish(self, files: list[Path], reader: ImageReader | None = None) -> Dataset:
        """Return the dataset."""
        if not len(self.places):
            names = ", ".join(map(str, files[:_NAMED]))
            raise DataError(f"The training data are empty: {names} has no record.")
        if not self.records:
            raise DataError(self._nothing())
        lengths = np.frombuffer(self.lengths, np.int64)
        documents = Documents(
            np.frombuffer(self.ids, np.int32),
            np.frombuffer(self.learned, bool),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.frombuffer(self.records, np.int32),
        )
        learned = int(np.count_nonzero(documents.learned))
        size = Statistics(len(self.places), len(documents), len(documents.ids), learned, int(lengths.max()))
        found = next(iter(self.kinds.values()))[0]
        kind = ", ".join(self.kinds)
        notes, places = self._notes(), self.places
        images = None if reader is None else open_images(reader, self.sources, {n: places[n] for n in self.sources})
        return Dataset(tuple(files), kind, found, documents, size, notes, digest(files), places, images=images)

    def _nothing(self) -> str:
        if self.dropped.count:
            return f"All documents are longer than {self.max_length:,} tokens and were dropped; use a larger length."
        return (
            f"No record has a token to learn ({self.unlearned}): give every record an answer of the model, or a text "
            "that is not empty."
        )

    def _notes(self) -> tuple[str, ...]:
        too_long = f"Longer than {self.max_length + 1:,} tokens"
        pairs = (
            (self.unlearned, "Without a token to learn and left out"),
            (self.dropped, f"{too_long} and dropped"),
            (self.split, f"{too_long} and split"),
            (self.separate, "In several documents, as the chat template changes or does not end earlier turns"),
        )
        total = f"{len(self.places):,}"
        return tuple(f"{text}: {found.count:,} of {total} records ({found})." for found, text in pairs if found.count)


class Counter:
    """A number of records, and the first of their places."""

    def __init__(self) -> None:
        self.count = 0
        self._places: list[Place] = []

    def add(self, place: Place) -> None:
        """Count the record at a place, once."""
        if self._places[-1:] != [place]:
            self.count += 1
            self._places[_NAMED:] = [place]

    def __str__(self) -> str:
        named = "; ".join(map(str, self._places[:_NAMED]))
        return f"{named}; ..." if self.count > _NAMED else named
