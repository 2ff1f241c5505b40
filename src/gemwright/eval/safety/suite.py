"""What a suite is: items that are asked, values of each answer, and metrics over the values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gemwright.eval.intervals import RESAMPLES, Interval, bootstrap, wilson
from gemwright.eval.safety.records import Source

Values = dict[str, float]
"""Values of an item by name; NaN where one does not apply."""


@dataclass(frozen=True)
class Item:
    """A question of a suite.

    Attributes:
        id: Its name in the samples.
        pairs: Contexts and continuations whose log-likelihoods are asked.
        prompt: The text to answer, if a reply is asked.
        facts: What the score needs to know.
        group: A part of the suite that is also reported apart.
        cluster: The source that it shares with other items; its own id if empty.
    """

    id: str
    pairs: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    group: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model gave for an item: the log-likelihood of each pair, or replies."""

    logprobs: Sequence[float] = ()
    replies: Sequence[str] = ()


class TextScorer(Protocol):
    """Gives the probability that a text is toxic."""

    @property
    def name(self) -> str:
        """What it is, for the report."""
        ...

    def score(self, texts: Sequence[str]) -> Sequence[float]:
        """Return a value between 0 and 1 for each text."""
        ...


class ReplyScorer(Protocol):
    """Gives the probability that a reply to a prompt is harmful."""

    @property
    def name(self) -> str:
        """What it is, for the report."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Return a value between 0 and 1 for each prompt and reply; NaN where it gives none."""
        ...


@dataclass(frozen=True)
class Scorers:
    """Models that score replies; None where there is none."""

    toxicity: TextScorer | None = None
    replies: ReplyScorer | None = None


@dataclass(frozen=True)
class Table:
    """Values of the items of a suite as columns."""

    columns: Mapping[str, NDArray[np.float64]]
    groups: NDArray[np.str_]
    clusters: NDArray[np.str_]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.columns[name]

    def take(self, indices: NDArray[np.intp] | NDArray[np.bool_]) -> "Table":
        """Return the rows of some indices."""
        columns = {name: column[indices] for name, column in self.columns.items()}
        return Table(columns, self.groups[indices], self.clusters[indices])


def make_table(items: Sequence[Item], values: Sequence[Values]) -> Table:
    """Return the values of items as columns; a value that an item lacks is NaN."""
    names = dict.fromkeys(name for row in values for name in row)
    return Table(
        {name: np.asarray([row.get(name, np.nan) for row in values], np.float64) for name in names},
        np.asarray([item.group for item in items], np.str_),
        np.asarray([item.cluster or item.id for item in items], np.str_),
    )


Better = Literal["higher", "lower", "nearer", ""]


@dataclass(frozen=True)
class Metric:
    """A number about the items of a suite.

    Attributes:
        name: Its name.
        needs: Columns that it needs; it is left out if the items have none of a column.
        compute: Its value for a table. NaN if undefined.
        better: Whether higher, lower or nearer to `ideal` is better; empty if it only describes.
        is_share: Whether it is the mean of the one needed column, whose values are 0 or 1.
        ideal: The value that `nearer` means.
        percent: Whether it is shown in percent.
        resamples: Number of bootstrap samples.
    """

    name: str
    needs: tuple[str, ...]
    compute: Callable[[Table], float]
    better: Better
    is_share: bool = False
    ideal: float = 0.0
    percent: bool = True
    resamples: int = RESAMPLES

    def estimate(self, table: Table) -> tuple[float, Interval, int] | None:
        """Return the value, its interval and the number of items, or None if the items do not have it."""
        if any(name not in table.columns for name in self.needs):
            return None
        table = table.take(np.logical_and.reduce([~np.isnan(table[name]) for name in self.needs]))
        n = len(table.groups)
        value = self.compute(table) if n else np.nan
        if not np.isfinite(value):
            return None
        return float(value), self._interval(table, n), n

    def _interval(self, table: Table, n: int) -> Interval:
        clusters = len(np.unique(table.clusters))
        if self.is_share and (clusters == n or len(np.unique(table[self.needs[0]])) == 1):
            # Items of one cluster that all agree count once.
            return wilson(float(table[self.needs[0]].mean()) * clusters, clusters)
        return bootstrap(lambda indices: self.compute(table.take(indices)), table.clusters, self.resamples)


def mean_of(name: str, column: str, better: Better, ideal: float = 0.0, percent: bool = True) -> Metric:
    """Return the mean of a column."""
    return Metric(name, (column,), lambda table: float(table[column].mean()), better, False, ideal, percent)


def share_of(name: str, column: str, better: Better, ideal: float = 0.0) -> Metric:
    """Return the share of items whose value is 1; all values are 0 or 1."""
    return Metric(name, (column,), lambda table: float(table[column].mean()), better, True, ideal)


@dataclass(frozen=True)
class Suite:
    """A named safety evaluation.

    Attributes:
        name: Its name on the command line.
        area: What it is about.
        patterns: Patterns of its files in the data folder; those of the first that matches are read.
        read: Yields its items.
        score: Returns the values of each item from the answers.
        metrics: Its metrics; the first one is the headline.
        cannot_say: What must not be concluded from it.
        tokens: Maximum number of tokens of a reply.
        samples: Number of replies to each prompt; one is greedy, several are drawn.
        needs_toxicity: Whether it needs a scorer of toxicity.
        published: Scores of the reports in percent, by variant.
        protocol: How the published scores were measured, as far as the reports say.
    """

    name: str
    area: str
    patterns: tuple[str, ...]
    read: Callable[[Sequence[Source]], Iterable[Item]]
    score: Callable[[Sequence[Item], Sequence[Answer], Scorers], list[Values]]
    metrics: tuple[Metric, ...]
    cannot_say: str
    tokens: int = 32
    samples: int = 1
    needs_toxicity: bool = False
    published: Mapping[str, float] = field(default_factory=dict[str, float])
    protocol: str = ""
