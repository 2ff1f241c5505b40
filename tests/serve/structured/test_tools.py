"""Functions: definitions, prompts, grammars of required calls, and calls parsed from texts cut anywhere."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.errors import RequestError
from gemwright.serve.structured.tool_formats import FUNCTION_GEMMA, GEMMA4, HERMES, JSON
from gemwright.serve.structured.tools import ToolCallParser, ToolUse, prepare
from gemwright.text.chat import GEMMA3
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer
from tests.serve.structured.masks import draw
from tests.tiny.vocabulary import make_vocabulary

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Return the weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
            "place": {"$ref": "#/$defs/place"},
        },
        "required": ["city"],
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": ["integer", "null"]}}, "required": ["x"]}},
    },
}
NOW: dict[str, Any] = {"name": "now"}
TOOLS: list[Any] = [{"type": "function", "function": function} for function in (WEATHER, NOW)]
NAMES = ("get_weather", "now")
ASK: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
TALK: list[Any] = [
    *ASK,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]
HERMES_SOURCE = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call></tool_call>{{ messages }}"
PLAIN_SOURCE = "{{ tools | tojson }}{{ messages }}"
FORMATS = {"hermes": HERMES, "functiongemma": FUNCTION_GEMMA, "gemma4": GEMMA4, "json": JSON}


def _template(name: str) -> ChatTemplate:
    call_format, vocabulary = FORMATS.get(name, JSON), make_vocabulary()
    for marker in call_format.markers:
        vocabulary = add_control_tokens(vocabulary, marker)
    sources = {"hermes": HERMES_SOURCE, "json": PLAIN_SOURCE, "gemma": GEMMA3.template}
    source = sources.get(name, f"{{{{ tools }}}}{call_format.start}")
    return ChatTemplate(Tokenizer(vocabulary), {"default": source}, {"bos_token": "<bos>"})


TEMPLATES = {name: _template(name) for name in (*FORMATS, "gemma")}


def _parse(parser: ToolCallParser, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the content and the calls of a text, whose parts are checked to come as clients expect them."""
    parts = [*map(parser.push, pieces), parser.finish()]
    calls: list[tuple[str, str]] = []
    for delta in [delta for part in parts for delta in part.calls]:
        if delta.name is not None:
            assert delta.index == len(calls)
            assert delta.id is not None
            assert delta.id.startswith("call_")
            calls.append((delta.name, delta.arguments))
        else:
            assert delta.id is None
            assert delta.index == len(calls) - 1
            calls[-1] = calls[-1][0], calls[-1][1] + delta.arguments
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)
    assert parser.has_calls == bool(calls)
    return "".join(part.content for part in parts), calls


def _cut(text: str, places: Sequence[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:stop] for start, stop in itertools.pairwise(ends)]


