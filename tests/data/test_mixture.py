"""Mixtures: the shares are exact, and the position is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright.data import Dataset
from gemwright.data.dataset import join
from gemwright.data.mixture import Mixture, Source, Stage, mix
from gemwright.errors import DataError

STAGES = [Stage(30, {"a": 0.7, "b": 0.2, "c": 0.1}), Stage(20, {"a": 0.25, "c": 0.75})]


@pytest.fixture
def sources(write: Callable[..., Path], read: Callable[..., Dataset]) -> dict[str, Source]:
    """Three sources of documents of other letters and lengths."""

    def make(letter: str, lengths: range) -> Dataset:
        records = [{"text": letter * (lengths.start + n % len(lengths))} for n in range(400)]
        return read([write(*records, name=f"{letter}.jsonl")], 32)

    return {
        "a": Source(make("a", range(2, 9)), 2),
        "b": Source(make("b", range(20, 30))),
        "c": Source(make("c", range(9, 12))),
    }


def make(sources: dict[str, Source], stages: list[Stage] = STAGES, **options: Any) -> tuple[Dataset, Mixture]:
    return mix(sources, stages, **{"batch_size": 4, "length": 32, "seed": 1} | options)


def letters(dataset: Dataset, batch: Any) -> dict[str, int]:
    """Return the number of tokens of each source in a batch, found by the files of their records."""
    found: dict[str, int] = dict.fromkeys("abc", 0)
    for record in batch.records[batch.records >= 0].tolist():
        found[dataset.place(record).path.stem] += 1
    return found


def test_the_shares_are_exact(sources: dict[str, Source]):
    dataset, made = make(sources)
    counts = np.array([[*letters(dataset, batch).values()] for batch in made])
    np.testing.assert_array_equal(counts, made.tokens)
    for (first, last), stage in zip(made.stages, STAGES, strict=True):
        tokens = counts[first:last].sum(axis=0)
        wanted = np.array([stage.weights.get(name, 0.0) for name in sources]) * tokens.sum()
        assert np.abs(tokens - wanted).max() <= 2 * 32  # two rows
    whole = sum(STAGES[n].steps for n in range(2))
    assert len(made) == whole
    assert made.padding == pytest.approx(1 - counts.sum() / (whole * 4 * 32))
    assert made.metrics() == pytest.approx(
        {f"share of {n}": c / counts.sum() for n, c in zip("abc", counts.sum(axis=0), strict=True)}
    )


def test_no_row_is_seen_twice_in_a_pass(sources: dict[str, Source]):
    dataset, made = make(sources)
    seen = np.concatenate([np.unique(batch.records[batch.records >= 0]) for batch in made])
    places, counts = np.unique(seen, return_counts=True)
    most = {name: counts[[dataset.place(one).path.stem == name for one in places.tolist()]].max() for name in "abc"}
    assert most["b"] == most["c"] == 1
    assert most["a"] <= 2


def test_the_position_is_whole(sources: dict[str, Source]):
    _, made = make(sources)
    for _ in range(17):
        next(made)
    state, expected = made.get_state(), list(made)
    _, again = make(sources)
    again.set_state(state)
    found = list(again)
    assert len(found) == len(expected) == 33
    for one, other in zip(found, expected, strict=True):
        for name in ("tokens", "targets", "learned", "segments", "records"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for changed in (make(sources, STAGES[::-1])[1], make(sources, seed=2)[1], make(sources | {"a": sources["b"]})[1]):
        with pytest.raises(DataError, match="other training data or options"):
            changed.set_state(state)


def test_a_source_that_runs_dry_is_named_with_the_step(sources: dict[str, Source]):
    stages = [Stage(10, {"a": 1.0}), Stage(500, {"b": 0.5, "a": 0.5})]
    with pytest.raises(DataError, match=r"source a runs dry at step (\d+) of 510, after its \d+ sequences; give more"):
        make({**sources, "a": Source(sources["a"].dataset, 1)}, stages)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "weights of stage 1 sum to 0.9; change"),
        ({"a": 0.5, "d": 0.5}, "weight for 'd', and the sources are a, b, c"),
        ({"a": 1.5, "b": -0.5}, "gives a the weight 1.5"),
        ({"a": float("nan"), "b": 1.0}, "gives a the weight nan"),
        ({}, "sum to 0"),
    ],
)
def test_bad_weights_are_refused(sources: dict[str, Source], weights: dict[str, float], message: str):
    with pytest.raises(DataError, match=message):
        make(sources, [Stage(1, weights)])


def test_joined_data_have_the_documents_and_places_of_all(sources: dict[str, Source]):
    parts = [source.dataset for source in sources.values()]
    whole = join(parts)
    documents = [document.ids.tolist() for part in parts for document in part.documents]
    assert [document.ids.tolist() for document in whole.documents] == documents
    places = [str(part.place(record)) for part in parts for record in part.documents.records.tolist()]
    assert [str(whole.place(record)) for record in whole.documents.records.tolist()] == places
    assert whole.statistics.tokens == len(whole.documents.ids)
