"""Structured output: grammars from the formats that clients send, and the tokens that a grammar allows next.

A grammar is a string of llguidance (github.com/guidance-ai/llguidance), made and checked by the `from_` functions
before its request is queued. The scheduler compiles it for each text: `compile`, then `fill_mask` and `accept` at each
token. JSON is compact, without whitespace between its tokens, which Gemma models otherwise repeat until the limit.
"""

import json
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import RequestError
from gemwright.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

Schema: TypeAlias = Mapping[str, Any] | bool
"""A JSON schema."""

MAX_BYTES = 1 << 17
"""Maximum size of a schema or grammar in bytes."""
MAX_VALUES = 5000
"""Maximum number of values in a schema, keys not counted."""
MAX_DEPTH = 64
"""Maximum nesting of a schema."""
MAX_REPETITION = 10_000
"""Maximum value of keywords such as minItems and maxLength."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":", "lenient": False}


def from_response_format(format: Mapping[str, Any], param: str = "response_format") -> str | None:
    """Return the grammar of a `response_format`; None for text.

    It is OpenAI's `{"type": "text" | "json_object" | "json_schema", ...}`; `json_object` may have a "schema", as in
    llama-server.

    Raises:
        RequestError: It is of another form, or its schema is none or not supported.
    """
    match format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            schema = format.get("schema")
            return from_json_schema({"type": "object"} if schema is None else schema, f"{param}.schema")
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return from_json_schema(schema, f"{param}.json_schema.schema")
        case {"type": "json_schema", "schema": schema}:
            return from_json_schema(schema, f"{param}.schema")
        case {"type": "json_schema"}:
            raise _error(f"{param} of type json_schema needs a schema.", f"{param}.json_schema.schema")
        case _:
            raise _error(f"{param} must have the type text, json_object or json_schema.", f"{param}.type")


def from_ollama_format(format: str | Schema, param: str = "format") -> str | None:
    """Return the grammar of Ollama's `format`: "json", a schema, or "" for text.

    Raises:
        RequestError: As for `from_json_schema`.
    """
    if format == "":
        return None
    if format == "json":
        return from_json_schema({"type": "object"}, param)
    if isinstance(format, str):
        raise _error(f'{param} must be "json" or a JSON schema.', param)
    return from_json_schema(format, param)


def from_json_schema(schema: Schema, param: str = "schema") -> str:
    """Return a grammar of compact JSON that fulfills a schema, with properties in the order of the schema.

    Raises:
        RequestError: The schema is invalid, cannot be fulfilled, is larger than the limits of this module, or has a
            keyword that llguidance does not implement.
    """
    return checked(json_schema_rule(schema, param), param)


def json_schema_rule(schema: Schema, param: str) -> str:
    """Return the grammar of `from_json_schema` without compiling it.

    Raises:
        RequestError: It exceeds the limits.
    """
    from llguidance import LLMatcher

    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise _error(f"{param} must be a JSON schema: an object.", param)
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}
    _check_size(schema, param)
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]


def from_regex(pattern: str, param: str = "regex") -> str:
    """Return a grammar of the texts that a regular expression matches as a whole.

    Raises:
        RequestError: It is invalid or too large, or has a look-around or a back-reference.
    """
    from llguidance import LLMatcher

    return checked(LLMatcher.grammar_from_regex(_text(pattern, param)), param)


def from_choices(choices: Sequence[str], param: str = "choice") -> str:
    """Return a grammar of one of several texts.

    Raises:
        RequestError: It is not a list of texts, or it is empty or too long.
    """
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(text, str) for text in choices):
        raise _error(f"{param} must be a list of at least one text.", param)
    if len(choices) > MAX_VALUES:
        raise _error(f"{param} has {len(choices)} texts, and at most {MAX_VALUES} are supported.", param)
    return from_lark("start: " + " | ".join(map(lark_literal, choices)), param)


def from_lark(grammar: str, param: str = "grammar") -> str:
    """Return a grammar in Lark's syntax with the extensions of llguidance, or in the GBNF of llama.cpp.

    Raises:
        RequestError: It is invalid or too large.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark = any_to_lark(_text(grammar, param))
    except Exception as error:  # of any kind: the converter trusts its input
        raise _error(f"{param} is no grammar in GBNF or Lark: {_first_line(error)}.", param) from error
    return checked(LLMatcher.grammar_from_lark(lark), param)


