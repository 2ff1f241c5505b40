"""SynthID-Text: a watermark in the choice of tokens, found again by whoever has its keys.

A hash of the last tokens, of a candidate for the next one and of a key gives a bit, the candidate's g value for that
key. `tournament` makes candidates with g values of 1 likelier; this module has the file of keys, and finds the
watermark: without it, g values are fair coins.

Sources: doi.org/10.1038/s41586-024-08025-4; hash, sampling table and file are those of transformers'
`SynthIDTextWatermarkingConfig`. This module must not import JAX.
"""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import GemwrightError

MULTIPLIER = 6364136223846793005
"""Multiplier of the hash, a linear congruential generator modulo 2^64 whose increment is 1."""
DEPTH = 30
"""Number of keys of a new watermark, as in the paper."""
MAX_BYTES = 1 << 20
"""Maximum size of a watermark file in bytes."""
_RANGES = {
    "ngram_len": (2, 64),
    "context_history_size": (0, 1 << 16),
    "sampling_table_seed": (-(2**63), 2**64 - 1),
    "sampling_table_size": (1, 1 << 24),
}
_KEYS = (-(2**63), 2**63 - 1)
_MAX_KEYS = 1024
_KINDS = {"keys": (list, "a list of integers"), "skip_first_ngram_calls": (bool, "true or false")}


