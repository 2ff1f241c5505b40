"""Records of every kind, as documents with the tokens that are learned."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemwright.data.records import KINDS
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
    r"not recognized \(it has a\\ud800\)": '{"a\\ud800": "b"}',
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
    assert "Without a token to learn and left out: 1 of 2 records (" in dataset.notes[0]
    assert "data.jsonl, line 1" in dataset.notes[0]
    assert dataset.statistics.records == 2
    assert len(dataset.documents) == 1
    assert dataset.place(int(dataset.documents.records[0])).number == 2


def test_empty_data_are_refused(write: Any, read: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        read(write())


DELETED = {"role": "assistant", "text": "gone", "rank": 0, "deleted": True}
TREE = {
    "message_tree_id": "1",
    "prompt": {
        "role": "prompter",
        "text": "Hi",
        "replies": [
            {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
            {
                "role": "assistant",
                "text": "the",
                "rank": 0,
                "replies": [
                    {
                        "role": "prompter",
                        "text": "and",
                        "replies": [
                            {
                                "role": "assistant",
                                "text": "end",
                                "rank": 0,
                                "replies": [{"role": "prompter", "text": "x", "replies": [DELETED]}],
                            }
                        ],
                    },
                    {"role": "prompter", "text": "no answer", "replies": []},
                    {
                        "role": "prompter",
                        "text": "in",
                        "replies": [
                            DELETED,
                            {"role": "assistant", "text": "here", "rank": None},
                        ],
                    },
                ],
            },
        ],
    },
}


def test_a_message_tree_gives_the_best_ranked_answers_once(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    dataset = read(write(TREE))
    first, second = (spans(tokenizer, document) for document in dataset.documents)
    again = "\n<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
    assert first[0] == (PROMPT.format("Hi"), False)
    assert first[1:] == [("the<end_of_turn>", True), (again.format("and"), False), ("end<end_of_turn>", True)]
    before = PROMPT.format("Hi") + "the<end_of_turn>" + again.format("in")
    assert second == [(before, False), ("here<end_of_turn>", True)]


def test_a_message_of_weight_0_is_not_learned(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    turns = [("user", "Hi", None), ("assistant", "the", 0), ("user", "and", None), ("assistant", "end", 1)]
    messages = [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]
    [document] = read(write({"messages": messages})).documents
    assert [text for text, learned in spans(tokenizer, document) if learned] == ["end<end_of_turn>"]


def test_a_system_text_comes_first(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    talk = RECORDS["messages"][0]["messages"]
    records: list[Any] = [
        {"messages": talk},
        {"prompt": talk[:1], "completion": talk[1:]},
        {"instruction": "Hi there", "output": "the end"},
        {"question": "Hi there", "response": "the end"},
        {"conversations": [{"from": "user", "value": "Hi there"}, {"from": "assistant", "value": "the end"}]},
    ]
    for record in records:
        [document] = read(write({"system": "Be in", **record})).documents
        assert spans(tokenizer, document) == RECORDS["system"][1]
    [document] = read(write({"system": "in", "prompt": "the", "response": "hen"})).documents
    assert spans(tokenizer, document) == [("<bos>in\n\nthe", False), ("hen<eos>", True)]


def test_completions_of_messages_leave_the_answers_of_the_prompt_out(
    write: Any, read: Any, tokenizer: Tokenizer
) -> None:
    talk = RECORDS["several turns"][0]["messages"]
    [document] = read(write({"prompt": talk[:3], "completion": talk[3:]})).documents
    assert [text for text, learned in spans(tokenizer, document) if learned] == ["end<end_of_turn>"]


def test_files_of_different_kinds_may_all_be_conversations(write: Any, read: Any) -> None:
    first = write({"question": "Hi", "answer": "the"}, name="a.jsonl")
    second = write({"instruction": "Hi", "output": "the"}, name="b.jsonl")
    dataset = read([first, second])
    assert dataset.kind == "question and answer, instruction"
    assert [str(dataset.place(index)) for index in range(2)] == [f"{first}, line 1", f"{second}, line 1"]
    third = write({"text": "the"}, name="c.jsonl")
    with pytest.raises(DataError, match=r"mixed kinds: question and answer \(.*a\.jsonl, .*\) and text \(.*c\.jsonl"):
        read([first, third])


def test_records_that_cannot_be_as_asked_are_refused(write: Any, read: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: a text cannot be a conversation"):
        read(write({"text": "the"}), chat=True)
    with pytest.raises(DataError, match=r"line 1: the record is a conversation"):
        read(write({"question": "the", "answer": "hen"}), chat=False)


def test_a_refusal_of_the_template_names_the_record(write: Any, read: Any) -> None:
    talk = [{"role": "assistant", "content": "the"}, {"role": "assistant", "content": "the"}]
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: message 3 is of the model and does not follow"):
        read(write(RECORDS["messages"][0], {"messages": [{"role": "user", "content": "a"}, *talk]}))
    with pytest.raises(DataError, match="line 1: the conversation begins with the model"):
        read(write({"messages": talk[:1]}))


def test_a_table_without_names_says_where_they_belong(write: Any, read: Any) -> None:
    with pytest.raises(DataError, match=r"it has the, hen, the names in the first line\)"):
        read(write("the,hen", "a,b", name="data.csv"))


CALL = {"function": {"name": "weather", "arguments": {}}}
LOST = {
    "leaves out the calls of functions of message 2": {"tool_calls": [CALL]},
    "leaves out the content of message 2": {"content": "", "reasoning_content": "hm"},
    '"tool_calls" must be a list': {"content": "the", "tool_calls": 5},
    '"function_call" is not supported': {"content": "the", "function_call": CALL["function"]},
}


@pytest.mark.parametrize("problem", LOST)
def test_answers_that_the_template_leaves_out_are_refused(problem: str, write: Any, read: Any) -> None:
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", **LOST[problem]}]
    with pytest.raises(DataError, match=rf"line 1: .*{problem}"):
        read(write({"messages": talk}))


def test_long_documents_are_split_without_loss(write: Any, read: Any, tokenizer: Tokenizer) -> None:
    text = "abcdefgh" * 5
    dataset = read(write({"text": text}), max_length=8)
    parts = list(dataset.documents)
    assert all(part.ids[0] == tokenizer.bos_id and len(part.ids) <= 9 for part in parts)
    assert np.concatenate([part.ids[1:] for part in parts]).tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    assert all(part.learned[1:].all() and not part.learned[0] for part in parts)
    assert "Longer than 9 tokens and split: 1 of 1 records (" in dataset.notes[0]


def test_the_mask_of_a_split_document_is_kept(write: Any, read: Any) -> None:
    record = {"prompt": "a " * 20, "completion": "bcdefghij" * 3}
    [whole] = read(write(record)).documents
    parts = list(read(write(record), max_length=8).documents)
    assert np.concatenate([part.ids[part.learned] for part in parts]).tolist() == whole.ids[whole.learned].tolist()
    assert all(part.learned.any() for part in parts)


def test_long_documents_are_dropped_or_refused(write: Any, read: Any) -> None:
    path = write({"text": "abc"}, {"text": "abcdefgh" * 5})
    dataset = read(path, max_length=8, too_long="drop")
    assert len(dataset.documents) == 1
    assert "Longer than 9 tokens and dropped: 1 of 2 records (" in dataset.notes[0]
    with pytest.raises(DataError, match=r"line 2: the document has 42 tokens, and 9 fit"):
        read(path, max_length=8, too_long="refuse")
    with pytest.raises(DataError, match="All documents are longer"):
        read(write({"text": "abcdefgh" * 5}), max_length=8, too_long="drop")


def test_a_document_that_just_fits_is_whole(write: Any, read: Any) -> None:
    """Of 9 ids 8 are inputs: the last is only predicted."""
    assert len(read(write({"text": "abcdefg"}), max_length=8, too_long="refuse").documents) == 1


def test_records_of_a_batch_are_named(write: Any, read: Any) -> None:
    path = write(*({"text": "the" * size} for size in range(1, 12)))
    dataset = read(path)
    assert dataset.name_records(np.array([[3, -1], [1, 3]])) == f"{path}, line 2; {path}, line 4"
    assert dataset.name_records(np.arange(11)).endswith("line 8 and 3 more")


def test_the_fingerprint_follows_the_documents(write: Any, read: Any) -> None:
    first = read(write({"prompt": "the", "completion": "hen"}))
    assert read(write({"prompt": "the", "completion": "hen"})).fingerprint == first.fingerprint
    assert read(write({"prompt": "the", "completion": "hens"})).fingerprint != first.fingerprint
    assert read(write({"prompt": "the", "completion": "hen"}), tuned=True).fingerprint != first.fingerprint
    assert read(write({"prompt": "the", "completion": "hen", "x": 1})).digest != first.digest


@pytest.mark.parametrize("depth", [10, 40, 400, 900, 940, 960, 980])
def test_deep_values_raise_one_error(depth: int, write: Any, read: Any) -> None:
    value = "[" * depth + "]" * depth
    for field in (f'"content": {value}', f'"content": "a", "tool_calls": {value}'):
        with contextlib.suppress(DataError):
            read(write(f'{{"messages": [{{"role": "user", {field}}}, {{"role": "assistant", "content": "a"}}]}}'))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "the", "user", "assistant", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "replies", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = sorted({name for kind in KINDS for names in kind.required for name in names} | {"tools", "system", "input"})


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_records_of_other_types_raise_one_error(fields: Any, write: Any, read: Any) -> None:
    with contextlib.suppress(DataError):
        assert len(read(write(fields), tuned=True).documents) > 0