_OSLO = ("get_weather", '{"city":"Oslo"}')
TEXTS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("json", '{"name": "get_weather", "arguments": {"city": "Oslo"}}', "", [_OSLO]),
    ("json", '{"name":"get_weather","parameters":{"city":"Oslo"}}\n', "", [_OSLO]),
    ("json", '{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', "", [_OSLO]),
    ("json", '{"type":"function","function":{"name":"get_weather","arguments":{"city":"Oslo"}}}', "", [_OSLO]),
    ("json", 'Let me look.\n\n```json\n{"name": "now"}\n```\n', "Let me look.", [("now", "{}")]),
    ("json", '```tool_code\n{"name": "now"}\n```', "", [("now", "{}")]),
    ("json", '```tool_code\nget_weather(city="Oslo")\nnow()\n```', "", [_OSLO, ("now", "{}")]),
    ("json", '```tool_code\n[now()]\n```', "", [("now", "{}")]),
    ("json", '[{"name": "now"}, {"name": "get_weather", "arguments": {"city": "Oslo"}}]', "", [("now", "{}"), _OSLO]),
    ("json", '{"name": "now"}\n{"name": "now"}', "", [("now", "{}")] * 2),
    ("json", 'a {"name": "now"} b', "a\nb", [("now", "{}")]),
    ("json", '{"name": "now", "arguments": {"x": "}```{\\""}}', "", [("now", '{"x":"}```{\\""}')]),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "", [("now", "{}")]),
    ("hermes", 'Hm.\n<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "now"}', "Hm.", [("now", "{}")] * 2),
    ("hermes", '<tool_call>{"name":"now","arguments":{"a":"</tool_call>"}}</tool_call>', "",
     [("now", '{"a":"</tool_call>"}')]),
    ("functiongemma", "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>", "",
     [_OSLO]),
    ("functiongemma", "<start_function_call>call:now{}<end_function_call>" * 2, "", [("now", "{}")] * 2),
    ("gemma4", 'On it.<|tool_call>call:now{a:<|"|>x, {y}<|"|>,n:-1.5,ok:true,l:[1,<|"|>b<|"|>],o:{z:null}}<tool_call|>',
     "On it.", [("now", '{"a":"x, {y}","n":-1.5,"ok":true,"l":[1,"b"],"o":{"z":null}}')]),
]  # fmt: skip
CONTENT = [
    ("json", 'No call: {x} [1, 2] `code` ``` and {"name": "Bob"} \n'),
    ("json", '```python\nget_weather(city="Oslo")\n```\n'),
    ("json", '```json\n{"result": [1, 2]}\n```'),
    ("json", '{"name": "other", "arguments": {}}'),
    ("json", '{"name": "now", "arguments": 3}'),
    ("json", '{"name": "now", "arguments": {"x": NaN}}'),
    ("json", '{"name": "now", "arguments": {"x": 1e999}}'),
    ("json", '{"name": "now", "comment": "a field that calls do not have"}'),
    ("json", '{"name": "now", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001),
    ("json", "```tool_code\nget_weather(__import__('os'))\n```"),
    ("json", "```tool_code\nnow(x=open('/etc/passwd'))\n```"),
    ("json", "```tool_code\nnow(x=" + "(" * 3000 + ")" * 3000 + ")\n```"),
    ("hermes", "<tool_call>now</tool_call> <b>bold</b> <tool"),
    ("hermes", '<tool_call>{"name": }</tool_call>'),
]


@pytest.mark.parametrize(("name", "text", "content", "calls"), TEXTS, ids=lambda part: str(part)[:30])
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_calls_are_parsed_wherever_the_text_is_cut(
    name: str, text: str, content: str, calls: list[tuple[str, str]], places: list[int]
):
    assert _parse(ToolCallParser(FORMATS[name], NAMES), _cut(text, places)) == (content, calls)


@pytest.mark.parametrize(("name", "text"), CONTENT, ids=lambda part: str(part)[:30])
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_what_is_no_call_stays_content(name: str, text: str, places: list[int]):
    assert _parse(ToolCallParser(FORMATS[name], NAMES), _cut(text, places)) == (text, [])


@pytest.mark.parametrize(("name", "text", "content", "calls"), TEXTS, ids=lambda part: str(part)[:30])
def test_a_text_cut_by_its_limit_keeps_whole_calls_alone(
    name: str, text: str, content: str, calls: list[tuple[str, str]]
):
    """At every length: the calls so far are the first ones, and no part of a marker was given before the end."""
    call_format = FORMATS[name]
    for length in range(len(text)):
        parser = ToolCallParser(call_format, NAMES)
        early = "".join(parser.push(character).content for character in text[:length])
        assert content.startswith(early.rstrip())
        found = _parse(ToolCallParser(call_format, NAMES), [text[:length]])
        assert found[1] == calls[: len(found[1])]
        assert not any(marker in found[0] for marker in call_format.markers)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(FORMATS)),
    st.text(st.sampled_from('ab{}[]"\\:,<>|` \n'), max_size=60) | st.text(max_size=30),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_any_text_is_parsed_alike_however_it_comes(name: str, text: str, places: list[int]):
    whole = _parse(ToolCallParser(FORMATS[name], NAMES), [text])
    assert _parse(ToolCallParser(FORMATS[name], NAMES), _cut(text, places)) == whole
    if not FORMATS[name].markers:
        assert whole == (text, [])


_keys = st.sampled_from(["a", "city", "x_1", "Long_name", "type"])
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=9),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(_keys, parts, max_size=3),
    max_leaves=6,
)


