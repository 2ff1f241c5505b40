"""What runs, filters and evaluations record about a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """The file of a record.

    Attributes:
        path: The file.
        sha256: SHA-256 of its content, in hexadecimal.
        written: When it was last written, in seconds since 1970.
    """

    path: Path
    sha256: str
    written: float


@dataclass(frozen=True)
class Metrics:
    """The steps of a run.

    Attributes:
        steps: Number of steps.
        tokens, learned: Number of tokens, and of labeled tokens, of all steps.
        seconds: Duration of all steps.
        loss, held_out: The first and the last loss; None if there is none.
        memory: Most memory in bytes.
        began, ended: When the first step ended and when the last one did, in seconds since 1970; None if not recorded.
    """

    steps: int
    tokens: int
    learned: int
    seconds: float
    loss: tuple[float, float] | None
    held_out: tuple[float, float] | None
    memory: int
    began: float | None
    ended: float | None


@dataclass(frozen=True)
class Run:
    """A tuning run.

    Attributes:
        source: Its file.
        version: Version of gemwright.
        model: Name of the base model as it was given.
        digest: Digest of the base model; see `gemwright.checkpoint.digest`.
        data, held_out: Digest of each data file, by path.
        algorithm: Of these digests: sha256, or in early records sha256-of-sha256.
        recipe: The settings.
        machine: Device, threads and versions.
        metrics: Its steps; None if there are none.
    """

    source: Source
    version: str
    model: str
    digest: str
    data: Mapping[str, str]
    held_out: Mapping[str, str]
    algorithm: str
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    metrics: Metrics | None


@dataclass(frozen=True)
class FilterStep:
    """A step of a filter, and the number of records that it saw, removed and changed."""

    name: str
    seen: int
    removed: int
    edited: int


@dataclass(frozen=True)
class Filtering:
    """A run of `gemwright filter`."""

    source: Source
    records: int
    kept: int
    steps: tuple[FilterStep, ...]


@dataclass(frozen=True)
class Tested:
    """The weights that an evaluation tested.

    Attributes:
        digest: The first 16 digits of the digest of the model; None if it was not recorded.
        adapters: Name, digest and weight of each adapter.
        dtype: Precision.
        chat: Whether prompts were in the chat template.
        limit: Maximum number of items of a task, or None.
    """

    digest: str | None
    adapters: tuple[str, ...]
    dtype: str
    chat: bool
    limit: int | None


@dataclass(frozen=True)
class Score:
    """The score of a benchmark, as a share, with its interval of 95%; the published one is in percent."""

    benchmark: str
    task: str
    metric: str
    shots: int
    value: float
    low: float
    high: float
    count: int
    of: int
    published: float | None


@dataclass(frozen=True)
class Benchmarks:
    """A run of `gemwright eval`."""

    source: Source
    tested: Tested
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class SafetyScore:
    """The headline of a safety suite, with its interval of 95%."""

    suite: str
    area: str
    metric: str
    better: str
    value: float
    low: float
    high: float
    count: int
    percent: bool
    cannot_say: str


@dataclass(frozen=True)
class Safety:
    """A run of `gemwright eval --suite safety`."""

    source: Source
    tested: Tested
    scores: tuple[SafetyScore, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class MemorizedShare:
    """The shares of a source's documents that a model completes, with their intervals of 95%."""

    corpus: str
    documents: int
    exact: tuple[float, float, float]
    approximate: tuple[float, float, float] | None
    personal: int


@dataclass(frozen=True)
class Memorization:
    """A run of `gemwright memorize`."""

    source: Source
    tested: Tested
    prefix: int
    continuation: int
    shares: tuple[MemorizedShare, ...]


Evaluation = Benchmarks | Safety | Memorization
Record = Run | Filtering | Evaluation


@dataclass(frozen=True)
class Records:
    """All that was recorded about a model."""

    runs: tuple[Run, ...] = ()
    filterings: tuple[Filtering, ...] = ()
    benchmarks: tuple[Benchmarks, ...] = ()
    safety: tuple[Safety, ...] = ()
    memorization: tuple[Memorization, ...] = ()

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All evaluations."""
        return (*self.benchmarks, *self.safety, *self.memorization)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files of all records."""
        return tuple(record.source for record in (*self.runs, *self.filterings, *self.evaluations))
