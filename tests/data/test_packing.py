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
from gemwright.errors import DataError, GemwrightError


class Data:
    """Documents of given lengths, with ids that are all different."""

    def __init__(self, lengths: list[int]):
        total = sum(lengths)
        ids = np.arange(1, total + 1, dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.documents = Documents(ids, ids % 3 > 0, offsets, np.arange(len(lengths), dtype=np.int32))
        self.group, self.images = 1, None
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


@settings(deadline=None, max_examples=30)
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
    lengths = np.random.default_rng(0).integers(2, 14, 30).tolist()
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


def test_processes_share_the_rows_of_each_batch() -> None:
    lengths = np.random.default_rng(1).integers(2, 14, 30).tolist()
    options: dict[str, Any] = {"batch_size": 6, "length": 16, "epochs": 2}
    parts = [make(lengths, **options, process_index=index, process_count=3) for index in range(3)]
    for whole, *shares in zip(make(lengths, **options), *parts, strict=True):
        for name in Batch._fields[:-1]:  # extras are of objectives
            joined = np.concatenate([getattr(share, name) for share in shares])
            np.testing.assert_array_equal(joined, getattr(whole, name))


def test_epochs_and_seeds_have_different_orders() -> None:
    options: dict[str, Any] = {"batch_size": 40, "length": 16, "packing": "none"}
    first, second = make([9] * 40, **options, epochs=2)
    assert sorted(first.records[:, 0].tolist()) == sorted(second.records[:, 0].tolist())
    assert first.records[:, 0].tolist() != second.records[:, 0].tolist()
    [other] = make([9] * 40, **options, seed=1)
    assert first.records[:, 0].tolist() != other.records[:, 0].tolist()


def test_the_last_batch_of_an_epoch_is_padded() -> None:
    found = make([13] * 5, batch_size=2, length=12, packing="none", epochs=2)
    assert (found.steps_per_epoch, found.steps) == (3, 6)
    assert [int((batch.segments > 0).sum()) for batch in found] == [24, 24, 12] * 2
    assert found.padding == pytest.approx(1 / 6)


@pytest.mark.parametrize("packing", ["best-fit", "first-fit"])
def test_rows_are_as_full_as_those_of_best_fit_decreasing(packing: Any) -> None:
    lengths = np.random.default_rng(2).integers(20, 500, 400).tolist()
    free: list[int] = []  # the plain algorithm: the longest first, each into the fullest row that has room
    for length in sorted((length - 1 for length in lengths), reverse=True):
        fitting = [row for row, room in enumerate(free) if room >= length]
        row = min(fitting, key=lambda row: free[row], default=len(free))
        free[row : row + 1] = [(free[row] if fitting else 512) - length]
    assert make(lengths, batch_size=1, length=512, packing=packing).steps <= len(free) + 1


def test_a_position_of_other_data_or_options_is_refused() -> None:
    options: dict[str, Any] = {"batch_size": 2, "length": 12}
    state = make([5, 6, 7], **options).get_state()
    for other in (make([5, 6, 8], **options), make([5, 6, 7], **options, seed=1)):
        with pytest.raises(DataError, match=r"of other training data or options \((data|seed)"):
            other.set_state(state)
        other.set_state(state, allow_changes=True)
    for step in (-1, 99, "1", None):
        with pytest.raises(DataError, match="is not one of"):
            make([5, 6, 7], **options).set_state({**state, "step": step})
    make([5, 6, 7], **options, epochs=5).set_state(state)


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="A document has 14 tokens, and 13 fit into a row"):
        make([14], batch_size=1, length=12)
    assert len(list(make([14], batch_size=1, length=12, packing="concatenate"))) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"length": 0},
        {"epochs": 0},
        {"seed": -1},
        {"packing": "x"},
        {"batch_size": 3, "process_count": 2},
    ],
)
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(GemwrightError):
        make([5], **{"batch_size": 2, "length": 12, **options})
