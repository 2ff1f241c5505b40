"""Where editors want a text to end."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemwright.serve.apis.llama_server.lines import LineLimit
from gemwright.serve.batching.request import Update

CODE = "x = 1\n    y = 2\n\n        z\n  end\nafter"


def cut(limit: LineLimit, parts: list[str]) -> tuple[str, str | None]:
    """Return the text that a client gets, and the reason of its end."""
    text = ""
    for index, part in enumerate(parts):
        update = limit.cut(Update(part, finish_reason="stop" if index == len(parts) - 1 else None))
        text += update.text
        if update.finish_reason:
            return text, update.finish_reason
    raise AssertionError("the text has no end")


@pytest.mark.parametrize(
    ("indent", "expected"),
    [(0, (CODE, "stop")), (2, ("x = 1\n    y = 2\n\n        z\n  end", "length")), (4, (CODE[:-12], "length"))],
)
def test_a_line_with_less_indentation_ends_the_text(indent: int, expected: tuple[str, str]) -> None:
    assert cut(LineLimit(indent, 0.0), [CODE]) == expected


@given(st.lists(st.integers(1, len(CODE) - 1), max_size=8), st.integers(0, 10))
def test_the_end_does_not_depend_on_the_parts_of_a_stream(cuts: list[int], indent: int) -> None:
    bounds = [0, *sorted(cuts), len(CODE)]
    parts = [CODE[start:stop] for start, stop in pairwise(bounds)]
    assert cut(LineLimit(indent, 0.0), parts) == cut(LineLimit(indent, 0.0), [CODE])


def test_whitespace_at_the_end_is_kept() -> None:
    assert cut(LineLimit(4, 0.0), ["a\n", "  "]) == ("a\n  ", "stop")


def test_a_time_ends_a_text_once_it_has_a_second_line() -> None:
    limit = LineLimit(0, 0.01)
    assert limit.cut(Update("a")).finish_reason is None
    time.sleep(0.02)
    assert limit.cut(Update("b")).finish_reason is None
    assert limit.cut(Update("c\nd")).finish_reason == "length"
