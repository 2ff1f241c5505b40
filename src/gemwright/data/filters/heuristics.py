"""Rules for web pages that C4, Gopher and FineWeb publish.

A word is what stands between white space, as in the papers; a sentence ends with a mark of punctuation before white
space. The numbers are those of the papers and of FineWeb.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemwright.data.filters.words import hash_runs

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"[.?!][\"')\]]*(?=\s|$)")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_TERMINAL = tuple(".!?‼⁇⁈⁉。．！？｡؟۔।॥։။።៕")
_TOP_RUNS = ((2, 0.20), (3, 0.18), (4, 0.16))
_REPEATED_RUNS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def keep_c4_lines(text: str) -> str:
    """Return the lines that C4 keeps: three words or more, an end of a sentence, no notice about scripts or cookies.

    Lines for which `judge_c4` removes the whole page stay. Source: Raffel et al. 2020, section 2.2.
    """
    return "\n".join(line for line in map(_clean_c4_line, text.splitlines()) if line)


def _clean_c4_line(line: str) -> str:
    words = line.split()
    cleaned = _CITATION.sub("", line.strip())
    if any(len(word) > 1000 for word in words) or len(words) < 3:
        return ""
    if not cleaned.endswith((".", "?", "!", '"', "'")) or cleaned.endswith("..."):
        return ""
    lower = cleaned.lower()
    if "lorem ipsum" in lower:
        return cleaned
    if "javascript" in lower or ("{" not in cleaned and any(policy in lower for policy in _POLICIES)):
        return ""
    return cleaned


def judge_c4(text: str) -> str | None:
    """Return why C4 removes a page of which `keep_c4_lines` left this text."""
    if "lorem ipsum" in text.lower():
        return "lorem ipsum"
    if "{" in text:
        return "curly bracket"
    if sum(len(_SENTENCE_END.findall(line)) for line in text.splitlines()) < 5:
        return "fewer than 5 sentences"
    return None


def judge_gopher_quality(text: str) -> str | None:
    """Return which rule for quality of Gopher a page breaks. Source: Rae et al. 2021, appendix A1.1."""
    words = text.split()
    plain = [word for word in words if word.isalpha() or any(map(str.isalnum, word))]
    if not 50 <= len(plain) <= 100_000:
        return "fewer than 50 words" if len(plain) < 50 else "more than 100,000 words"
    if not 3 <= sum(map(len, plain)) / len(plain) <= 10:
        return "mean length of words not within 3 to 10"
    if max(text.count("#"), text.count("...") + text.count("…")) > 0.1 * len(words):
        return "more than 0.1 symbols a word"
    lines = [line.strip() for line in text.splitlines()]
    if sum(line.startswith(("•", "-")) for line in lines) > 0.9 * len(lines):
        return "more than 90% of lines are bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "more than 30% of lines end with an ellipsis"
    letters = sum(map(str.isalpha, words))  # enough for most pages, and fast
    if letters < 0.8 * len(words) and sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
        return "fewer than 80% of words have a letter"
    if len(_STOP_WORDS.intersection(words)) < 2:
        return "fewer than 2 stop words"
    return None


def judge_gopher_repetition(text: str) -> str | None:
    """Return which limit of repetition of Gopher a page exceeds. Source: Rae et al. 2021, table A1."""
    if not text.strip():
        return "empty"
    parts: Iterable[tuple[str, Sequence[str]]] = (
        ("paragraphs", _PARAGRAPHS.split(text.strip())),
        ("lines", _LINES.split(text)),
    )
    for name, pieces in parts:
        count, characters = _count_repeated(pieces)
        if count > 0.3 * len(pieces) or characters > 0.2 * len(text):
            return f"repeated {name}"
    words = text.split()
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(word, len(numbers) + 1) for word in words), np.uint64, len(words))
    ends = np.cumsum([0, *map(len, words)])
    for length, share in _TOP_RUNS:
        if _measure_top_run(hash_runs(ids, length), ends, length) > share * len(text):
            return f"one run of {length} words"
    for length, share in _REPEATED_RUNS:
        runs = hash_runs(ids, length)
        if not len(runs):
            return None
        repeated = _mark_repeated(runs)
        covered = int(np.diff(ends)[_cover(repeated, length)].sum())
        if covered <= _REPEATED_RUNS[-1][1] * len(text):  # longer runs cover no more, and their limits are not less
            return None
        if covered > share * len(text) and _count_characters(runs.tolist(), ends, length) > share * len(text):
            return f"repeated runs of {length} words"
    return None


def _count_repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """Return the number and the characters of the pieces that are equal to an earlier one."""
    seen: set[str] = set()
    repeated = [piece for piece in pieces if piece in seen or seen.add(piece)]
    return len(repeated), sum(map(len, repeated))


def _measure_top_run(runs: NDArray[np.uint64], ends: NDArray[np.int64], length: int) -> int:
    """Return the characters of all occurrences of the most frequent run, spaces between its words included."""
    if not len(runs):
        return 0
    _, first, counts = np.unique(runs, return_index=True, return_counts=True)
    start = first[counts == counts.max()].min()
    return int((ends[start + length] - ends[start] + length - 1) * counts.max())


def _mark_repeated(runs: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether each run is equal to an earlier one [T]."""
    repeated = np.ones(len(runs), bool)
    repeated[np.unique(runs, return_index=True)[1]] = False
    return repeated


def _cover(repeated: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Return whether each word is in a repeated run: [T - length + 1] to [T]."""
    edges = np.zeros(len(repeated) + length, np.int64)
    edges[: len(repeated)] += repeated
    edges[length:] -= repeated
    return np.cumsum(edges)[:-1] > 0


def _count_characters(runs: Sequence[int], ends: NDArray[np.int64], length: int) -> int:
    """Return the characters of the runs that occurred before, from the left, of which none overlaps another."""
    seen: set[int] = set()
    index = characters = 0
    while index < len(runs):
        if runs[index] in seen:
            characters += int(ends[index + length] - ends[index])
            index += length
        else:
            seen.add(runs[index])
            index += 1
    return characters


def judge_fineweb(text: str) -> str | None:
    """Return which rule of FineWeb a page breaks. Source: Penedo et al. 2024, section 3.6."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(line.endswith(_TERMINAL) for line in lines) < 0.12 * len(lines):
        return "fewer than 12% of lines end a sentence"
    if sum(len(line) <= 30 for line in lines) > 0.67 * len(lines):
        return "more than 67% of lines are short"
    if _count_repeated(lines)[1] > 0.01 * len(text.replace("\n", "")):
        return "more than 1% of characters in repeated lines"
    if text.count("\n") > 0.3 * len(text.split()):
        return "more than 0.3 line breaks a word"
    return None
