"""Mixtures of sources whose weights change over a run: `mix`.

The source of every row is decided before the first step, so that the shares of tokens are exact, the position is one
number, and a source that does not suffice is known at once.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from gemwright.data.dataset import Dataset, join
from gemwright.data.packing import Batches, Packing, Rows, pack, shuffle
from gemwright.errors import DataError

TOLERANCE = 1e-6
"""Largest difference of the sum of weights from 1."""


@dataclass(frozen=True, eq=False)
class Source:
    """Data of a mixture.

    Attributes:
        dataset: The data.
        epochs: Maximum number of passes over them.
    """

    dataset: Dataset
    epochs: int = 1


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        steps: Number of its steps.
        weights: Share of the tokens by name of the source; a source without one is not used.
    """

    steps: int
    weights: Mapping[str, float]


@final
class Mixture(Batches):
    """Batches of a mixture; `mix` makes them.

    Attributes:
        names: Names of the sources.
        tokens: [steps, sources] number of tokens of each source in each step, padding left out.
        stages: First step of each stage, and the first after it.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: Rows,
        plan: NDArray[np.int64],
        tokens: NDArray[np.int64],
        names: Sequence[str],
        stages: Sequence[Stage],
        *,
        length: int,
        seed: int,
        made_with: Mapping[str, Any],
    ):
        steps, batch_size = plan.shape
        super().__init__(
            dataset,
            rows,
            batch_size=batch_size,
            length=length,
            seed=seed,
            epochs=1,
            process=(0, 1),
            made_with=made_with,
        )
        self._plan, self.names, self.tokens = plan, tuple(names), tokens
        self.steps = steps
        ends = np.cumsum([0, *(stage.steps for stage in stages)]).tolist()
        self.stages = tuple(itertools.pairwise(ends))
        self.padding = 1 - float(tokens.sum()) / (plan.size * length)

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        return self._plan[step]

    def shares(self, start: int, stop: int) -> dict[str, float]:
        """Return the share of each source in the tokens of steps, from `start` to before `stop`."""
        tokens = self.tokens[start:stop].sum(axis=0)
        return dict(zip(self.names, (tokens / max(1, tokens.sum())).tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """Return the share of each source in the tokens so far."""
        return {f"share of {name}": share for name, share in self.shares(0, self.step).items()}


def mix(
    sources: Mapping[str, Source],
    stages: Sequence[Stage],
    *,
    batch_size: int,
    length: int,
    packing: Packing = "best-fit",
    seed: int = 0,
) -> tuple[Dataset, Mixture]:
    """Return the data of all sources, and batches in which they have the weights of the stages.

    Args:
        sources: The sources by name.
        stages: The stages in order.
        batch_size: Number of rows of a batch.
        length: Number of positions of a row.
        packing: How rows are filled; a row is of one source.
        seed: Seed of the order of documents and rows.

    Raises:
        DataError: Weights are not valid, a source runs dry, or a document is longer than a row.
    """
    for number, stage in enumerate(stages, 1):
        check_weights(stage.weights, list(sources), f"Stage {number}")
    datasets = [source.dataset for source in sources.values()]
    packed = [pack(data.documents, length, packing, seed, data.group) for data in datasets]
    passes = [np.concatenate(list(_passes(len(rows), source.epochs, seed))) for rows, source in _zip(packed, sources)]
    sizes = [rows.sizes[order] for rows, order in zip(packed, passes, strict=True)]
    chosen, places = _schedule(sizes, stages, batch_size, list(sources))
    firsts = np.cumsum([0, *map(len, packed)])
    plan, tokens = np.empty(len(chosen), np.int64), np.zeros((len(chosen) // batch_size, len(sources)), np.int64)
    for index, order in enumerate(passes):
        own = np.flatnonzero(chosen == index)
        plan[own] = firsts[index] + order[places[own]]
        np.add.at(tokens[:, index], own // batch_size, sizes[index][places[own]])
    dataset = join(datasets)
    rows = _join_rows(packed, [len(source.dataset.documents.ids) for source in sources.values()])
    made_with = {
        "data": {name: source.dataset.fingerprint for name, source in sources.items()},
        "stages": [asdict(stage) for stage in stages],
        "batch_size": batch_size,
        "length": length,
        "packing": packing,
        "seed": seed,
        "rows": hashlib.sha256(rows.fingerprint.encode() + plan.tobytes()).hexdigest(),
    }
    plan = plan.reshape(-1, batch_size)
    return dataset, Mixture(
        dataset, rows, plan, tokens, list(sources), stages, length=length, seed=seed, made_with=made_with
    )


def check_weights(weights: Mapping[str, float], known: Sequence[str], where: str) -> None:
    """Check the weights of sources.

    Raises:
        DataError: One is negative or of an unknown source, or their sum is not 1.
    """
    for name, weight in weights.items():
        if name not in known:
            raise DataError(f"{where} has a weight for {name!r:.60}, and the sources are {', '.join(known)}.")
        if not 0 <= weight <= 1:
            raise DataError(f"{where} gives {name} the weight {weight:g}; a weight lies between 0 and 1.")
    total = sum(weights.values())
    if abs(total - 1) > TOLERANCE:
        raise DataError(f"The weights of {where.lower()} sum to {total:g}; change them so that their sum is 1.")


def _zip(packed: Sequence[Rows], sources: Mapping[str, Source]) -> Iterator[tuple[Rows, Source]]:
    return zip(packed, sources.values(), strict=True)


def _passes(count: int, epochs: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the order of rows in each pass, that of `Batches`."""
    for epoch in range(epochs):
        yield shuffle(count, seed, 1, epoch)


def _schedule(
    sizes: Sequence[NDArray[np.int64]], stages: Sequence[Stage], batch_size: int, names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the source of every row of a run, and which of the rows of its passes it is.

    Each row is of the source that lacks most tokens, so that no share is wrong by more than a few rows.

    Raises:
        DataError: A source has no row left.
    """
    total = sum(stage.steps for stage in stages) * batch_size
    chosen, places = np.empty(total, np.int64), np.empty(total, np.int64)
    counts, row = [len(of) for of in sizes], 0
    tokens = [of.tolist() for of in sizes]
    taken, lacking = [0] * len(names), [0.0] * len(names)
    for stage in stages:
        weights = [stage.weights.get(name, 0.0) for name in names]
        used = [index for index, weight in enumerate(weights) if weight > 0]
        for _ in range(stage.steps * batch_size):
            best = max(used, key=lambda index: lacking[index] + weights[index])
            if taken[best] == counts[best]:
                raise DataError(
                    f"The source {names[best]} runs dry at step {row // batch_size + 1:,} of {total // batch_size:,}, "
                    f"after its {counts[best]:,} sequences; give more data, allow it more epochs, or lower its weight."
                )
            size = tokens[best][taken[best]]
            lacking = [lack + weight * size for lack, weight in zip(lacking, weights, strict=True)]
            lacking[best] -= size
            chosen[row], places[row] = best, taken[best]
            taken[best] += 1
            row += 1
    return chosen, places


def _join_rows(packed: Sequence[Rows], ids: Sequence[int]) -> Rows:
    """Return the rows of all sources, whose documents follow each other."""
    starts, pieces = np.cumsum([0, *ids]), np.cumsum([0, *(len(rows.ranges) for rows in packed)])
    ranges = np.concatenate([rows.ranges + start for rows, start in zip(packed, starts, strict=False)])
    offsets = [rows.offsets[:-1] + first for rows, first in zip(packed, pieces, strict=False)]
    return Rows(ranges, np.concatenate([*offsets, pieces[-1:]]))
