"""Grammars: texts drawn from their masks against jsonschema and regex, and what is refused, in bounded time."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import RequestError
from gemwright.generate import programs
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.generate.token_bias import ANY, TokenBias, mask_width
from gemwright.serve.structured import grammar
from gemwright.serve.structured.grammar import GrammarTokenizer, compile_grammar
from gemwright.text.tokenizer import Tokenizer
from tests.serve.structured.masks import allowed, draw
from tests.tiny.config import make_config, make_weights
from tests.tiny.vocabulary import make_vocabulary

TOKENIZER = Tokenizer(make_vocabulary())
CONTROL = frozenset(TOKENIZER.control_tokens.values())
STOPS = TOKENIZER.eos_id, TOKENIZER.id_of("<end_of_turn>")
SECONDS = 10.0
"""Maximum processor time to refuse or accept a hostile grammar, which takes minutes without limits."""
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mood": {"enum": ["good", "bad", None]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "home"],
    "$defs": {"place": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"city": {"type": "string"}}}]}},
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "object"},
    {"type": "array", "items": {"type": "number"}, "minItems": 2},
    {"type": "string", "pattern": "^[a-c]{2,5}[0-9]?$"},
    {"oneOf": [{"properties": {"kind": {"const": kind}}, "required": ["kind"], "type": "object"} for kind in "xy"]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"const": 1}}}]},
    {"type": "integer", "multipleOf": 7},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 0},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_texts_fulfill_their_schema_and_are_compact(schema: dict[str, Any]):
    jsonschema = pytest.importorskip("jsonschema")
    rule = grammar.from_json_schema(schema)
    texts = [text for seed in range(6) if (text := draw(rule, TOKENIZER, STOPS, seed)) is not None]
    assert texts
    for text in texts:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        outside = "".join(text.split('"')[::2]) if "\\" not in text else ""
        assert not any(character.isspace() for character in outside)


def test_objects_have_the_named_properties_only_unless_told_otherwise():
    for schema, is_open in (
        ({"type": "object", "properties": {"a": {}}}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, True),
        ({"type": "array", "items": {"type": "object", "properties": {"properties": {}}}}, False),
    ):
        prefix = "[" if schema["type"] == "array" else ""
        matcher = compile_grammar(grammar.from_json_schema(schema), TOKENIZER, STOPS)
        tokens = TOKENIZER.encode(prefix + '{"b"')
        assert all(map(matcher.accept, tokens)) == is_open


PATTERNS = [r"[a-c]+x?", r"(the|then)(re)*", r"\d{2,3}-é?", r"[^a-z]{1,3}", r"the and.?", r"(?i:he)llo|🙂+"]


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_masks_equal_partial_matches_of_regex(pattern: str, seed: int):
    """Every token, at every place of a random text: it may follow exactly if the text can be completed to a match.

    Where only one text can follow, only the token that begins its usual tokenization may.
    """
    numbers, matcher = np.random.default_rng(seed), compile_grammar(grammar.from_regex(pattern), TOKENIZER, STOPS)
    full, text = regex.compile(pattern), b""
    pieces = [TOKENIZER.piece_bytes(token) for token in range(TOKENIZER.size)]
    for _ in range(8):
        tokens = set(allowed(matcher, TOKENIZER.size))
        for token, piece in enumerate(pieces):
            if token in CONTROL:
                ends = (whole := _decoded(text)) is not None and full.fullmatch(whole) is not None
                assert (token in tokens) == (token in STOPS and ends)
            elif (whole := _decoded(text + piece)) is not None:
                may_follow = full.fullmatch(whole, partial=True) is not None
                assert may_follow or token not in tokens, (text, piece)
                assert not may_follow or token in tokens or len(tokens) == 1, (text, piece)
        going = [token for token in tokens if token not in CONTROL]
        if not going:
            assert matcher.is_accepting
            break
        token = int(numbers.choice(sorted(going)))
        assert matcher.accept(token)
        text += pieces[token]


def _decoded(text: bytes) -> str | None:
    """Return a text, or None if it ends within a character."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def test_choices_and_grammars():
    choices = ["yes", "no", 'a "quoted"\nline\\', "é🙂"]
    rule = grammar.from_choices(choices)
    assert {draw(rule, TOKENIZER, STOPS, seed) for seed in range(60)} == set(choices)
    gbnf = 'root ::= move (" " move)?\nmove ::= [a-h] [1-8] # a square\n'
    for rule in (grammar.from_lark(gbnf), grammar.from_lark('start: M (" " M)?\nM: /[a-h][1-8]/')):
        texts = {draw(rule, TOKENIZER, STOPS, seed) for seed in range(20)}
        assert all(regex.fullmatch("[a-h][1-8]( [a-h][1-8])?", text) for text in texts if text is not None)
        assert len(texts) > 5


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, dict),
        ({"type": "json_object", "schema": None}, dict),
        ({"type": "json_object", "schema": {"type": "array"}}, list),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "string"}}}, str),
        ({"type": "json_schema", "schema": {"type": "boolean"}}, bool),
    ],
)
def test_response_formats(form: Mapping[str, Any], kind: type | None):
    rule = grammar.from_response_format(form)
    assert (rule is None) == (kind is None)
    if rule is not None and kind is not None:
        texts = [draw(rule, TOKENIZER, STOPS, seed) for seed in range(4)]
        assert {type(json.loads(text)) for text in texts if text is not None} == {kind}


