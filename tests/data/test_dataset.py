"""Records of every kind, as documents with the tokens that are learned."""

from typing import Any

import numpy as np
import pytest

from gemwright.errors import DataError
from gemwright.text.tokenizer import Tokenizer

PROMPT = "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


def spans(tokenizer: Tokenizer, document: Any) -> list[tuple[str, bool]]:
    """Return the parts of a document, control tokens by name, and whether each is learned."""
    edges = np.flatnonzero(np.diff(document.learned)) + 1
    parts = zip(np.split(document.ids, edges), np.split(document.learned, edges), strict=True)
    return [(tokenizer.decode(ids.tolist(), keep_control=True), bool(learned[0])) for ids, learned in parts]


ASKED = [(PROMPT.format("Hi there"), False), ("the end<end_of_turn>", True)]
RECORDS = {
    "text": ({"text": "the hen"}, [("<bos>", False), ("the hen<eos>", True)]),
    "prompt and completion": (
        {"prompt": "the ", "completion": "hen"},
        [("<bos>the ", False), ("hen<eos>", True)],
    ),
    "prompt and completion, messages": (
        {
            "prompt": [{"role": "user", "content": "Hi there"}],
            "completion": [{"role": "assistant", "content": "the end"}],
        },
        ASKED,
    ),
    "messages": (
        {"messages": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "the end"}]},
        ASKED,
    ),
    "system": (
        {
            "messages": [
                {"role": "system", "content": "Be in"},
                {"role": "user", "content": "Hi there"},
                {"role": "assistant", "content": "the end"},
            ]
        },
        [(PROMPT.format("Be in\n\nHi there"), False), ("the end<end_of_turn>", True)],
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "the end"}]},
        ASKED,
    ),
    "instruction": ({"instruction": "Hi there", "output": "the end"}, ASKED),
    "instruction with input": (
        {"instruction": "Hi", "input": "there", "output": "the end"},
        [(PROMPT.format("Hi\n\nthere"), False), ("the end<end_of_turn>", True)],
    ),
    "context and response": (
        {"instruction": "Hi there", "context": "", "response": "the end", "category": "x"},
        ASKED,
    ),
    "question and answer": ({"question": "Hi there", "answer": "the end"}, ASKED),
    "instances": ({"instruction": "Hi there", "instances": [{"input": "", "output": "the end"}]}, ASKED),
    "several turns": (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "the"},
                {"role": "user", "content": "and"},
                {"role": "model", "content": "end"},
            ]
        },
        [
            (PROMPT.format("Hi"), False),
            ("the<end_of_turn>", True),
            ("\n<start_of_turn>user\nand<end_of_turn>\n<start_of_turn>model\n", False),
            ("end<end_of_turn>", True),
        ],
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_answer_and_its_end_are_learned(name: str, write: Any, read: Any, tokenizer: Tokenizer) -> None:
    record, expected = RECORDS[name]
    dataset = read(write(record))
    assert [spans(tokenizer, document) for document in dataset.documents] == [expected]
    assert dataset.kind == name.partition(",")[0].partition(" with ")[0] or name in (
        "system",
        "several turns",
        "context and response",
    )


def test_tuned_models_read_prompts_as_conversations(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    path = write({"prompt": "Hi there", "completion": "the end"})
    assert spans(tokenizer, read(path, tuned=True).documents[0]) == ASKED
    assert spans(tokenizer, read(path, chat=True).documents[0]) == ASKED
    assert read(path, tuned=True, chat=False).form == "prompted"


BAD = {
    "this is not valid JSON": '{"text": "the"',
    "a record is a JSON object": '"the"',
    "must be a string": '{"text": 3}',
    "half of a surrogate pair": '{"text": "\\ud800"}',
    "a NUL character": '{"text": "a\\u0000"}',
    "nested too deeply": '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "not recognized": '{"chosen": "a", "rejected": "b"}',
    "mixed kinds": '{"question": "the", "answer": "hen"}',
}


@pytest.mark.parametrize("problem", BAD)
def test_a_malformed_record_is_named(problem: str, write: Any, read: Any) -> None:
    with pytest.raises(DataError, match=problem) as raised:
        read(write({"text": "the hen"}, BAD[problem]))
    assert "data.jsonl, line 2" in str(raised.value)


def test_a_set_without_learned_tokens_is_refused(write: Any, read: Any) -> None:
    with pytest.raises(DataError, match=r"No record has a token to learn .*line 1; .*line 2"):
        read(write({"prompt": "the", "completion": ""}, {"prompt": "the", "completion": " "}))


def test_a_record_without_learned_tokens_is_counted_and_named(write: Any, read: Any) -> None:
    dataset = read(write({"prompt": "the", "completion": ""}, {"prompt": "the", "completion": "hen"}))
    assert "1 have no token to learn" in dataset.notes[0]
    assert "data.jsonl, line 1" in dataset.notes[0]
    assert dataset.statistics.records == 2
    assert len(dataset.documents) == 1
    assert dataset.place(int(dataset.documents.records[0])).number == 2


def test_empty_data_are_refused(write: Any, read: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        read(write())