def lark_literal(text: str) -> str:
    """Return a text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def checked(grammar: str, param: str) -> str:
    """Return a grammar of llguidance that compiles within limits.

    Raises:
        RequestError: It does not.
    """
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(grammar, limits=_limits())
    if problem and not problem.startswith("WARNING"):
        raise _error(f"{param} is not supported: {_first_line(problem)}.", param)
    return grammar


@final
class Matcher:
    """A text that follows a grammar, token by token."""

    def __init__(self, matcher: "LLMatcher", tokenizer: "GrammarTokenizer", stop_ids: Iterable[int]):
        self._matcher, self._tokenizer = matcher, tokenizer
        self._stop_ids = [token for token in stop_ids if 0 <= token < tokenizer.size]
        self._ended = False

    def fill_mask(self, row: NDArray[np.int32]) -> bool:
        """Set the bits of the tokens that may follow and clear all others; return whether there are any.

        Control tokens other than those in the grammar are not among them. Stop ids are if the text may end here.

        Args:
            row: [W] words of 32 tokens, W being at least that of the tokenizer; see `TokenBias.allowed`.
        """
        row[:] = 0
        if not self._ended:
            words = row[: self._tokenizer.words]
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._matcher.is_error():
                row[:], self._ended = 0, True
            else:
                _set(row, [self._tokenizer.end], False)
                _set(row, self._stop_ids, self._matcher.is_accepting())
        return bool(row.any())

    def accept(self, token: int) -> bool:
        """Add a token to the text; return whether it was allowed, if not, the text has ended."""
        if self._ended or (token in self._stop_ids and self._matcher.is_accepting()):
            allowed, self._ended = not self._ended, True
            return allowed
        self._ended = not self._matcher.consume_token(token)
        return not self._ended

    @property
    def is_accepting(self) -> bool:
        """Whether the text may end here: it matches the grammar."""
        return self._matcher.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """Whether no token but a stop id may follow."""
        return self._ended or self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the text ended before it matched the grammar; empty if it did not."""
        return _first_line(self._matcher.get_error())


def compile(grammar: str, tokenizer: Tokenizer, stop_ids: Iterable[int], vocabulary: int | None = None) -> Matcher:
    """Return a matcher at the beginning of a text.

    The first call for a tokenizer takes seconds: see `GrammarTokenizer.of`.

    Args:
        grammar: from this module.
        tokenizer: of the model.
        stop_ids: ids that end the text where the grammar allows it.
        vocabulary: number of ids of the model, if it has fewer than the tokenizer.
    """
    from llguidance import LLMatcher

    made = GrammarTokenizer.of(tokenizer, vocabulary)
    return Matcher(LLMatcher(made.tokens, grammar, log_level=0, limits=_limits()), made, stop_ids)


@final
class GrammarTokenizer:
    """A tokenizer in the form that llguidance reads.

    Attributes:
        size: Number of tokens.
        words: Number of words of a mask over them.
        end: The id that llguidance allows where a text may end.
        tokens: The tokens for llguidance.
    """

    _made: "weakref.WeakKeyDictionary[Tokenizer, dict[int, GrammarTokenizer]]" = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self, tokenizer: Tokenizer, size: int):
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size, self.words, self.end = size, -(-size // 32), tokenizer.eos_id
        self.tokens: LLTokenizer = LLTokenizer(TokenizerWrapper(_Source(tokenizer, size)))

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: int | None = None) -> "GrammarTokenizer":
        """Return the one of a tokenizer. The first call takes seconds for a large vocabulary: make it in a thread."""
        size = tokenizer.size if vocabulary is None else min(vocabulary, tokenizer.size)
        with cls._lock:
            sizes = cls._made.setdefault(tokenizer, {})
            if size not in sizes:
                sizes[size] = cls(tokenizer, size)
            return sizes[size]


class _Source:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.piece_bytes(token, keep_control=True) for token in range(size)]
        self.special_token_ids = [token for token in tokenizer.control_tokens.values() if token < size]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


def _set(row: NDArray[np.int32], tokens: Iterable[int], value: bool) -> None:
    bits = row.view(np.uint32)
    for token in tokens:
        bit = np.uint32(1 << token % 32)
        bits[token // 32] = bits[token // 32] | bit if value else bits[token // 32] & ~bit


def _limits() -> "LLParserLimits":
    """Return limits on the time and memory of a grammar: about 0.1 s to compile, and 50 MB."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=25_000, max_grammar_size=100_000, verbose_errors=False)


def _check_size(schema: Mapping[str, Any], param: str) -> None:
    """Refuse a schema that is too large or deep, or repeats too often, without recursion."""
    values, left = 0, [(cast(Any, schema), 1)]
    while left:
        value, depth = left.pop()
        values += 1
        if values > MAX_VALUES or depth > MAX_DEPTH:
            raise _error(f"{param} has more than {MAX_VALUES} values or {MAX_DEPTH} levels.", param)
        if isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            for key in _COUNTS:
                if isinstance(count := table.get(key), int | float) and count > MAX_REPETITION:
                    raise _error(f"{key} in {param} is {count}, and at most {MAX_REPETITION} is supported.", param)
            left += [(item, depth + 1) for item in table.values()]
        elif isinstance(value, list | tuple):
            left += [(item, depth + 1) for item in cast(Sequence[Any], value)]
    if (size := len(json.dumps(schema))) > MAX_BYTES:
        raise _error(f"{param} has {size} bytes, and at most {MAX_BYTES} are supported.", param)


def _text(text: object, param: str) -> str:
    if not isinstance(text, str) or not text:
        raise _error(f"{param} must be a text.", param)
    if (size := len(text.encode("utf-8", "replace"))) > MAX_BYTES:
        raise _error(f"{param} has {size} bytes, and at most {MAX_BYTES} are supported.", param)
    return text


def _first_line(problem: object) -> str:
    """Return the first line of a message, of 200 characters at most, without a full stop."""
    return (str(problem).strip().splitlines() or [""])[0][:200].rstrip(".:")


def _error(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_grammar", param=param)
