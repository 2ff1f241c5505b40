"""Hold some records out of the training data."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gemwright.data import Dataset, Statistics
from gemwright.data.dataset import Documents

SHARE, MOST, FEWEST = 0.02, 50, 200
"""Share of the records that is held out, at most so many, and none of fewer records than `FEWEST`."""


def split(dataset: Dataset, share: float | None = None, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Split a dataset by record, in the same way each time.

    Args:
        dataset: The data.
        share: Share of the records that is held out; by default `SHARE` of many.
        seed: Seed of the choice.

    Returns:
        The training data and the held-out data, if any.
    """
    documents = dataset.documents
    records = np.unique(documents.records)
    count = round(len(records) * (SHARE if share is None else share))
    if share is None:
        count = min(count, MOST) if len(records) >= FEWEST else 0
    if not 0 < count < len(records):
        return dataset, None
    chosen = np.random.default_rng((seed, 2)).choice(records, count, replace=False)
    held = np.isin(documents.records, chosen)
    return _select(dataset, ~held), _select(dataset, held)


def _select(dataset: Dataset, wanted: NDArray[np.bool_]) -> Dataset:
    """Return the dataset of some of its documents."""
    documents = dataset.documents
    lengths, records = documents.lengths[wanted], documents.records[wanted]
    tokens = np.repeat(wanted, documents.lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    selected = Documents(documents.ids[tokens], documents.learned[tokens], offsets, records)
    statistics = Statistics(
        records=len(np.unique(records)),
        documents=len(records),
        tokens=len(selected.ids),
        learned=int(np.count_nonzero(selected.learned)),
        longest=int(lengths.max()),
    )
    return replace(dataset, documents=selected, statistics=statistics)
