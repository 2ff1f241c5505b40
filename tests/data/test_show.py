"""The display of documents."""

from typing import Any

from gemwright.data.show import MAX_SHOWN, show
from gemwright.text.tokenizer import Tokenizer


def test_learned_tokens_are_in_brackets(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    path = write({"question": "the hen", "answer": "an\x1b in"})
    assert list(show(read(path), tokenizer)) == [
        "question and answer (1 documents); tokens that are learned are in [brackets]",
        f"{path}, line 1: 24 tokens, 5 of them learned",
        "  <bos>|<start_of_turn>|u|s|er|\\n|",
        "  the| |he|n|<end_of_turn>|\\n|",
        "  <start_of_turn>|m|o|d|e|l|\\n|",
        "  [an][\\u001b][ ][in][<end_of_turn>]",
    ]


def test_long_documents_are_shown_in_part(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    path = write({"text": "a" * 450})
    last = list(show(read(path), tokenizer))[-1]
    assert last.endswith(f"[a] ... and {452 - MAX_SHOWN} more, {452 - MAX_SHOWN} of them learned")
