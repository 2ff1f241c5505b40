"""Pairs of answers of every form, as documents with what is learned, and their batches."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.data import Dataset
from gemwright.data.dataset import Documents
from gemwright.data.packing import pack
from gemwright.data.preferences import open_preferences
from gemwright.errors import DataError, GemwrightError
from gemwright.text.tokenizer import Tokenizer
from tests.data.test_dataset import PROMPT, spans

ASKED, ANSWERS = {"role": "user", "content": "Hi there"}, ("the end", "the hen")
CHAT = [[(PROMPT.format("Hi there"), False), (f"{answer}<end_of_turn>", True)] for answer in ANSWERS]
TEXT = [[("<bos>Hi there", False), (f" {answer}<eos>", True)] for answer in ANSWERS]
TALK = "\n\nHuman: Hi there\n\nAssistant: "


def say(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


CHOSEN, REJECTED = ANSWERS
RECORDS: dict[str, tuple[dict[str, Any], Any]] = {
    "texts": ({"prompt": "Hi there", "chosen": f" {CHOSEN}", "rejected": f" {REJECTED}"}, TEXT),
    "texts that begin alike": ({"chosen": f"Hi there {CHOSEN}", "rejected": f"Hi there {REJECTED}"}, None),
    "messages": ({"prompt": [ASKED], "chosen": [say(CHOSEN)], "rejected": [say(REJECTED)]}, CHAT),
    "messages that begin alike": ({"chosen": [ASKED, say(CHOSEN)], "rejected": [ASKED, say(REJECTED)]}, CHAT),
    "prompt twice": (
        {"prompt": "Hi there", "chosen": [ASKED, say(CHOSEN)], "rejected": [ASKED, say(REJECTED)]},
        CHAT,
    ),
    "text and messages": ({"prompt": "Hi there", "chosen": [say(CHOSEN)], "rejected": [say(REJECTED)]}, CHAT),
    "messages and texts": ({"prompt": [ASKED], "chosen": CHOSEN, "rejected": REJECTED}, CHAT),
    "dialogues": ({"chosen": f"{TALK}{CHOSEN}", "rejected": f"{TALK}{REJECTED}"}, CHAT),
    "dialogue as prompt": ({"prompt": TALK, "chosen": CHOSEN, "rejected": REJECTED}, CHAT),
    "turns of one speaker": (
        {"chosen": f"\n\nHuman: Hi{TALK}{CHOSEN}", "rejected": f"\n\nHuman: Hi{TALK}{REJECTED}"},
        [[(PROMPT.format("Hi\n\nHi there"), False), answer[1]] for answer in CHAT],
    ),
}


@pytest.fixture
def read(tokenizer: Tokenizer, template: Any) -> Callable[..., Dataset]:
    def read_pairs(paths: Any, max_length: int = 512, **options: Any) -> Dataset:
        return open_preferences(paths, tokenizer, template, max_length=max_length, **options)

    return read_pairs


@pytest.mark.parametrize("name", RECORDS)
def test_every_form_gives_a_chosen_and_a_rejected_document(name: str, write: Any, read: Any, tokenizer: Tokenizer):
    record, expected = RECORDS[name]
    data = read(write(record))
    assert data.group == 2
    found = [spans(tokenizer, document) for document in data.documents]
    if expected is None:  # the shared beginning ends with a word, before its space
        texts = ["".join(text for text, _ in document) for document in found]
        assert texts == [f"<bos>Hi there {answer}<eos>" for answer in ANSWERS]
        assert [document[0] for document in found] == [("<bos>Hi there the", False)] * 2
    else:
        assert found == expected


def test_a_prompt_is_a_conversation_if_asked(write: Any, read: Any, tokenizer: Tokenizer):
    file = write({"prompt": "Hi there", "chosen": CHOSEN, "rejected": REJECTED})
    for options in ({"chat": True}, {"tuned": True}):
        assert [spans(tokenizer, document) for document in read(file, **options).documents] == CHAT


def test_a_scored_answer_is_read_to_its_last_token(write: Any, read: Any):
    file = write(RECORDS["messages"][0])
    plain, scored = read(file).documents, read(file, scored=True).documents
    for one, other in zip(plain, scored, strict=True):
        assert other.ids.tolist() == [*one.ids.tolist(), 0]
        assert np.flatnonzero(other.learned).tolist() == [len(one.ids)]


def test_what_is_left_out_is_said(write: Any, read: Any):
    long = {"prompt": "Hi", "chosen": "the " * 40, "rejected": "hen " * 40}
    records = [
        {"prompt": "Hi", "chosen": "the hen", "rejected": "the end"},
        {"prompt": "Hi", "chosen": "the hen", "rejected": "the hen"},
        {"prompt": "Hi", "chosen": " ", "rejected": "the hen"},
        long,
    ]
    file = write(*records)
    data = read(file, 40)
    assert len(data.documents) == 2
    assert set(data.documents.records.tolist()) == {0}
    notes = " ".join(data.notes)
    assert f"Without an answer and left out: 1 of 4 pairs ({file}, line 3)." in notes
    assert f"Chosen and rejected are equal and left out: 1 of 4 pairs ({file}, line 2)." in notes
    assert f"Longer than 40 tokens together and left out: 1 of 4 pairs ({file}, line 4)." in notes
    with pytest.raises(DataError, match=r"No pair is left .* are equal and left out: 1 of 2"):
        read(write(records[1], long, name="none.jsonl"), 40)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "a", "chosen": "b"}, '"rejected" is missing'),
        ({"text": "a"}, '"chosen" is missing'),
        ({"prompt": "a", "chosen": "b", "rejected": [say("c")]}, "must both be texts, or both lists"),
        ({"prompt": "a", "chosen": 1, "rejected": 2}, "must be a text or a list of messages, not int"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, "must be texts or lists of messages"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, '"prompt" must be a string'),
        ({"prompt": [ASKED], "chosen": [{"role": "x", "content": "b"}], "rejected": [say("c")]}, "role"),
        ({"chosen": [], "rejected": []}, "No pair is left|empty|message"),
        ({"prompt": "a", "chosen": "b\0", "rejected": "c"}, "NUL"),
    ],
)
def test_records_that_are_no_pairs_are_refused(record: Any, problem: str, write: Any, read: Any):
    with pytest.raises(GemwrightError, match=problem) as caught:
        read(write(record))
    assert "line 1" in str(caught.value)


def test_texts_and_conversations_are_not_mixed(write: Any, read: Any):
    with pytest.raises(DataError, match=r"mixed kinds: pairs of texts .* and pairs of conversations"):
        read(write(RECORDS["texts"][0], RECORDS["messages"][0]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12)), min_size=1, max_size=12),
    st.sampled_from(["best-fit", "first-fit", "none"]),
    st.integers(0, 3),
)
def test_pairs_stay_together_in_a_row(pairs: Any, packing: Any, seed: int):
    lengths = np.array(pairs).reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = int(offsets[-1])
    documents = Documents(
        np.arange(count, dtype=np.int32), np.ones(count, bool), offsets, np.repeat(np.arange(len(pairs)), 2)
    )
    rows = pack(documents, 24, packing, seed, 2)
    wanted = {(int(start), int(stop) - 1) for start, stop in itertools.pairwise(offsets)}
    found = [row for index in range(len(rows)) for row in rows[index]]
    assert sorted(found) == sorted(wanted)
    for index in range(len(rows)):
        row = rows[index]
        assert len(row) % 2 == 0
        assert sum(stop - start for start, stop in row) <= 24
        for (_, stop), (start, _) in zip(row[::2], row[1::2], strict=True):
            assert start == stop + 1  # the rejected answer follows its chosen one
        assert all(documents.record_at(start) * 2 == offsets.tolist().index(start) for start, _ in row[::2])


def test_pairs_are_not_cut():
    documents = Documents(np.arange(20, dtype=np.int32), np.ones(20, bool), np.array([0, 10, 20]), np.zeros(2, int))
    with pytest.raises(GemwrightError, match="concatenate cuts pairs"):
        pack(documents, 30, "concatenate", 0, 2)
    with pytest.raises(DataError, match="A pair of answers has 18 tokens, and 17 fit"):
        pack(documents, 17, "best-fit", 0, 2)
