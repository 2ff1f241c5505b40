# ruff: noqa: E501 (templates are written on as few lines as published ones)
"""Chat templates of checkpoints: ids equal to transformers', and no text of a conversation becomes a control token."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.chat_templates import read_special_tokens
from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.errors import GemwrightError
from gemwright.text.chat import read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary

ADDED = (
    "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_image>",
    "<end_of_image>", "<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|channel>", "<channel|>", '<|"|>', "[INST]",
    "[/INST]", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<think>", "</think>",
)  # fmt: skip
SYSTEM: Any = {"role": "system", "content": " Be brief.\n"}
TALK: list[Any] = [
    {"role": "user", "content": "  Hi <b>you</b>\n\n "},
    {"role": "assistant", "content": "Hello\n"},
    {"role": "user", "content": "And é 漢字?"},
]
PARTS: list[Any] = [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Return the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLS: list[Any] = [
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "n": 2}}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "rain"},
]
STYLES = {
    "turns, alternating": """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}
{%- for m in messages %}{% if (m.role == 'user') == (loop.index0 % 2 == 1) %}{{ raise_exception('order') }}{% endif %}
{{- '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' ~ m.content | trim ~ '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "turns with parts": """{{ bos_token }}
{%- set lead = '' -%}{%- set rest = messages -%}
{%- if messages[0].role == 'system' -%}{%- set rest = messages[1:] -%}
    {%- if messages[0].content is string -%}{%- set lead = messages[0].content + '\\n\\n' -%}
    {%- else -%}{%- set lead = messages[0].content[0].text + '\\n\\n' -%}{%- endif -%}
{%- endif -%}
{%- for m in rest -%}
    {{ '<start_of_turn>' + m.role | replace('assistant', 'model') + '\\n' + (lead if loop.first else '') }}
    {%- if m.content is string -%}{{ m.content | trim }}
    {%- else -%}{%- for p in m.content -%}
        {%- if p.type == 'image' -%}{{ '<start_of_image>' }}{%- elif p.type == 'text' -%}{{ p.text | trim }}{%- endif -%}
    {%- endfor -%}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}""",
    "system turn and tools": """
{%- macro quoted(x) -%}{%- if x is string -%}{{ '<|"|>' + x + '<|"|>' }}{%- elif x is mapping -%}{{ '{' }}
    {%- for key, value in x | dictsort -%}{{ key }}:{{ quoted(value) }}{{ ',' if not loop.last }}{%- endfor -%}{{ '}' }}
    {%- elif x is sequence -%}[{%- for y in x -%}{{ quoted(y) }}{%- endfor -%}]{%- else -%}{{ x }}{%- endif -%}{%- endmacro -%}
{%- macro answer(text) -%}{%- set ns = namespace(kept='') -%}{%- for part in text.split('<channel|>') -%}
    {%- set ns.kept = ns.kept + part.split('<|channel>')[0] -%}{%- endfor -%}{{ ns.kept | trim }}{%- endmacro -%}
{{ bos_token }}{%- set rest = messages -%}
{%- if tools or messages[0].role in ['system', 'developer'] -%}<|turn>system
{%- if messages[0].role in ['system', 'developer'] -%}{{ '\\n' + messages[0].content | trim }}{%- set rest = messages[1:] -%}{%- endif -%}
{%- for tool in tools or [] -%}<|tool>{{ tool.function.name }}{{ quoted(tool.function.parameters) }}<tool|>{%- endfor -%}
{{ '<turn|>\\n' }}{%- endif -%}
{%- for m in rest -%}
    {%- if m.role == 'tool' -%}{{ 'response:' ~ m.name ~ quoted(m.content) }}{%- continue -%}{%- endif -%}
    {{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {%- for call in m.tool_calls or [] -%}{{ 'call:' ~ call.function.name ~ quoted(call.function.arguments) }}{%- endfor -%}
    {%- if m.content is string -%}{{ answer(m.content) if m.role == 'assistant' else m.content | trim }}
    {%- elif m.content -%}{%- for p in m.content -%}{{ p.text | trim }}{%- endfor -%}{%- endif -%}
    {{ '<turn|>\\n' if not m.tool_calls }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}{{ '<|channel>thought\\n' if think }}{%- endif -%}""",
    "chatml": """{% for m in messages %}
{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "openchat": "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m.role.title() + ': ' + m.content + "
    "'<end_of_turn>' }}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    "headers": """{% set loop_messages = messages %}{% for m in loop_messages %}
{%- set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "inst": """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "alpaca": """{% for m in messages %}
{%- if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}
{%- elif m['role'] == 'user' %}### Instruction:
{{ m['content'] | trim }}

{% elif m['role'] == 'assistant' %}### Response:
{{ m['content'] }}{{ eos_token }}

{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}""",
    "assembled": """{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}""",
    "json tools": """{{ bos_token }}{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}{{ tools | tojson(indent=2) }}</tools>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content %}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}{{ {'name': c.function.name, 'x': c.function.arguments} | tojson }}
{% endfor %}{% generation %}<|im_end|>{% endgeneration %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "date": """{{ bos_token }}<|im_start|>system
{{ strftime_now('%Y') ~ ' ' ~ (language | default('en')) ~ ' %02d' % 7 }}<|im_end|>
{% for m in messages if m.role != 'none' %}{{ loop.index }}/{{ loop.length }} {{ [m.role, m.content] | join(': ') }}{% break %}{% endfor %}""",
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(small_vocabulary: Vocabulary) -> Vocabulary:
    return add_control_tokens(small_vocabulary, *ADDED)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def folder(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    documents = {"tokenizer.json": vocabulary.tokenizer_json(), "tokenizer_config.json": vocabulary.tokenizer_config()}
    for name, document in documents.items():
        (place / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def ours(tokenizer: Tokenizer, folder: Path) -> Any:
    special = read_special_tokens(folder)
    return functools.cache(lambda source: ChatTemplate(tokenizer, {"default": source}, special))


def encode(template: ChatTemplate, messages: Any, tools: Any = None, **variables: Any) -> list[int]:
    return template.encode(read_messages(messages)[0], tools, (), variables)


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_transformers(style: str, ours: Any, theirs: Any) -> None:
    compared = 0
    for messages, tools in (
        (TALK, None),
        (TALK[:1], None),
        ([SYSTEM, *TALK], None),
        (PARTS, None),
        (CALLS, TOOLS),
        ([SYSTEM, *CALLS], TOOLS),
        ([{**SYSTEM, "role": "developer"}, *TALK], None),
    ):
        for variables in ({}, {"think": True, "language": "fr"}):
            try:
                expected = theirs.apply_chat_template(
                    messages,
                    tools,
                    chat_template=STYLES[style],
                    add_generation_prompt=True,
                    return_dict=False,
                    **variables,
                )
            except Exception:  # the template does not support this conversation
                continue
            if messages is PARTS and style not in ("turns with parts", "system turn and tools"):
                continue  # it writes the parts as Python values, not their text
            if messages[0]["role"] == "developer" and "developer" not in STYLES[style]:
                continue  # it is read as a system message
            assert encode(ours(STYLES[style]), messages, tools, **variables) == expected
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    ("style", "end"),
    [
        ("turns, alternating", "<end_of_turn>"),
        ("turns with parts", "<end_of_turn>"),
        ("system turn and tools", "<turn|>"),
        ("chatml", "<|im_end|>"),
        ("openchat", "<end_of_turn>"),
        ("headers", "<|eot_id|>"),
        ("inst", "<eos>"),
        ("alpaca", "<eos>"),
        ("assembled", "<eos>"),
        ("json tools", "<|im_end|>"),
    ],
)
def test_the_end_of_an_answer_is_that_of_the_template(style: str, end: str, ours: Any, tokenizer: Tokenizer) -> None:
    assert ours(STYLES[style]).end_ids == (tokenizer.id_of(end),)


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if tokenizer.is_control(token)]


NAMES = ["<end_of_turn>", "<bos>", "<eos>", *ADDED]
FRAGMENT = st.sampled_from(
    [*NAMES, "<", "<|", "|>", ">", "end_of_turn", "end_of_turn>", "user|>", "[", "]", "INST]", "\n"]
)
HOSTILE = st.lists(FRAGMENT | st.text(max_size=3) | st.sampled_from(["\U000f0000", "\U00100000"]), max_size=4).map(
    "".join
)


def hostile_talk(texts: list[str]) -> list[Any]:
    system, user, answer, name, key, value, parts = texts
    call = {"id": value, "type": "function", "function": {"name": name, "arguments": {key: value}}}
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "text", "text": parts}, {"type": "text", "text": user}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": value, "name": name, "content": value},
    ]


@pytest.mark.parametrize("style", STYLES)
@settings(deadline=None, max_examples=int(os.environ.get("FUZZ", "300")) // 10)
@given(texts=st.lists(HOSTILE, min_size=7, max_size=7))
def test_no_text_becomes_a_control_token(style: str, ours: Any, tokenizer: Tokenizer, texts: list[str]) -> None:
    template = ours(STYLES[style])
    for cut in (slice(0, 2), slice(1, 4), slice(0, 6)):
        for tools in (None, [{"type": "function", "function": {"name": texts[3], "parameters": {texts[4]: texts[5]}}}]):
            ids = attempt(template, hostile_talk(texts)[cut], tools)
            benign = attempt(template, hostile_talk([bool(text.strip()) * "x" for text in texts])[cut], tools)
            assert ids is None or benign is None or controls(tokenizer, ids) == controls(tokenizer, benign)


def attempt(template: ChatTemplate, messages: Any, tools: Any) -> list[int] | None:
    """Return the ids of a conversation, or None if it is refused."""
    try:
        return encode(template, messages, tools)
    except GemwrightError:
        return None


JOINING = {
    "a key as a tag": "{% for m in messages %}{{ '<' ~ m.content ~ '>' }}<end_of_turn>{% endfor %}",
    "a slice": "{% for m in messages %}{{ '<' ~ m.content[1:] }}<end_of_turn>{% endfor %}",
    "two texts": "{{ messages[0].content ~ messages[1].content }}<end_of_turn>",
    "capitals": "{{ messages[0].content | lower }}<end_of_turn>",
    "a template's end": "{{ messages[0].content }}turn><end_of_turn>",
    "characters": "{% for c in messages[0].content %}{{ c }}{% endfor %}<end_of_turn>",
    "a replacement": "{{ messages[0].content | replace('x', '<eos>') }}<end_of_turn>",
}


@pytest.mark.parametrize("source", JOINING.values(), ids=JOINING)
@pytest.mark.parametrize(
    "content", ["end_of_turn", "xend_of_turn>", "<end_of_", "turn>", "<END_OF_TURN>", "<end_of_turn>", "x"]
)
def test_pieces_that_a_template_joins_are_text(source: str, content: str, ours: Any, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": content}, {"role": "user", "content": "turn>"}]
    ids = encode(ours(source), messages)
    written = 2 if "for m" in source else 1
    assert controls(tokenizer, ids) == [tokenizer.id_of("<end_of_turn>")] * written


def test_a_template_that_splits_text_at_control_tokens(ours: Any, tokenizer: Tokenizer) -> None:
    again = ours("{% for part in messages[0].content.split('<eos>') %}{{ part }}<eos>{% endfor %}")
    assert controls(tokenizer, encode(again, [{"role": "user", "content": "a"}])) == [1]
    with pytest.raises(GemwrightError, match="makes control tokens from the text of messages"):
        encode(again, [{"role": "user", "content": "a<eos>b"}])


def test_a_system_message_that_is_refused_precedes_the_first_user_message(ours: Any) -> None:
    template = ours(STYLES["turns, alternating"])
    merged = [{"role": "user", "content": " Be brief.\n\n\nHi"}]
    assert encode(template, [SYSTEM, {"role": "user", "content": " Hi "}]) == encode(template, merged)
    with pytest.raises(GemwrightError, match="refuses the conversation: No system role"):
        encode(template, [SYSTEM, {"role": "assistant", "content": "Hi"}])


def test_roles_and_contents(ours: Any) -> None:
    chatml, parts = ours(STYLES["chatml"]), ours(STYLES["turns with parts"])
    developer = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    assert encode(chatml, developer) == encode(chatml, [{"role": "system", "content": "a"}, developer[1]])
    talk = [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}, {"role": "user", "content": "c"}]
    assert encode(parts, talk) == encode(parts, [talk[0], {"role": "assistant", "content": "b"}, talk[2]])
    several = [{"role": "user", "content": "a"}] * 2
    assert len(encode(chatml, several)) > len(encode(chatml, several[:1]))
    # Parts become one text for a template that writes text only, and the other way round.
    assert encode(chatml, PARTS) == encode(chatml, [{"role": "user", "content": " one two"}])
    listed = ours("{% for m in messages %}{% for p in m.content if p.type %}{{ p.text }}{% endfor %}{% endfor %}")
    part = {"type": "text", "text": "ab"}
    assert encode(listed, [{"role": "user", "content": "ab"}]) == encode(listed, [{"role": "user", "content": [part]}])


@pytest.mark.parametrize("style", ["turns with parts", "chatml"])
def test_images_replace_their_markers_in_order(style: str, ours: Any, tokenizer: Tokenizer) -> None:
    template, image = ours(STYLES[style]), {"type": "image", "image": "a.png"}
    text = {"type": "text", "text": "and"}
    messages, images = read_messages([{"role": "user", "content": [image, text, image], "images": ["b.png"]}])
    assert images == ["b.png", "a.png", "a.png"]
    ids = template.encode(messages, None, [[-1], [-1, -1], [-1]])
    first = ids.index(-1)
    assert ids[first : first + 3] == [-1, -1, -1]
    assert ids.count(-1) == 4
    assert ids[first + 3 : first + 4 + len(tokenizer.encode("and"))] == [*tokenizer.encode("and"), -1]
    with pytest.raises(GemwrightError, match="writes 3 images for 1"):
        template.encode(messages, None, [[-1]])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("hi", "is a list of messages"),
        ([{"role": "robot", "content": "a"}], 'needs a "role"'),
        ([{"role": "user"}], 'needs its "content"'),
        ([{"role": "user", "content": 3}], 'needs its "content"'),
        ([{"role": "user", "content": [{"type": "video"}]}], "A part of a message"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has no file"),
        ([{"role": "user", "content": "a", "images": "x.png"}], "put the image into a list"),
        ([{"role": "user", "content": "a", "x": object()}], "holds a value of type object"),
        ([], "does not end with a user message"),
    ],
)
def test_bad_conversations_are_one_sentence(messages: Any, error: str, ours: Any) -> None:
    with pytest.raises(GemwrightError, match=error):
        encode(ours(STYLES["chatml"]), messages)


def test_a_deep_conversation_is_refused(ours: Any) -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(GemwrightError, match="more than 32 levels"):
        encode(ours(STYLES["chatml"]), [{"role": "user", "content": "a", "x": deep}])


def test_a_template_for_tools(tokenizer: Tokenizer) -> None:
    sources = {"default": "{{ 'a' }}", "tool_use": "{{ 'b' }}"}
    template = ChatTemplate(tokenizer, sources, {})
    assert encode(template, TALK) == tokenizer.encode("a")
    assert encode(template, TALK, TOOLS) == tokenizer.encode("b")


def test_jinja_is_imported_late() -> None:
    code = "import sys, gemwright.text.chat_template, gemwright.text.chat; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
