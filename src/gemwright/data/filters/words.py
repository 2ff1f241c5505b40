"""Words and their runs (n-grams) as 64-bit hashes, which are the same in every process."""

import re
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
"""Hashes [T]."""
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CACHE_WORDS = 200_000
_cache: dict[str, int] = {}


def normalize_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation: what near-duplicates are compared by."""
    return _WORD.findall(text.lower())


def hash_words(words: list[str]) -> Hashes:
    """Return a hash of each word [T]."""
    if len(_cache) > _CACHE_WORDS:
        _cache.clear()
    return np.fromiter((_cache[word] if word in _cache else _hash(word) for word in words), np.uint64, len(words))


def _hash(word: str) -> int:
    value = _cache[word] = hash_text(word)
    return value


def hash_text(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def hash_runs(words: Hashes, length: int) -> Hashes:
    """Return a hash of each run of `length` words: [T] to [T - length + 1], which is empty if T is less.

    A run's hash is a polynomial of those of its words, whose bits are mixed.
    Source of the mix: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """
    count = max(0, len(words) - length + 1)
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total = total * _MULTIPLIER + words[offset : offset + count]
    return mix(total)


def mix(values: Hashes) -> Hashes:
    """Return the values with every bit depending on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