def test_formats_of_ollama():
    assert grammar.from_ollama_format("") is None
    assert grammar.from_ollama_format("json") == grammar.from_response_format({"type": "json_object"})
    assert grammar.from_ollama_format(PERSON) == grammar.from_json_schema(PERSON)
    with pytest.raises(RequestError, match='format must be "json" or a JSON schema'):
        grammar.from_ollama_format("xml")


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


_COUNTED = [{"type": "string", "pattern": f".*[a-c]{{{count}}}.*"} for count in range(1, 40)]
_DOUBLED = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": {"type": "null"}}
REFUSED: dict[str, Any] = {
    "a type that is none": {"type": "foo"},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "a reference to an address": {"$ref": "http://127.0.0.1:1/schema.json"},
    "endless": {"$ref": "#"},
    "false": False,
    "no schema": 3,
    "a list": [],
    "not": {"not": {"type": "string"}},
    "unique": {"type": "array", "uniqueItems": True},
    "impossible": {"type": "integer", "minimum": 5, "maximum": 4},
    "no value": {"enum": []},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "a bad pattern": {"type": "string", "pattern": "("},
    "huge": {"enum": [f"value {index}" for index in range(100_000)]},
    "long": {"const": "x" * 1_000_000},
    "deep": _nested(5000),
    "many items": {"type": "array", "minItems": 10**9},
    "many characters": {"type": "string", "maxLength": 10**12},
    "not finite": {"type": "string", "maxLength": float("nan")},
    "a large prime": {"type": "integer", "multipleOf": 62_615_533},
    "a large integer": {"type": "integer", "minimum": -(10**30)},
    "patterns that meet": {"allOf": _COUNTED},
    "patterns that meet by reference": {"$ref": "#/$defs/a", "pattern": "b+", "$defs": {"a": {"pattern": "a+"}}},
    "many patterns of properties": {"type": "object", "patternProperties": {f"^x{i}_.*$": {} for i in range(200)}},
    "overlapping patterns of properties": {"patternProperties": {"^a": {"type": "null"}, "a$": {"type": "string"}}},
    "malformed": {"type": "object", "properties": 7, "required": {"a": 1}, "items": [[]]},
    "unhashable": {"type": "object", "properties": {}, "required": [{}, []]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_schemas_are_refused_in_bounded_time(name: str):
    start = time.process_time()
    with pytest.raises(RequestError) as error:
        grammar.from_response_format({"type": "json_schema", "json_schema": {"schema": REFUSED[name]}})
    assert time.process_time() - start < SECONDS
    assert error.value.status == 400
    assert error.value.param == "response_format.json_schema.schema"
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/d0", "$defs": _DOUBLED},
        {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(500)}},
        {"type": "string", "pattern": "((((a{50}){50}){50}){50}){50}"},
        {"enum": list(range(4900))},
        {"type": "array", "minItems": 9999, "items": {"type": "array", "minItems": 9999}},
        _nested(30),
    ],
    ids=lambda schema: json.dumps(schema)[:30],
)
def test_what_is_large_compiles_or_is_refused_in_bounded_time(schema: dict[str, Any]):
    start = time.process_time()
    try:
        matcher = compile_grammar(grammar.from_json_schema(schema), TOKENIZER, STOPS)
    except RequestError:
        return
    finally:
        assert time.process_time() - start < SECONDS
    for _ in range(50):
        start = time.process_time()
        tokens = allowed(matcher, TOKENIZER.size)
        if not tokens or not matcher.accept(tokens[-1]):
            break
        assert time.process_time() - start < SECONDS / 5


LARK = {
    "no grammar": "hello",
    "unknown rule": "start: other",
    "parentheses": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "gbnf parentheses": "root ::= " + "(" * 20_000,
    "an endless rule": "start: a\na: b\nb: a",
    "doubling": "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "x"\nstart: A0',
    "an intersection": "start: C\nC: A & B\nA: /(a{97})*b/\nB: /(a{89})*b/",
    "a negation": "start: C\nC: ~/a*/",
    "a token by number": "start: <[5]>",
    "a token by name": "start: <end_of_turn>",
    "a schema": 'start: %json {"type": "integer", "multipleOf": 62615533}',
    "too long": 'start: "' + "x" * 200_000 + '"',
    "empty": "",
}