def _native(value: Any, quote: str) -> str:
    """Write a value as the published templates of FunctionGemma and Gemma 4 do."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_native(part, quote)}" for key, part in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_native(part, quote) for part in value) + "]"
    return json.dumps(value)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.dictionaries(_keys, _values, max_size=3))
def test_arguments_survive(name: str, arguments: dict[str, Any]):
    call_format = FORMATS[name]
    if call_format.quote:
        body = f"call:now{_native(arguments, call_format.quote)}"
    else:
        body = json.dumps({"name": "now", "arguments": arguments})
    content, calls = _parse(ToolCallParser(call_format, NAMES), [call_format.start + body + call_format.end])
    assert content == ""
    assert [(called, json.loads(given)) for called, given in calls] == [("now", arguments)]


def test_without_parallel_calls_the_first_is_kept():
    parser = ToolCallParser(HERMES, NAMES, parallel=False)
    assert _parse(parser, ['<tool_call>{"name": "now"}</tool_call>'] * 3) == ("", [("now", "{}")])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_written_and_parsed(name: str, parallel: bool):
    """Texts drawn from the masks are calls alone, with arguments of their schemas."""
    template = TEMPLATES[name]
    use = prepare(template, ASK, TOOLS, "required", parallel)
    assert use.grammar is not None
    stops = (template.tokenizer.id_of("<end_of_turn>"),)
    texts = [text for seed in range(12) if (text := draw(use.grammar, template.tokenizer, stops, seed)) is not None]
    assert len(texts) > 3
    for text in texts:
        content, calls = _parse(use.parser(), [text])
        assert content == ""
        assert 1 <= len(calls) <= (100 if parallel else 1)
        for called, arguments in calls:
            _check(called, json.loads(arguments))


def _check(called: str, arguments: dict[str, Any]) -> None:
    if called == "now":
        assert arguments == {}
        return
    assert called == "get_weather"
    assert set(arguments) <= {"city", "days", "unit", "place"}
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments.get("days", 1), int)
    assert arguments.get("unit", "C") in ("C", "F")


def test_a_named_function_is_the_only_one():
    use = prepare(TEMPLATES["gemma"], ASK, TOOLS, {"type": "function", "function": {"name": "now"}}, False)
    assert use.grammar is not None
    stops = (TEMPLATES["gemma"].tokenizer.eos_id,)
    texts = {draw(use.grammar, TEMPLATES["gemma"].tokenizer, stops, seed) for seed in range(5)}
    assert texts == {'{"name":"now","arguments":{}}'}
    assert "get_weather" not in use.messages[0]["content"]


def test_a_model_without_a_format_is_told_of_functions():
    use = prepare(TEMPLATES["gemma"], TALK, TOOLS)
    system, *rest = use.messages
    assert (use.template_tools, use.grammar, use.skip_control_tokens) == (None, None, True)
    assert system["role"] == "system"
    for word in ("get_weather", "Return the weather.", '"city"', "now"):
        assert word in system["content"]
    assert [message["role"] for message in rest] == ["user", "assistant", "user"]
    assert _parse(use.parser(), [rest[1]["content"]]) == ("", [_OSLO])
    assert rest[2]["content"] == "Result of get_weather:\nrain"
    assert TEMPLATES["gemma"].encode([{**rest[0], "content": system["content"]}, *rest[1:]])


def test_a_template_with_tools_gets_them():
    use = prepare(TEMPLATES["functiongemma"], TALK, TOOLS)
    assert use.template_tools is not None
    assert [tool["function"]["name"] for tool in use.template_tools] == list(NAMES)
    assert use.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert use.messages[2] == {**TALK[2], "name": "get_weather"}
    assert not use.skip_control_tokens
    assert use.stop_ids == (TEMPLATES["functiongemma"].tokenizer.id_of("<start_function_response>"),)


@pytest.mark.parametrize("given_tools", [None, [], TOOLS])
def test_without_tools_or_with_none_chosen_nothing_is_said(given_tools: list[Any] | None):
    use = prepare(TEMPLATES["gemma"], ASK, given_tools, "none")
    assert (use.messages, use.template_tools, use.grammar) == (ASK, None, None)
    assert isinstance(use, ToolUse)


def _with(**changes: Any) -> list[Any]:
    return [{"type": "function", "function": {**WEATHER, **changes}}]


WRONG: list[tuple[Any, Any, str]] = [
    ([3], "auto", "tools[0]"),
    ([{"type": "retrieval"}], "auto", "tools[0]"),
    ([{"type": "function"}], "auto", "tools[0]"),
    (_with(name=""), "auto", "tools[0].function.name"),
    (_with(name="a b"), "auto", "tools[0].function.name"),
    (_with(name=7), "auto", "tools[0].function.name"),
    (_with(description=7), "auto", "tools[0].function.description"),
    (_with(strict="yes"), "auto", "tools[0].function.strict"),
    (_with(parameters=[]), "auto", "tools[0].function.parameters"),
    (_with(parameters={"type": "string"}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"properties": 3}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"properties": {"a": 3}}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"properties": {"a": {"type": "text"}}}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"required": "a"}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"anyOf": {}}), "auto", "tools[0].function.parameters"),
    (_with(parameters={"properties": {"a": {"enum": ["x"] * 9000}}}), "auto", "tools[0].function.parameters"),
    (_with(strict=True, parameters={"not": {}}), "required", "parameters of get_weather"),
    (TOOLS * 2, "auto", "tools"),
    (TOOLS * 100, "auto", "tools"),
    (TOOLS, "any", "tool_choice"),
    (TOOLS, 3, "tool_choice"),
    (TOOLS, {"type": "function", "function": {"name": "other"}}, "tool_choice"),
    (TOOLS, {"name": "now"}, "tool_choice"),
    ([], "required", "tool_choice"),
]


@pytest.mark.parametrize(("given_tools", "choice", "param"), WRONG)
def test_wrong_tools_are_refused_by_name(given_tools: Any, choice: Any, param: str):
    with pytest.raises(RequestError) as error:
        prepare(TEMPLATES["gemma"], ASK, given_tools, choice)
    assert (error.value.status, error.value.param) == (400, param)


def test_unknown_keywords_of_schemas_are_kept_for_the_model_and_ignored_by_the_grammar():
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    use = prepare(TEMPLATES["gemma"], ASK, _with(parameters=parameters), "required")
    assert "uniqueItems" in use.messages[0]["content"]
    assert use.grammar is not None
