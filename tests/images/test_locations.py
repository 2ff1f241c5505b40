"""Locations against a second parser that reads character by character, and back to text."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemwright.errors import GemwrightError
from gemwright.images.locations import Box, Found, parse, render

CAT = "<loc0102><loc0051><loc0920><loc0767>"
DOG = "<loc0000><loc1023><loc0500><loc0000>"
SEG = "".join(f"<seg{code:03d}>" for code in range(112, 128))
CAT_BOX = Box(102 / 1023, 51 / 1023, 920 / 1023, 767 / 1023)
DOG_BOX = Box(0.0, 0.0, 500 / 1023, 1.0)
CODES = tuple(range(112, 128))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{CAT} cat", [Found("cat", CAT_BOX)]),
        (f"{CAT}{SEG} cat ; {DOG} big  dog", [Found("cat", CAT_BOX, CODES), Found("big dog", DOG_BOX)]),
        (f"{CAT}cat;{DOG}dog", [Found("cat", CAT_BOX), Found("dog", DOG_BOX)]),
        (f"{CAT} cat {DOG} dog\n", [Found("cat", CAT_BOX), Found("dog", DOG_BOX)]),
        (f"cat {CAT} dog {DOG}", [Found("cat", CAT_BOX), Found("dog", DOG_BOX)]),
        (f"cat {CAT} ; {DOG} dog", [Found("cat", CAT_BOX), Found("dog", DOG_BOX)]),
        (f"I see {CAT} cat", [Found("cat", CAT_BOX)]),
        (CAT, [Found("", CAT_BOX)]),
        (f"{CAT}{DOG} dog", [Found("", CAT_BOX), Found("dog", DOG_BOX)]),
        (CAT.replace("><", "> \n<") + " cat", [Found("cat", CAT_BOX)]),
        (f"{CAT}<loc0001><loc0002> cat", [Found("cat", CAT_BOX)]),
        (f"{CAT} cat <loc0001><loc0002><loc0003> dog", [Found("cat", CAT_BOX)]),
        (f"<loc0001><loc0002><loc0003> dog ; {CAT} cat", [Found("cat", CAT_BOX)]),
        (f"{CAT}{SEG}<seg000> cat", [Found("cat", CAT_BOX)]),
        (f"{CAT}{SEG[:-8]} cat", [Found("cat", CAT_BOX)]),
        (f"{SEG}{CAT} cat", [Found("cat", CAT_BOX)]),
        (f"<loc9999>{CAT}<loc1024>{SEG}<seg128> c<loc5>at", [Found("c at", CAT_BOX, CODES)]),
        (f"<loc{'9' * 5000}>{CAT} <loc٠٠٠١>", [Found("<loc٠٠٠١>", CAT_BOX)]),
        ("There is no cat ; <loc0001> ;; <seg001>", []),
        ("", []),
    ],
)
def test_model_output_is_parsed(text: str, expected: list[Found]):
    assert parse(text) == expected


WORDS = ["cat", "x", "<loc", ">", "<loc1024>", "<loc12>", "<seg128>", "<loc>", " ", "\n", ";", " ; "]
SOUP = st.lists(
    st.one_of(
        st.integers(0, 1023).map(lambda n: f"<loc{n:04d}>"),
        st.just(CAT),
        st.just(CAT + SEG),
        st.integers(0, 127).map(lambda n: f"<seg{n:03d}>"),
        st.sampled_from(WORDS),
    ),
    max_size=20,
)


@settings(max_examples=400, deadline=None)
@given(SOUP)
@example([CAT, "cat", SEG])
def test_any_text_is_parsed_as_by_the_slow_parser(words: list[str]):
    text = "".join(words)
    assert [(f.label, f.box, f.mask_codes) for f in parse(text)] == slow_parse(text)


def slow_parse(text: str) -> list[tuple[str, Box, tuple[int, ...] | None]]:
    """Apply the same rules without regular expressions: collect marks, then walk over them."""
    marks: list[tuple[str, int | str]] = []
    at = 0
    while at < len(text):
        kind, digits = text[at + 1 : at + 4], ""
        if text[at] == "<" and kind in ("loc", "seg"):
            end = at + 4
            while end < len(text) and text[end] in "0123456789":
                digits, end = digits + text[end], end + 1
            if end < len(text) and text[end] == ">":
                size, limit = (4, 1024) if kind == "loc" else (3, 128)
                if len(digits) == size and int(digits) < limit:
                    marks.append((kind, int(digits)))
                else:
                    marks.append(("word", " "))
                at = end + 1
                continue
        marks.append(("end" if text[at] == ";" else "word", text[at]))
        at += 1
    found: list[tuple[str, Box, tuple[int, ...] | None]] = []
    segment: list[tuple[str, int | str]] = []
    for mark in [*marks, ("end", ";")]:
        if mark[0] != "end":
            segment.append(mark)
            continue
        found += slow_parse_segment(segment)
        segment = []
    return found


def slow_parse_segment(marks: list[tuple[str, int | str]]) -> list[tuple[str, Box, tuple[int, ...] | None]]:
    texts: list[list[str]] = [[""]]  # the phrases before each box, and after the last
    boxes: list[tuple[list[int], list[int]]] = []
    at = 0
    while at < len(marks):
        locs, after = slow_parse_run(marks, at, "loc", 4)
        if len(locs) == 4:
            segs, at = slow_parse_run(marks, after, "seg", len(marks))
            boxes.append((locs, segs))
            texts.append([""])
        else:
            kind, value = marks[at]
            if kind == "word":
                texts[-1][-1] += str(value)
            else:
                texts[-1].append("")
            at += 1
    phrases = [[" ".join(t.split()) for t in phrases if t.strip()] for phrases in texts]
    before = phrases[0] != [] and phrases[-1] == []
    result: list[tuple[str, Box, tuple[int, ...] | None]] = []
    for index, (locs, segs) in enumerate(boxes):
        candidates = phrases[index] if before else phrases[index + 1]
        label = (candidates[-1] if before else candidates[0]) if candidates else ""
        y0, x0, y1, x1 = (n / 1023 for n in locs)
        box = Box(min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1))
        result.append((label, box, tuple(segs) if len(segs) == 16 else None))
    return result


def slow_parse_run(marks: list[tuple[str, int | str]], at: int, kind: str, most: int) -> tuple[list[int], int]:
    """Return up to `most` tags of a kind with only spaces between them, and the position after them."""
    run: list[int] = []
    while at < len(marks) and len(run) < most:
        mark, value = marks[at]
        if mark == kind:
            run.append(int(value))
        elif mark != "word" or str(value).strip():
            break
        at += 1
    return run, at


LABELS = st.text(max_size=20).map(lambda text: " ".join(text.replace(";", "").split())).filter(lambda t: "<" not in t)
BINS = st.integers(0, 1023)
CODE_LISTS = st.none() | st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple)


@st.composite
def objects(draw: st.DrawFn) -> Found:
    y, x = sorted([draw(BINS), draw(BINS)]), sorted([draw(BINS), draw(BINS)])
    box = Box(y[0] / 1023, x[0] / 1023, y[1] / 1023, x[1] / 1023)
    return Found(draw(LABELS), box, draw(CODE_LISTS))


@settings(max_examples=200, deadline=None)
@given(st.lists(objects(), max_size=5))
def test_rendered_objects_are_parsed_back(found: list[Found]):
    assert parse(" ; ".join(render(item) for item in found)) == found


def test_render_rounds_and_clips():
    box = Box(-0.5, 0.5, 0.9999, 7.0)
    assert render(Found("a cat", box, tuple(range(16)))) == (
        "<loc0000><loc0512><loc1023><loc1023>" + "".join(f"<seg{n:03d}>" for n in range(16)) + " a cat"
    )
    assert render(Found("", Box(0.0, 0.25, 0.5, 0.75))) == "<loc0000><loc0256><loc0512><loc0767>"


@pytest.mark.parametrize(
    "found",
    [
        Found("a;b", CAT_BOX),
        Found("see <loc0001>", CAT_BOX),
        Found("cat", CAT_BOX, (1,) * 15),
        Found("cat", CAT_BOX, (128,) * 16),
        Found("cat", CAT_BOX, (-1,) * 16),
    ],
)
def test_ambiguous_objects_are_not_rendered(found: Found):
    with pytest.raises(GemwrightError):
        render(found)


def test_pixels():
    assert CAT_BOX.pixels(1023, 2046) == (102, 102, 920, 1534)
    assert DOG_BOX.pixels(100, 7) == (0, 0, 48, 7)  # 500 / 1023 * 100 = 48.9, truncated
    assert Box(-1.0, -1.0, 9.0, 9.0).pixels(3, 4) == (0, 0, 3, 4)
    assert Box(0.5, 0.5, 0.5, 0.5).pixels(10, 10) == (5, 5, 5, 5)


def test_as_dict_is_json():
    found = parse(f"{CAT}{SEG} cat ; {DOG}")
    assert json.loads(json.dumps([item.as_dict() for item in found])) == [
        {
            "label": "cat",
            "box": {"y_min": 102 / 1023, "x_min": 51 / 1023, "y_max": 920 / 1023, "x_max": 767 / 1023},
            "mask_codes": list(CODES),
        },
        {"label": "", "box": {"y_min": 0.0, "x_min": 0.0, "y_max": 500 / 1023, "x_max": 1.0}, "mask_codes": None},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<loc0001>" * 50_000 + "!",
        "<seg001>" * 50_000,
        "<loc" * 100_000,
        "<loc" + "1" * 400_000,
        ("<loc0001>" + " " * 1000) * 400,
        "<loc0001><loc0001><loc0001>" + " " * 400_000 + "!",
        "<loc0001><loc0001><loc0001> x " * 15_000,
        CAT + ("<seg001>" + " " * 100) * 4_000 + "!",
        "; " * 50_000,
    ],
)
def test_time_is_linear(text: str):
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 5  # a quadratic parser needs minutes for these 100,000 to 400,000 characters
