"""Signatures by which duplicates are found: equal texts, and texts that share most runs of words (MinHash).

A signature is one number for equality, then one for each of `BANDS` bands of `ROWS` minima of hashed runs. Two texts
whose runs have the Jaccard similarity s share a band with probability 1 - (1 - s^ROWS)^BANDS: 77% at 0.75, 92% at 0.8,
and 99.95% at 0.9. Source: Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3; the
numbers are those of FineWeb (Penedo et al. 2024).
"""

import numpy as np
from numpy.typing import NDArray

from gemwright.data.filters.words import Hashes, hash_runs, hash_text, hash_words, mix, normalize_words

RUN = 5
"""Words of a run."""
BANDS, ROWS = 14, 8
SIGNATURE = 1 + BANDS
"""Numbers of a signature; 0 stands for none."""
_CHUNK = 4096
"""Runs of words that are hashed at once."""
_random = np.random.default_rng(20240625)
_FACTORS = _random.integers(1, 1 << 63, BANDS * ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 1 << 63, BANDS * ROWS, np.uint64)


def compute_signature(text: str) -> Hashes:
    """Return the signature of a text [SIGNATURE]."""
    words = normalize_words(text)
    if not words:
        return np.zeros(SIGNATURE, np.uint64)
    runs = hash_runs(hash_words(words), min(RUN, len(words)))
    minima = compute_minima(np.unique(runs)).reshape(BANDS, ROWS)
    bands = np.zeros(BANDS, np.uint64)
    for row in range(ROWS):
        bands = mix(bands + minima[:, row])
    return np.maximum(np.concatenate([[np.uint64(hash_text(text))], bands]), np.uint64(1))


def compute_minima(runs: Hashes) -> NDArray[np.uint64]:
    """Return the minimum of each hash function over the runs: [T] to [BANDS * ROWS]."""
    minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(runs), _CHUNK):
        hashed = runs[start : start + _CHUNK] * _FACTORS[:, None] + _OFFSETS[:, None]
        minima = np.minimum(minima, (hashed ^ (hashed >> np.uint64(32))).min(1))
    return minima
