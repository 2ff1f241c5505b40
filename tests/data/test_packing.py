"""Packing loses and doubles nothing, and resumes exactly."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.data import Batch, batches
from gemwright.data.dataset import Documents
from gemwright.data.packing import PACKINGS


class Data:
    """Documents of given lengths, with ids that are all different."""

    def __init__(self, lengths: list[int]):
        total = sum(lengths)
        ids = np.arange(1, total + 1, dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.documents = Documents(ids, ids % 3 > 0, offsets, np.arange(len(lengths), dtype=np.int32))
        self.fingerprint = str(lengths)


def make(lengths: list[int], **options: Any) -> Any:
    return batches(Data(lengths), **options)  # type: ignore[arg-type]


def check_rows(batch: Batch, documents: Documents) -> None:
    """Check that every segment is a run of one document, and padding is empty."""
    for row in range(len(batch.tokens)):
        segments = batch.segments[row]
        filled = segments > 0
        assert np.all(np.diff(filled.astype(int)) <= 0)
        assert not batch.learned[row][~filled].any()
        assert np.all(batch.records[row][~filled] == -1)
        assert segments.max(initial=0) == len(set(segments[filled].tolist()))
        for segment in range(1, segments.max(initial=0) + 1):
            tokens, targets = batch.tokens[row][segments == segment], batch.targets[row][segments == segment]
            record = set(batch.records[row][segments == segment].tolist())
            assert len(record) == 1
            assert np.all(targets == tokens + 1)
            assert np.all(tokens[1:] == targets[:-1])
            start, stop = documents.offsets[record.pop() :][:2]
            assert tokens[0] > start
            assert targets[-1] <= stop


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(2, 13), min_size=1, max_size=40),
    packing=st.sampled_from(PACKINGS),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_no_token_is_lost_or_doubled(lengths: list[int], packing: Any, batch_size: int, seed: int) -> None:
    documents = Data(lengths).documents
    found = make(lengths, batch_size=batch_size, length=12, packing=packing, seed=seed, epochs=2)
    expected = Counter(
        (int(target), bool(learned))
        for document in documents
        for target, learned in zip(document.ids[1:], document.learned[1:], strict=True)
    )
    for _ in range(2):
        seen: Counter[tuple[int, bool]] = Counter()
        for _ in range(found.steps_per_epoch):
            batch = next(found)
            assert batch.tokens.shape == (batch_size, 12)
            check_rows(batch, documents)
            filled = batch.segments > 0
            seen.update(zip(batch.targets[filled].tolist(), batch.learned[filled].tolist(), strict=True))
        assert seen == expected
    with pytest.raises(StopIteration):
        next(found)


@pytest.mark.parametrize("packing", PACKINGS)
def test_resuming_gives_the_same_batches(packing: Any) -> None:
    lengths = np.random.default_rng(0).integers(2, 14, 50).tolist()
    options = {"batch_size": 3, "length": 16, "packing": packing, "epochs": 3, "seed": 1}
    whole = list(make(lengths, **options))
    assert len(whole) == make(lengths, **options).steps
    for step in range(len(whole) + 1):
        first = make(lengths, **options)
        for _ in range(step):
            next(first)
        second = make(lengths, **options)
        second.set_state(json.loads(json.dumps(first.get_state())))
        rest = list(second)
        assert len(rest) == len(whole) - step
        for found, expected in zip(rest, whole[step:], strict=True):
            for name in Batch._fields:
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