@dataclass(frozen=True)
class Watermark:
    """The settings of a watermark, with the names and defaults of transformers' `SynthIDTextWatermarkingConfig`.

    Attributes:
        keys: One secret integer of 64 bits per round of the tournament.
        ngram_len: Number of tokens that are hashed together: the context and the next one.
        context_history_size: Number of earlier contexts that are remembered; a token after one of them is not marked.
        sampling_table_seed: Seed of the table of g values.
        sampling_table_size: Its size.
        skip_first_ngram_calls: Whether to leave the first `ngram_len - 1` tokens unmarked. Otherwise their contexts
            begin with zeros, alike in all texts, and texts of one prompt begin alike.
    """

    keys: tuple[int, ...]
    ngram_len: int
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False

    def __post_init__(self):
        if not 1 <= len(self.keys) <= _MAX_KEYS or not all(_KEYS[0] <= key <= _KEYS[1] for key in self.keys):
            raise GemwrightError(f"keys must be a list of 1 to {_MAX_KEYS} integers of 64 bits.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise GemwrightError(f"{name} is {value}, and it must lie between {low} and {high}.")

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """The table of g values, as torch's generator for CPUs draws it.

        Both are MT19937 with the same seeding, and NumPy has frozen `RandomState`.
        """
        stream = np.random.RandomState(self.sampling_table_seed % 2**32)
        words = np.frombuffer(stream.bytes(4 * self.sampling_table_size), "<u4")
        return (words & 1).astype(np.uint8)


def read_watermark(path: str | Path) -> Watermark:
    """Return the watermark of a JSON file.

    Raises:
        GemwrightError: The file cannot be read, is not JSON, or has unknown, missing or wrong settings.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise GemwrightError(f"{path} has more than {MAX_BYTES} bytes; pass a file of `gemwright watermark`.")
        document: Any = json.loads(content)
    except FileNotFoundError:
        raise GemwrightError(f"{path} does not exist; make new keys with `gemwright watermark {path}`.") from None
    except OSError as error:
        raise GemwrightError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, GemwrightError):
            raise
        raise GemwrightError(f"{path} is not JSON; make new keys with `gemwright watermark FILE`.") from error
    if not isinstance(document, dict):
        raise GemwrightError(f"{path} must be a JSON object with keys and ngram_len, as `gemwright watermark` writes.")
    return _parse(path, cast(dict[str, Any], document))


def _parse(path: Path, document: dict[str, Any]) -> Watermark:
    given: dict[str, Any] = {
        name: value for name, value in document.items() if not (name == "debug_mode" and value is False)
    }
    names = [field.name for field in fields(Watermark)]
    if unknown := sorted(given.keys() - set(names)):
        raise GemwrightError(f"{path} has {unknown[0]!r:.80}; its settings are {', '.join(names)}.")
    if missing := [name for name in ("keys", "ngram_len") if name not in given]:
        raise GemwrightError(f"{path} has no {missing[0]}; make new keys with `gemwright watermark FILE`.")
    for name, value in given.items():
        kind, words = _KINDS.get(name, (int, "an integer"))
        keys = cast(list[Any], value) if name == "keys" and isinstance(value, list) else []
        if type(value) is not kind or any(type(key) is not int for key in keys):
            raise GemwrightError(f"{path}: {name} must be {words}.")
    given["keys"] = tuple(given["keys"])
    try:
        return Watermark(**given)
    except GemwrightError as error:
        raise GemwrightError(f"{path}: {error}") from None


def create_watermark(path: Path) -> Watermark:
    """Write a file with new keys that only its owner can read.

    Raises:
        GemwrightError: The file exists or cannot be written.
    """
    watermark = Watermark(
        tuple(secrets.randbelow(2**63) for _ in range(DEPTH)),
        ngram_len=5,
        sampling_table_seed=secrets.randbelow(2**32),
        skip_first_ngram_calls=True,
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(watermark), indent=2) + "\n")
    except FileExistsError:
        raise GemwrightError(f"{path} exists, and texts with its keys may too; choose another name.") from None
    except OSError as error:
        raise GemwrightError(f"{path} cannot be written ({error.strerror}); choose another path.") from error
    return watermark


@dataclass(frozen=True)
class Detection:
    """What a text says about a watermark.

    Attributes:
        tokens: Number of tokens of the text.
        ngrams: Number of n-grams that were counted: one for each context that is new in the text.
        mean: Mean g value of their last tokens over all keys.
        expected: Its expectation without the watermark: the mean of the table.
        p_value: Probability that a text without this watermark has as large a mean.
    """

    tokens: int
    ngrams: int
    mean: float
    expected: float
    p_value: float


def detect(watermark: Watermark, ids: Sequence[int]) -> Detection:
    """Look for a watermark in the tokens of a text.

    Each g value of a text without it is 1 with the probability of a 1 in the table, whatever the other ones are, so
    that their sum is binomial. Repetitions are no evidence: of n-grams with the same context only the first counts, and
    of keys that give the same g values one.

    Args:
        watermark: The keys.
        ids: The tokens, without BOS.

    Raises:
        GemwrightError: The text is shorter than an n-gram.
    """
    if len(ids) < watermark.ngram_len:
        raise GemwrightError(
            f"The text has {len(ids)} tokens, and the watermark shows in {watermark.ngram_len} or more; "
            "pass a longer text, best of 100 tokens or more."
        )
    from scipy.special import betainc  # takes a while to import

    values = g_values(watermark, ids)[first_contexts(watermark, ids)][:, _distinct_keys(watermark)]
    expected = float(np.mean(watermark.table))
    count, ones = values.size, int(values.sum())
    # P(X >= ones) of a binomial variable is a regularized incomplete beta function: dlmf.nist.gov/8.17.E5.
    p_value = float(betainc(ones, count - ones + 1, expected)) if ones else 1.0
    return Detection(len(ids), len(values), ones / count, expected, p_value)


def g_values(watermark: Watermark, ids: Sequence[int]) -> NDArray[np.uint8]:
    """Return the g values of each n-gram of a text, [n-grams, keys]."""
    hashes = _hash(np.ones(1, np.uint64), _windows(ids, watermark.ngram_len))
    keys = np.array(watermark.keys, np.int64).view(np.uint64)
    hashes = _hash(hashes[:, None], keys[None, :, None])
    return watermark.table[hashes.view(np.int64) % watermark.sampling_table_size]


def first_contexts(watermark: Watermark, ids: Sequence[int]) -> NDArray[np.int64]:
    """Return which n-grams of a text have a context that no n-gram before has, in ascending order."""
    contexts = _windows(ids, watermark.ngram_len)[:, :-1]
    return np.sort(np.unique(_hash(np.ones(1, np.uint64), contexts), return_index=True)[1])


def _windows(ids: Sequence[int], size: int) -> NDArray[np.uint64]:
    return np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.uint64), size)


def _hash(start: NDArray[np.uint64], data: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the hash of the last axis of `data`, after what `start` is the hash of."""
    for column in np.moveaxis(data, -1, 0):
        start = (start + column) * np.uint64(MULTIPLIER) + np.uint64(1)
    return start


def _distinct_keys(watermark: Watermark) -> NDArray[np.int64]:
    """Return the places of keys that give different g values: those of a power of two depend on the last bits only."""
    size, keys = watermark.sampling_table_size, np.array(watermark.keys, np.int64)
    return np.unique(keys % size if size & (size - 1) == 0 else keys, return_index=True)[1]
