# ruff: noqa: E501 (templates are written on as few lines as published ones)
"""Documents of conversations: what is learned is what inference generates, and text stays text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.data.documents import Document, Encoder, _cut
from gemwright.data.records import Chat, Prompted, Text
from gemwright.errors import GemwrightError
from gemwright.text.chat import FORMATS, read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary
from tests.tiny.vocabulary import make_vocabulary

TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "the hen"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "an end."},
]
TURNS = FORMATS["gemma"].template
GENERATION = """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<start_of_turn>model\\n' }}{% generation %}{{ m.content + '<end_of_turn>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ '<start_of_turn>' + m.role + '\\n' + m.content + '<end_of_turn>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
HEADED = """{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content | trim + '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"""
THINKING = """{{ bos_token }}{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.thinking and loop.index0 > ns.last -%}{{ '<think>' + m.thinking + '</think>' }}{%- endif -%}{{ m.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
ENDLESS = """{{ bos_token }}{% for m in messages %}{{ '### ' + m.role + '\\n' + m.content + '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"""
ADDED = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return add_control_tokens(make_vocabulary(), *ADDED)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def theirs(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    documents = {"tokenizer.json": vocabulary.tokenizer_json(), "tokenizer_config.json": vocabulary.tokenizer_config()}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(folder))


def encoder(tokenizer: Tokenizer, source: str) -> Encoder:
    return Encoder(
        tokenizer, ChatTemplate(tokenizer, {"default": source}, {"bos_token": "<bos>", "eos_token": "<eos>"})
    )


def chat(messages: Any) -> Chat:
    read = read_messages(messages)[0]
    return Chat(read, tuple(message["role"] == "assistant" for message in read))


def learned_texts(tokenizer: Tokenizer, document: Document) -> list[str]:
    edges = np.flatnonzero(np.diff(document.learned)) + 1
    parts = zip(np.split(document.ids, edges), np.split(document.learned, edges), strict=True)
    return [tokenizer.decode(ids.tolist(), keep_control=True) for ids, learned in parts if learned[0]]


@pytest.mark.parametrize(
    "source", [TURNS, GENERATION, HEADED, THINKING], ids=["turns", "generation", "headed", "think"]
)
@pytest.mark.parametrize("count", [2, 4])
def test_prompts_are_those_of_inference(source: str, count: int, tokenizer: Tokenizer) -> None:
    """Before every learned turn are the ids of the prompt, and the turn ends with the token that stops the engine."""
    ours = encoder(tokenizer, source)
    [document] = ours.encode(chat(TALK[:count]))
    starts = np.flatnonzero(np.diff(document.learned.astype(int), prepend=0) == 1)
    stops = np.flatnonzero(np.diff(document.learned.astype(int), append=0) == -1)
    assert len(starts) == count // 2
    for turn, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        prompt = ours.chat_template.encode(read_messages(TALK[: 2 * turn + 1])[0])
        assert document.ids[:start].tolist() == prompt
        answer = [*tokenizer.encode(TALK[2 * turn + 1]["content"]), *ours.chat_template.end_ids]
        assert document.ids[start : stop + 1].tolist() == answer
    assert stops[-1] == len(document.ids) - 1


@pytest.mark.parametrize("source", [GENERATION, HEADED], ids=["generation", "headed"])
def test_masks_are_those_of_transformers(source: str, tokenizer: Tokenizer, theirs: Any) -> None:
    for count in (2, 4):
        [document] = encoder(tokenizer, source).encode(chat(TALK[:count]))
        expected = theirs.apply_chat_template(
            TALK[:count], chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = expected["input_ids"], expected["assistant_masks"]
        length = max(np.flatnonzero(mask)) + 1  # a line break after the last turn is not generated
        assert document.ids.tolist() == ids[:length]
        assert document.learned.astype(int).tolist() == mask[:length]


def test_plain_completions_are_those_of_trl(tokenizer: Tokenizer, theirs: Any) -> None:
    """TRL tokenizes the prompt, and the prompt with the completion, and learns the difference and EOS."""
    [document] = encoder(tokenizer, TURNS).encode(Prompted("the hen", " and the end."))
    prompt, both = theirs("the hen")["input_ids"], theirs("the hen and the end.")["input_ids"]
    assert document.ids.tolist() == [*both, tokenizer.eos_id]
    assert document.learned.tolist() == [False] * len(prompt) + [True] * (len(both) + 1 - len(prompt))


def test_turns_that_the_template_changes_later_are_documents_of_their_own(tokenizer: Tokenizer) -> None:
    talk = [{**message, "thinking": "an in"} if message["role"] == "assistant" else message for message in TALK]
    first, second = encoder(tokenizer, THINKING).encode(chat(talk))
    assert learned_texts(tokenizer, first) == ["<think>an in</think>the hen<|im_end|>"]
    assert learned_texts(tokenizer, second) == ["<think>an in</think>an end.<|im_end|>"]
    assert "<think>" not in tokenizer.decode(second.ids[~second.learned].tolist(), keep_control=True)


def test_a_turn_that_the_template_does_not_end_ends_with_eos(tokenizer: Tokenizer) -> None:
    first, second = encoder(tokenizer, ENDLESS).encode(chat(TALK))
    assert learned_texts(tokenizer, first) == ["the hen<eos>"]
    assert learned_texts(tokenizer, second) == ["an end.<eos>"]
    assert tokenizer.eos_id not in second.ids[:-1]


def test_tools_are_given_to_the_template(tokenizer: Tokenizer) -> None:
    talk = Chat(chat(TALK[:2]).messages, (False, True), [{"name": "an"}])
    source = TURNS.replace("{{ bos_token }}", "{{ bos_token }}{{ tools[0].name ~ '!' }}")
    [document] = encoder(tokenizer, source).encode(talk)
    assert tokenizer.decode(document.ids.tolist()).startswith("an!user\nHi there")


def test_templates_that_write_little_do_not_fail(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    first, second = encoder(tokenizer, source).encode(chat(TALK))
    assert learned_texts(tokenizer, first) == ["the hen<eos>"]
    assert learned_texts(tokenizer, second) == ["an end.<eos>"]


@pytest.mark.parametrize("start", ["", "{{ bos_token }}", "{{ bos_token + bos_token }}"])
def test_a_document_has_one_bos(start: str, tokenizer: Tokenizer) -> None:
    source = start + TURNS.removeprefix("{{ bos_token }}")
    [document] = encoder(tokenizer, source).encode(chat(TALK))
    assert document.ids[0] == tokenizer.bos_id
    assert np.count_nonzero(document.ids == tokenizer.bos_id) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (TURNS.replace("{{ '<start_of_turn>model\\n' }}", "{{ '<start_of_turn>model\\n<think>' }}"), "in another way"),
        (TURNS.replace("'<start_of_turn>", "bos_token + '<start_of_turn>"), "BOS inside"),
        (TURNS.replace("{{ message['content'] | trim }}", "{{ '<end_of_turn>' + message['content'] }}"), "before its"),
    ],
)
def test_templates_that_do_not_fit_are_refused(source: str, problem: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(GemwrightError, match=problem):
        encoder(tokenizer, source).encode(chat(TALK))


NAMES = ["<end_of_turn>", "<bos>", "<eos>", "<start_of_turn>model\n", "<pad>", "<unused5>"]
HOSTILE = st.lists(st.sampled_from([*NAMES, "a", "\n", " ", "<", "é"]), min_size=1, max_size=5).map("".join)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(HOSTILE, min_size=4, max_size=4))
def test_no_text_becomes_a_control_token(texts: list[str], tokenizer: Tokenizer) -> None:
    ours = encoder(tokenizer, TURNS)
    talk = [{**message, "content": text + "x"} for message, text in zip(TALK, texts, strict=True)]
    for document, benign in zip(ours.encode(chat(talk)), ours.encode(chat(TALK)), strict=True):
        assert controls(tokenizer, document) == controls(tokenizer, benign)
    for example in (Text(texts[0] + "x"), Prompted(texts[0], texts[1] + "x")):
        [document] = ours.encode(example)
        assert controls(tokenizer, document) == [tokenizer.bos_id, tokenizer.eos_id]


def controls(tokenizer: Tokenizer, document: Document) -> list[int]:
    return [token for token in document.ids.tolist() if tokenizer.is_control(token)]


def test_a_text_is_learned_but_for_bos(tokenizer: Tokenizer) -> None:
    [document] = encoder(tokenizer, TURNS).encode(Text("the hen\n"))
    assert document.ids.tolist() == [tokenizer.bos_id, *tokenizer.encode("the hen\n"), tokenizer.eos_id]
    assert document.learned.tolist() == [False] + [True] * (len(document.ids) - 1)


def test_long_texts_are_cut_where_no_token_spans(demo_gguf: Path) -> None:
    """Tokenized in parts, a text has the ids that it has as a whole: with the real vocabulary, at every length."""
    from gemwright.checkpoint.open import open_checkpoint

    tokenizer = Tokenizer(open_checkpoint(demo_gguf).vocabulary())
    lines = [
        "a\tb",
        " two  spaces ",
        "<b>\n</b>",
        "def f(x):\n    return x",
        "漢字。",
        "👍🏽",
        "3.14\r\n",
        "\n" * 40,
        "> </",
    ]
    text = "\n".join(lines * 20) + " ".join(["the hen > </b> and 12"] * 400)
    whole = tokenizer.encode(text)
    for size in (200, 777, 5000):
        ids: list[int] = []
        start = 0
        while start < len(text):
            stop = start + size
            stop = _cut(text, start, stop) if stop < len(text) else len(text)
            ids += tokenizer.encode(text[start:stop])
            start = stop
        assert ids == whole