@pytest.mark.parametrize("name", LARK)
def test_grammars_are_refused_in_bounded_time(name: str):
    start = time.process_time()
    with pytest.raises(RequestError) as error:
        grammar.from_lark(LARK[name], "guided_grammar")
    assert time.process_time() - start < SECONDS
    assert (error.value.status, error.value.param) == (400, "guided_grammar")


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda parts: st.lists(parts, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "required", "enum", "anyOf", "allOf", "$ref", "$defs", "pattern",
                 "const", "minItems", "multipleOf", "patternProperties", "additionalProperties", "x-guidance", "a"]
            ),
            parts | st.sampled_from(["object", "string", "array", "#", "#/$defs/a", "integer"]),
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_is_a_grammar_or_refused(schema: Any):
    try:
        rule = grammar.from_json_schema(schema)
    except RequestError:
        return
    assert allowed(compile_grammar(rule, TOKENIZER, STOPS), TOKENIZER.size)


@pytest.mark.parametrize("text", ["(", "(?=a)", r"(a)\1", "", 7, "x" * 200_000])
def test_regular_expressions_are_refused(text: Any):
    with pytest.raises(RequestError) as error:
        grammar.from_regex(text, "guided_regex")
    assert (error.value.status, error.value.param) == (400, "guided_regex")


@pytest.mark.parametrize("choices", [[], "ab", [1], ["x"] * 6000, None])
def test_choices_are_refused(choices: Any):
    with pytest.raises(RequestError, match="choice"):
        grammar.from_choices(choices)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        ({"type": "json_object", "schema": 4}, "response_format.schema"),
    ],
)
def test_response_formats_are_refused(form: Mapping[str, Any], param: str):
    with pytest.raises(RequestError) as error:
        grammar.from_response_format(form)
    assert (error.value.status, error.value.param) == (400, param)


def test_the_end_of_a_text():
    matcher = compile_grammar(grammar.from_regex("ab?"), TOKENIZER, STOPS)
    a, b, c = (TOKENIZER.encode(letter)[0] for letter in "abc")
    assert (matcher.is_accepting, matcher.is_stopped) == (False, False)
    assert not set(allowed(matcher, TOKENIZER.size)) & CONTROL
    assert matcher.accept(a)
    assert (matcher.is_accepting, matcher.is_stopped) == (True, False)
    assert set(allowed(matcher, TOKENIZER.size)) == {b, TOKENIZER.encode("b")[0], ord("b") + 73, *STOPS}
    assert matcher.accept(b)
    assert (matcher.is_accepting, matcher.is_stopped) == (True, True)
    assert set(allowed(matcher, TOKENIZER.size)) == set(STOPS)
    assert matcher.accept(STOPS[1])
    assert allowed(matcher, TOKENIZER.size) == []
    assert not matcher.accept(a)
    wrong = compile_grammar(grammar.from_regex("ab"), TOKENIZER, STOPS)
    assert not wrong.accept(c)
    assert wrong.is_stopped
    assert allowed(wrong, TOKENIZER.size) == []


def test_a_mask_is_as_wide_as_the_model():
    """Ids beyond the tokenizer are masked, and so are those of the tokenizer that the model lacks."""
    rule = grammar.from_regex("[a-zA-Z]+")
    wide = allowed(compile_grammar(rule, TOKENIZER, STOPS), TOKENIZER.size + 1000)
    assert max(wide) < TOKENIZER.size
    fewer = allowed(compile_grammar(rule, TOKENIZER, STOPS, vocabulary=TOKENIZER.size - 10), TOKENIZER.size - 10)
    assert fewer == [token for token in wide if token < TOKENIZER.size - 10]


def test_a_tokenizer_is_read_once():
    tokenizer, made = Tokenizer(make_vocabulary()), list[GrammarTokenizer]()
    threads = [threading.Thread(target=lambda: made.append(GrammarTokenizer.of(tokenizer))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(map(id, made))) == 1


@pytest.mark.usefixtures("quick_compilation")
def test_a_model_writes_what_the_schema_demands():
    """A model with random weights, with and without a grammar in one batch, by the programs of the scheduler."""
    config = make_config(256)
    engine = Engine(config, make_weights(config, seed=1), TOKENIZER.size)
    samplings = [Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=2)]
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
        "required": ["ok", "n"],
    }
    matcher = compile_grammar(grammar.from_json_schema(schema), TOKENIZER, STOPS)
    options, masks, text = engine.options(samplings), np.full((2, mask_width(config.vocab)), ANY), list[int]()

    def bias() -> TokenBias:
        matcher.fill_mask(masks[1])
        return TokenBias.stack([{}, {}], [0, 0], masks, 4)

    step, slots = engine.begin([[5], [6]], samplings, [40, 40], options, STOPS, bias=bias())
    token = int(step.tokens[1])
    while token not in STOPS:
        assert matcher.accept(token)
        text.append(token)
        choices, slots = programs.decode(config, options, engine.params, slots, 1, bias())
        token = int(choices.token[0, 1])
    value = json.loads(TOKENIZER.decode(text))
    assert value["n"] in (1, 2)
    assert value["ok"] in (True, False)
