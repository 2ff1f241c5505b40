import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import GemwrightError
from gemwright.text.stop import StopStrings, find_stop_ids
from gemwright.text.tokenizer import Tokenizer

TEXT = st.text("ab\n", max_size=30)
STRINGS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def cut_at_stop(strings: list[str], text: str) -> tuple[str, bool]:
    starts = [text.index(string) for string in strings if string in text]
    return (text[: min(starts)], True) if starts else (text, False)


@settings(deadline=None)
@given(STRINGS, st.lists(TEXT, max_size=10))
def test_equals_cutting_the_whole_text(strings: list[str], pushes: list[str]) -> None:
    matcher, shown = StopStrings(strings), ""
    for count, text in enumerate(pushes, 1):
        emitted, stopped = matcher.push(text)
        shown += emitted
        pushed = "".join(pushes[:count])
        expected, _ = cut_at_stop(strings, pushed)
        assert expected.startswith(shown), "part of a stop string was released"
        if stopped:
            assert shown == cut_at_stop(strings, "".join(pushes))[0]
        elif not cut_at_stop(strings, pushed)[1]:
            held = pushed[len(shown) :]
            assert not held or any(string.startswith(held) for string in strings), "more text was held back than needed"
    emitted, stopped = matcher.finish()
    assert (shown + emitted, stopped) == cut_at_stop(strings, "".join(pushes))


def test_stops_as_soon_as_a_stop_string_is_complete() -> None:
    matcher = StopStrings(["STOP"])
    assert matcher.push("go S") == ("go ", False)
    assert matcher.push("TO") == ("", False)
    assert matcher.push("P and more") == ("", True)
    assert matcher.push("still more") == ("", True)
    assert matcher.finish() == ("", True)


def test_a_stop_string_that_begins_another_counts_at_once() -> None:
    assert StopStrings(["ab", "abc"]).push("xab") == ("x", True)


def test_waits_while_an_earlier_start_may_still_complete() -> None:
    matcher = StopStrings(["abcd", "bc"])
    assert matcher.push("abc") == ("", False)
    assert matcher.push("d") == ("", True)
    matcher = StopStrings(["abcd", "bc"])
    matcher.push("abc")
    assert matcher.push("x") == ("a", True)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings([]).push("text") == ("text", False)


def test_an_empty_string_is_rejected() -> None:
    with pytest.raises(GemwrightError, match="empty"):
        StopStrings(["a", ""])


def test_a_stop_string_that_names_a_control_token_is_an_id(small_tokenizer: Tokenizer) -> None:
    strings = ["<end_of_turn>", "the", "<eos>\n", "", "<b>", "<none>"]
    expected = [small_tokenizer.id_of("<end_of_turn>"), small_tokenizer.eos_id]
    assert list(find_stop_ids(small_tokenizer, strings)) == expected
