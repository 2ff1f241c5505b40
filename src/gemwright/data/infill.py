"""Fill-in-the-middle: cut source code into what comes before a gap, the gap and what comes after, and reorder them.

CodeGemma (arXiv:2406.11409) trains on 80% of such documents, half in the order prefix, suffix, middle (PSM) and half
in the order suffix, prefix, middle (SPM). It shows the tokens of PSM only; those of SPM here are variant 2 of
arXiv:2207.14255, appendix D, as in other models of code: the prefix sentinel, the suffix sentinel, the suffix, the
middle sentinel, and then prefix and middle without a token between.
"""

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple, TypeAlias

from gemwright.data.python_code import find_statements
from gemwright.errors import GemwrightError
from gemwright.families import FILL_IN_THE_MIDDLE as TOKENS
from gemwright.text.tokenizer import Tokenizer

RATE = 0.8
"""Share of files that CodeGemma reorders (2B 1.1: 0.9)."""
SPM_SHARE = 0.5
"""Share of SPM among them."""
Order: TypeAlias = Literal["PSM", "SPM"]


class Parts(NamedTuple):
    """A text in three parts, which joined are the text."""

    before: str
    middle: str
    after: str


def find_places(text: str, path: str) -> list[int]:
    """Return the places at which a text may be cut, ascending.

    In Python they are the beginnings and the ends of statements, and in other languages, or if it does not parse, the
    beginnings of lines. The beginning and the end of the text always are among them.

    Args:
        text: The text of a file.
        path: Its name, which tells the language.
    """
    found = {0, len(text)}
    if PurePath(path).suffix in (".py", ".pyi"):
        found |= _statements(text)
    return sorted(found if len(found) > 2 else {*found, *_lines(text)})


def _lines(text: str) -> Iterator[int]:
    """Yield the beginning of each line."""
    place = text.find("\n") + 1
    while place:
        yield place
        place = text.find("\n", place) + 1


def _statements(text: str) -> set[int]:
    """Return the beginnings and the ends of the statements of Python; nothing if it does not parse."""
    statements = list(find_statements(text))
    lines = text.encode().splitlines(keepends=True) if statements else []
    starts = list(itertools.accumulate((len(line.decode()) for line in lines), initial=0))
    found = set[int]()
    for node in statements:
        for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)):
            if line is not None and column is not None and line <= len(lines):
                found.add(starts[line - 1] + len(lines[line - 1][:column].decode("utf-8", "ignore")))
    return found


def cut(text: str, places: Sequence[int], numbers: random.Random) -> Parts:
    """Cut a text at two random places, if there are two, and else at two random characters.

    Args:
        text: The text.
        places: Where it may be cut, ascending; see `find_places`.
        numbers: The random numbers.
    """
    allowed = places if len(places) > 2 else range(len(text) + 1)
    if len(allowed) < 2:
        return Parts("", text, "")
    first = _below(len(allowed), numbers)
    second = (first + 1 + _below(len(allowed) - 1, numbers)) % len(allowed)
    start, stop = sorted((allowed[first], allowed[second]))
    return Parts(text[:start], text[start:stop], text[stop:])


def _below(count: int, numbers: random.Random) -> int:
    """Return a random number below `count`, the same with every version of Python."""
    return int(numbers.random() * count)


def encode(tokenizer: Tokenizer, parts: Parts, order: Order, path: str | None = None) -> list[int]:
    """Return the ids of a text whose middle comes last, without BOS and EOS.

    Args:
        tokenizer: A tokenizer whose vocabulary has CodeGemma's fill-in-the-middle tokens.
        parts: The text. What it says is never a token of these.
        order: Prefix, suffix, middle; or suffix, prefix, middle.
        path: The path of the file, which is a line before it; None for none.

    Raises:
        GemwrightError: The vocabulary has no such tokens, or the text has half of a surrogate pair.
    """
    before, middle, after = (encode_text(tokenizer, part) for part in parts)
    prefix, suffix, end = (tokenizer.id_of(token) for token in (TOKENS.prefix, TOKENS.suffix, TOKENS.middle))
    head = encode_path(tokenizer, path)
    if order == "PSM":
        return [*head, prefix, *before, suffix, *after, end, *middle]
    return [*head, prefix, suffix, *after, end, *before, *middle]


def encode_path(tokenizer: Tokenizer, path: str | None) -> list[int]:
    """Return the ids of the line before a file that has its path."""
    return [] if path is None else encode_text(tokenizer, f"{path}\n")


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text.

    Raises:
        GemwrightError: It has half of a surrogate pair, which has no UTF-8.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise GemwrightError("the text has half of a surrogate pair; correct the file.")
    return tokenizer.encode(text)


def infill(
    tokenizer: Tokenizer, text: str, places: Sequence[int], rate: float, numbers: random.Random, path: str | None = None
) -> tuple[list[int], Order | None]:
    """Return the ids of a text that is reordered with a probability, and the order, half of the time each.

    Args:
        tokenizer: See `encode`.
        text: The text.
        places: Where it may be cut, ascending.
        rate: The probability.
        numbers: The random numbers, of which at most four are taken.
        path: See `encode`.

    Raises:
        GemwrightError: See `encode`.
    """
    if not text or numbers.random() >= rate:
        return [*encode_path(tokenizer, path), *encode_text(tokenizer, text)], None
    order: Order = "SPM" if numbers.random() < SPM_SHARE else "PSM"
    return encode(tokenizer, cut(text, places, numbers), order, path), order


def places_within(places: Sequence[int], start: int, stop: int) -> list[int]:
    """Return the places in a part of a text, counted from its start, its two ends among them."""
    inside = places[bisect.bisect_right(places, start) : bisect.bisect_left(places, stop)]
    return [0, *(place - start for place in inside), stop - start] if stop > start else [0]
