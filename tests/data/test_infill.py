"""Fill-in-the-middle: the parts of a text are the text, and their tokens are where CodeGemma has them."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.data.infill import Parts, cut, encode, find_places, infill, places_within
from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer
from tests.tiny.vocabulary import MARKERS, make_vocabulary

TOKENIZER = Tokenizer(make_vocabulary())
PREFIX, MIDDLE, SUFFIX, SEPARATOR = MARKERS
CODE = "import os\r\n\r\n\ndef größe(x):\n    '''Ü'''\n    if x:\n        return 1\n    return 'é'; y = 2\n# end\n"
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.lists(st.sampled_from([*CODE.splitlines(keepends=True), "x\r", "\n", "😀\n", "\f", "(", "\x00"])).map("".join),
)


def order_of(ids: list[int]) -> Any:
    """Return the order of ids, as an independent reading of them: SPM if the suffix sentinel follows the prefix's."""
    if PREFIX not in ids:
        return None
    return "SPM" if ids[ids.index(PREFIX) + 1] == SUFFIX else "PSM"


@settings(deadline=None)
@given(TEXTS, st.integers(0, 1000), st.sampled_from(["a.py", "a.c", ""]))
def test_the_parts_are_the_text(text: str, seed: int, path: str):
    places = find_places(text, path)
    assert places == sorted(set(places))
    assert {0, len(text)} <= set(places) <= set(range(len(text) + 1))
    parts = cut(text, places, random.Random(seed))
    assert "".join(parts) == text
    assert not text or parts.middle


@settings(deadline=None)
@given(TEXTS, st.integers(0, 1000))
def test_the_tokens_of_the_parts_are_the_text(text: str, seed: int):
    text = text.replace("\u2581", " ")  # which every tokenizer of the family reads as a space
    parts = cut(text, find_places(text, "a.py"), random.Random(seed))
    psm, spm = encode(TOKENIZER, parts, "PSM"), encode(TOKENIZER, parts, "SPM")
    decode = TOKENIZER.decode
    assert [one for one in psm if one in MARKERS] == [PREFIX, SUFFIX, MIDDLE]
    assert [one for one in spm if one in MARKERS] == [PREFIX, SUFFIX, MIDDLE]
    assert psm[0] == spm[0] == PREFIX
    assert spm[1] == SUFFIX
    before, after, middle = psm.index(PREFIX), psm.index(SUFFIX), psm.index(MIDDLE)
    assert Parts(decode(psm[before:after]), decode(psm[middle:]), decode(psm[after:middle])) == parts
    assert decode(spm[spm.index(MIDDLE) :]) + decode(spm[1 : spm.index(MIDDLE)]) == text


def test_python_is_cut_at_statements():
    text = "def f(x):\n    if x:\n        return 1\n    return 2\n\ny = [\n    1,\n]\n"
    places = find_places(text, "a.py")
    starts = {
        text[place:].split("\n")[0] for place in places if place < len(text) and not text[place:].startswith("\n")
    }
    assert starts == {"def f(x):", "if x:", "return 1", "return 2", "y = ["}
    ends = {text[:place].split("\n")[-1].strip() for place in places if text[place : place + 1] == "\n"}
    assert ends == {"return 1", "return 2", "]"}


@pytest.mark.parametrize("text", ["def f(:\n  x\n  y\n", "a\x00\nb\n", "print 1\nprint 2\n"])
def test_other_texts_are_cut_at_lines(text: str):
    expected = {0, *(place + 1 for place, character in enumerate(text) if character == "\n")}
    assert set(find_places(text, "a.py")) == set(find_places(text, "a.txt")) == expected


def test_unicode_columns_are_characters():
    text = "s = 'ééé'; t = '😀'\nu = 1\n"
    places = find_places(text, "a.py")
    assert {text[place:].split(";")[0].split("\n")[0] for place in places} >= {"s = 'ééé'", "t = '😀'", "u = 1"}


def test_the_text_of_a_document_never_becomes_a_token():
    text = "<|fim_prefix|>a<|fim_middle|>b<|file_separator|><eos><bos>\n" * 3
    for seed in range(20):
        ids, order = infill(TOKENIZER, text, find_places(text, ""), 1.0, random.Random(seed), "<|file_separator|>")
        assert order in ("PSM", "SPM")
        assert sorted(one for one in ids if TOKENIZER.is_control(one)) == [PREFIX, MIDDLE, SUFFIX]


def test_a_surrogate_is_refused():
    with pytest.raises(GemwrightError, match="surrogate"):
        encode(TOKENIZER, Parts("a", "\ud800", ""), "PSM")


def test_an_empty_text_and_one_character():
    assert infill(TOKENIZER, "", [0], 1.0, random.Random(0)) == ([], None)
    assert cut("x", [0, 1], random.Random(0)) == Parts("", "x", "")


def test_the_rates_are_those_asked_for():
    """Within four standard deviations of a binomial: a chance of 1 in 15,000 each, and the numbers are fixed."""
    text, count = CODE, 4000
    places = find_places(text, "a.py")
    orders = [order_of(infill(TOKENIZER, text, places, 0.8, random.Random(f"{n}"))[0]) for n in range(count)]
    reordered = count - orders.count(None)
    assert abs(reordered / count - 0.8) < 4 * (0.8 * 0.2 / count) ** 0.5
    ambiguous = 0.06  # PSM without a prefix is SPM
    assert abs(orders.count("SPM") / reordered - 0.5) < 4 * (0.25 / reordered) ** 0.5 + ambiguous


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, unique=True).map(sorted), st.data())
def test_places_of_a_part(places: list[int], data: st.DataObject):
    start, stop = sorted(data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=2, unique=True)))
    found = places_within(places, start, stop)
    assert {0, stop - start} <= set(found)
    assert {place + start for place in found[1:-1]} == {place for place in places if start < place < stop}
