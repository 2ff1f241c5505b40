"""MinHash against the Jaccard similarity computed by its definition."""

import random

import numpy as np
import pytest

from gemwright.data.filters import minhash
from gemwright.data.filters.duplicates import join_pairs
from gemwright.data.filters.words import hash_runs, hash_words, mix, normalize_words
from tests.data.filters.corpus import change_words, make_page

Sets = list[tuple[set[int], set[int]]]


def measure_similarity(one: str, two: str) -> float:
    """Return the Jaccard similarity of the runs of 5 words, as sets of tuples of words."""
    runs = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in map(normalize_words, (one, two))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_runs_are_equal_when_words_are():
    words = hash_words(list("abcabcd"))
    runs = hash_runs(words, 3)
    assert len(runs) == 5
    assert [[runs[i] == runs[j] for j in range(5)] for i in range(5)] == [
        [i == j or {i, j} == {0, 3} for j in range(5)] for i in range(5)
    ]
    assert len(hash_runs(words, 8)) == 0


def test_share_of_equal_minima_is_the_similarity():
    """The mean over 40 pairs of pages is within 0.02: the standard error of 40 x 112 hash functions is 0.008."""
    differences: list[float] = []
    for seed in range(40):
        page = make_page(seed, 30)
        other = change_words(page, 0.02 * (1 + seed % 4), seed)
        minima = [minhash.compute_minima(hash_runs(hash_words(normalize_words(text)), 5)) for text in (page, other)]
        differences.append(float((minima[0] == minima[1]).mean()) - measure_similarity(page, other))
    assert abs(np.mean(differences)) < 0.02
    assert np.abs(differences).max() < 5 * 0.5 / np.sqrt(112)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_recall_is_the_s_curve(similarity: float):
    """Of 400 random pairs of one similarity, those found are within 3.5 standard errors of what the curve predicts."""
    draw = np.random.default_rng(round(100 * similarity))
    size, trials, found = 200, 400, 0
    shared = round(2 * size * similarity / (1 + similarity))
    real = shared / (2 * size - shared)
    for _ in range(trials):
        runs = mix(draw.integers(0, 1 << 63, 2 * size - shared, np.uint64))
        one, two = (minhash.compute_minima(part).reshape(minhash.BANDS, -1) for part in (runs[:size], runs[-size:]))
        found += bool((one == two).all(1).any())
    expected = 1 - (1 - real**minhash.ROWS) ** minhash.BANDS
    assert abs(found / trials - expected) < 3.5 * np.sqrt(expected * (1 - expected) / trials) + 1 / trials


def test_bands_of_signatures_are_those_of_minima():
    page = make_page(3, 40)
    signatures = [minhash.compute_signature(text) for text in (page, change_words(page, 0.02))]
    minima = [
        minhash.compute_minima(hash_runs(hash_words(normalize_words(t)), 5)) for t in (page, change_words(page, 0.02))
    ]
    same = (minima[0] == minima[1]).reshape(minhash.BANDS, minhash.ROWS).all(1)
    np.testing.assert_array_equal(signatures[0][1:] == signatures[1][1:], same)
    assert signatures[0][0] != signatures[1][0]


def test_short_and_empty_texts():
    assert not minhash.compute_signature(" ... ").any()
    one, two = minhash.compute_signature("Two words"), minhash.compute_signature("two  WORDS!")
    assert one[0] != two[0]
    np.testing.assert_array_equal(one[1:], two[1:])


def test_connected_records_join_the_first():
    """Against a search from each record, on random pairs."""
    draw = random.Random(0)
    pairs = [sorted(draw.sample(range(60), 2)) for _ in range(40)]
    neighbors: dict[int, set[int]] = {}
    for one, two in pairs:
        neighbors.setdefault(one, set()).add(two)
        neighbors.setdefault(two, set()).add(one)
    expected: list[list[int]] = []
    for record in sorted(neighbors):
        reached, pending = {record}, [record]
        while pending:
            new = neighbors[pending.pop()] - reached
            reached |= new
            pending += new
        if min(reached) != record:
            expected.append([min(reached), record])
    assert join_pairs(np.array(pairs, np.uint64)).tolist() == expected
