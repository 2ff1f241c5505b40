"""Draw the documents whose beginnings a memorization audit asks for, in one pass over a corpus."""

import hashlib
import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemwright.api import Model
from gemwright.data.documents import Encoder
from gemwright.data.records import Example, Text, find_kind, read_examples
from gemwright.data.sources import Record, find_files, read_records
from gemwright.errors import DataError, GemwrightError

MAX_SOURCES = 1000
"""Maximum number of sources of a corpus, each of which has a sample in memory."""
SOURCE_LENGTH = 200
"""Maximum length of the name of a source, in characters."""
_CHARACTERS = 16
"""Characters of a text that are encoded first, for each token that is needed."""
_MARGIN = 32
"""Tokens before the end of a cut text that the cut may have changed."""
_REPORTED = 1000
"""Number of records between two reports."""


@dataclass(frozen=True)
class Passage:
    """The beginning of a document.

    Attributes:
        source: Name of its source.
        place: Where the document is, such as "corpus.jsonl, line 7".
        ids: [N] token ids: BOS, the prefix and the continuation. An array, as there may be millions of them.
        start: Index of the first id of the continuation.
    """

    source: str
    place: str
    ids: NDArray[np.int32]
    start: int

    @property
    def prompt(self) -> list[int]:
        """Token ids of BOS and the prefix."""
        return self.ids[: self.start].tolist()

    @property
    def continuation(self) -> list[int]:
        """Token ids that follow the prefix."""
        return self.ids[self.start :].tolist()


@dataclass
class Sample:
    """Documents of a source, drawn uniformly among those that are long enough.

    Every document gets a random number, and those with the lowest are kept, so that most documents of a large source
    are not tokenized.

    Attributes:
        source: Name of the source.
        limit: Maximum number of documents to keep.
        documents: Number of documents that were read.
        tokenized: Number of those that were tokenized.
        too_short: Number of those tokenized that are too short.
    """

    source: str
    limit: int
    seed: int
    documents: int = 0
    tokenized: int = 0
    too_short: int = 0
    _kept: list[tuple[float, int, Passage]] = field(default_factory=list[tuple[float, int, Passage]])

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.seed} {self.source}")

    def offer(self, read: Callable[[], Passage | None]) -> None:
        """Draw a document or leave it out; `read` returns its passage, or None if it is too short."""
        number = self._random.random()
        self.documents += 1
        if len(self._kept) == self.limit and number >= -self._kept[0][0]:
            return
        self.tokenized += 1
        passage = read()
        if passage is None:
            self.too_short += 1
            return
        entry = (-number, self.documents, passage)
        if len(self._kept) < self.limit:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heapreplace(self._kept, entry)

    @property
    def passages(self) -> list[Passage]:
        """The passages drawn, in the order of the corpus."""
        return [passage for _, _, passage in sorted(self._kept, key=lambda entry: entry[1])]


def draw_samples(
    model: Model,
    corpus: Sequence[Path],
    prefix: int,
    continuation: int,
    limit: int,
    seed: int,
    report: Callable[[int], None] = lambda documents: None,
) -> list[Sample]:
    """Draw documents of each source of a corpus.

    The source of a document is the field `source` of its record, or else its file. Documents are encoded as for
    training: BOS, the text, EOS; conversations with the chat template.

    Args:
        model: The model, for its tokenizer and chat template.
        corpus: Files or folders, as `gemwright.data` reads them.
        prefix: Number of tokens of a prefix, without BOS.
        continuation: Number of tokens that follow it.
        limit: Maximum number of documents of each source.
        seed: Seed of the choice.
        report: Called now and then with the number of records read.

    Raises:
        DataError: The corpus cannot be read, is malformed or has too many sources, or no document is long enough.
    """
    files = find_files(corpus)
    encoder = Encoder(model.tokenizer, model.chat_template)
    samples: dict[str, Sample] = {}
    for number, record in enumerate(read_records(files)):
        if number % _REPORTED == 0:
            report(number)
        source = _source(record)
        if source not in samples and len(samples) == MAX_SOURCES:
            raise record.place.error(f"the corpus has more than {MAX_SOURCES:,} sources; name fewer in `source`.")
        sample = samples.setdefault(source, Sample(source, limit, seed))
        for example in read_examples(find_kind(record), record, chat=model.tuned):

            def read(record: Record = record, example: Example = example, source: str = source) -> Passage | None:
                ids = _encode(encoder, record, example, prefix + continuation)
                if len(ids) < prefix + continuation:
                    return None
                kept = np.array([encoder.tokenizer.bos_id, *ids[: prefix + continuation]], np.int32)
                return Passage(source, _utf8(str(record.place)), kept, 1 + prefix)

            sample.offer(read)
    if not any(sample.passages for sample in samples.values()):
        raise DataError(
            f"No document of the corpus has {prefix + continuation} tokens; use longer documents, or a shorter prefix "
            "or continuation."
        )
    return list(samples.values())


def _source(record: Record) -> str:
    """Return the name of the source of a record."""
    name = record.fields.get("source")
    return _utf8(name[:SOURCE_LENGTH] if isinstance(name, str) and name else str(record.place.path))


def _utf8(name: str) -> str:
    """Return a name that can be written as UTF-8; a file's name need not be."""
    return name.encode("utf-8", "replace").decode()


def _encode(encoder: Encoder, record: Record, example: Example, count: int) -> list[int]:
    """Return the ids of a document without BOS and the last one, which ends it; of a long text, at least `count`."""
    if isinstance(example, Text):
        return next(ids for ids in _encode_beginnings(encoder, example.text, count) if ids is not None)
    try:
        return encoder.encode(example)[0].ids[1:-1].tolist()
    except DataError:
        raise
    except GemwrightError as error:
        raise record.place.error(str(error)) from error


def _encode_beginnings(encoder: Encoder, text: str, count: int) -> Iterator[list[int] | None]:
    """Yield the ids of longer and longer beginnings of a text; None for one that is too short."""
    length = count * _CHARACTERS
    while length < len(text):
        ids = encoder.tokenizer.encode(text[:length])
        yield ids[:count] if len(ids) >= count + _MARGIN else None
        length *= 4
    yield encoder.tokenizer.encode(text)


def digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of the passages of samples."""
    total = hashlib.sha256()
    for sample in samples:
        for passage in sample.passages:
            total.update(f"{passage.source}\n{passage.start}\n".encode())
            total.update(passage.ids.tobytes())
    return total.hexdigest()
