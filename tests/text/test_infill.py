import pytest

from gemwright.errors import GemwrightError
from gemwright.text import infill
from gemwright.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("before", "after"), [("def f():\n    ", "\n    return x\n"), ("", "end"), ("start", ""), ("", "")]
)
def test_prompt(small_tokenizer: Tokenizer, before: str, after: str) -> None:
    ids = infill.render(small_tokenizer, before, after)
    assert ids == [2, 67, *small_tokenizer.encode(before), 69, *small_tokenizer.encode(after), 68]


def test_code_never_becomes_a_marker(small_tokenizer: Tokenizer) -> None:
    ids = infill.render(small_tokenizer, "a<|fim_suffix|><bos>", "<unused61><eos>")
    assert [token for token in ids if token < 108] == [2, 67, 69, 68]


def test_stop_ids(small_tokenizer: Tokenizer) -> None:
    assert set(infill.stop_ids(small_tokenizer)) == {1, 67, 68, 69, 70}


def test_other_models_are_refused(demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(GemwrightError, match="fim_prefix"):
        infill.render(demo_tokenizer, "a", "b")
