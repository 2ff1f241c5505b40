"""Structured output: grammars from the formats that clients send, and the tokens that a grammar allows next.

A grammar is a string of llguidance (github.com/guidance-ai/llguidance), made and checked by the `from_` functions
before its request is queued. The scheduler calls `compile_grammar` for each text, then `fill_mask` and `accept` at each
token. JSON is compact, without whitespace between its tokens, which Gemma models otherwise repeat until the limit.
"""

import functools
import json
import re
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import RequestError
from gemwright.serve.structured import json_schemas
from gemwright.serve.structured.json_schemas import MAX_BYTES, MAX_VALUES
from gemwright.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Schema: TypeAlias = Mapping[str, Any] | bool
"""A JSON schema."""

_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|//[^\n]*')
_REFUSED = re.compile(r"[&~<@]|%(?!import|ignore|llguidance)\w+")
"""Operators and directives of Lark that a client's grammar may not have."""
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def from_response_format(value: Mapping[str, Any], param: str = "response_format") -> str | None:
    """Return the grammar of a `response_format`; None for text.

    It is OpenAI's `{"type": "text" | "json_object" | "json_schema", ...}`; `json_object` may have a "schema", as in
    llama-server.

    Raises:
        RequestError: It is of another form, or its schema is none or not supported.
    """
    match value:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            schema = value.get("schema")
            return from_json_schema({"type": "object"} if schema is None else schema, f"{param}.schema")
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return from_json_schema(schema, f"{param}.json_schema.schema")
        case {"type": "json_schema", "schema": schema}:
            return from_json_schema(schema, f"{param}.schema")
        case {"type": "json_schema"}:
            raise _error(f"{param} of type json_schema needs a schema.", f"{param}.json_schema.schema")
        case _:
            raise _error(f"{param} must have the type text, json_object or json_schema.", f"{param}.type")


def from_ollama_format(value: str | Schema, param: str = "format") -> str | None:
    """Return the grammar of Ollama's `format`: "json", a schema, or "" for text.

    Raises:
        RequestError: As for `from_json_schema`.
    """
    if value == "":
        return None
    if value == "json":
        return from_json_schema({"type": "object"}, param)
    if isinstance(value, str):
        raise _error(f'{param} must be "json" or a JSON schema.', param)
    return from_json_schema(value, param)


def from_json_schema(schema: Schema, param: str = "schema", *, strict: bool = True) -> str:
    """Return a grammar of compact JSON that fulfills a schema, with properties in the order of the schema.

    Objects have no properties that the schema does not name, unless it says otherwise: see `json_schemas.close`.

    Args:
        schema: The schema; `$ref` may point into it.
        param: The field of the request, for errors.
        strict: Refuse a schema with a keyword that llguidance does not implement, instead of ignoring the keyword.

    Raises:
        RequestError: The schema is invalid, cannot be fulfilled, exceeds the limits of `json_schemas`, or is refused.
    """
    from llguidance import LLMatcher

    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise _error(f"{param} must be a JSON schema: an object.", param)
    json_schemas.check(schema, param)
    schema = {key: value for key, value in json_schemas.close(schema).items() if key != "x-guidance"}
    options = {**_JSON_OPTIONS, "lenient": not strict, "coerce_one_of": not strict}
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
    except ValueError as error:  # such as an integer of 100 digits
        raise _error(f"{param} is no JSON schema: {_first_line(error)}.", param) from error
    return _checked(grammar, param)


def from_regex(pattern: str, param: str = "regex") -> str:
    """Return a grammar of the texts that a regular expression matches as a whole.

    Raises:
        RequestError: It is invalid or too large, or has a look-around or a back-reference.
    """
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_regex(_text(pattern, param)), param)


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
        RequestError: It is invalid or too large, chooses tokens by name, intersects or negates terminals, which may
            take any time, or includes another grammar.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark = any_to_lark(_text(grammar, param))
    except RequestError:
        raise
    except Exception as error:  # of any kind: the converter trusts its input
        raise _error(f"{param} is no grammar in GBNF or Lark: {_first_line(error)}.", param) from error
    written = lark.removeprefix("%llguidance {}")  # the converter begins with this
    if refused := _REFUSED.search(_LITERAL.sub("", written)):
        raise _error(f"{param} has {refused[0]!r}, which is not supported.", param)
    return _checked(LLMatcher.grammar_from_lark(lark), param)


def from_own_lark(lark: str, param: str) -> str:
    """Return a grammar in Lark's syntax that this program has written, which may choose control tokens by their ids.

    Raises:
        RequestError: It is too large.
    """
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_lark(lark)
    if problem := LLMatcher.validate_grammar(grammar, limits=_limits()):
        raise _error(f"{param} are not supported: {_first_line(problem)}.", param)
    return grammar


def lark_literal(text: str) -> str:
    """Return a text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def _checked(grammar: str, param: str) -> str:
    """Return a grammar of llguidance that compiles within limits and allows some text."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes_tokenizer(), grammar, log_level=0, limits=_limits())
    if problem := matcher.get_error():
        raise _error(f"{param} is not supported: {_first_line(problem)}.", param)
    matcher.compute_bitmask()
    if matcher.is_stopped() and not matcher.is_accepting():
        raise _error(f"{param} allows no text; it must not refer to itself alone.", param)
    return grammar


@functools.cache
def _bytes_tokenizer() -> "LLTokenizer":
    """Return a tokenizer of single bytes, for checks that need no model."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()))


class _Bytes:
    """A tokenizer of the 256 bytes, and the end."""

    eos_token_id, bos_token_id = 256, None
    tokens: Sequence[bytes] = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids: Sequence[int] = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


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


def compile_grammar(
    grammar: str, tokenizer: Tokenizer, stop_ids: Iterable[int], vocabulary: int | None = None
) -> Matcher:
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

    def __init__(self, tokenizer: Tokenizer, size: int):
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size, self.words, self.end = size, -(-size // 32), tokenizer.eos_id
        self.tokens: LLTokenizer = LLTokenizer(TokenizerWrapper(_Source(tokenizer, size)))

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: int | None = None) -> "GrammarTokenizer":
        """Return the one of a tokenizer. The first call takes seconds for a large vocabulary: make it in a thread."""
        size = tokenizer.size if vocabulary is None else min(vocabulary, tokenizer.size)
        with _MAKING:
            sizes = _MADE.setdefault(tokenizer, {})
            if size not in sizes:
                sizes[size] = cls(tokenizer, size)
            return sizes[size]


_MADE: "weakref.WeakKeyDictionary[Tokenizer, dict[int, GrammarTokenizer]]" = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


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

    return LLParserLimits(
        max_items_in_row=20_000, max_lexer_states=25_000, max_grammar_size=100_000, verbose_errors=False
    )


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
