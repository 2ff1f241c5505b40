"""Parts of replies in OpenAI's format."""

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gemwright.errors import RequestError
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import TokenLogprob
from gemwright.text.sentencepiece_model import BYTE
from gemwright.text.tokenizer import TextStream, Tokenizer

LEAST_LOGPROB = -9999.0
"""Log-probability that is reported for minus infinity, which JSON lacks."""
WITHOUT_EFFECT = frozenset({"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Fields of any request that change nothing."""
REFUSED = {
    "use_beam_search": "leave it out.",
    **dict.fromkeys(
        (
            *("grammar", "json_schema", "structured_outputs"),
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        ),
        "use response_format.",
    ),
}
"""Fields of any request that are refused, with advice."""


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


@dataclass(frozen=True)
class Head:
    """The fields that all parts of a reply share."""

    kind: str
    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def __call__(self, **fields: Any) -> dict[str, Any]:
        """Return a part of the reply."""
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model, **fields}


def new_id(prefix: str) -> str:
    """Return a new identifier."""
    return f"{prefix}{secrets.token_hex(12)}"


def check_stream_options(stream: bool, options: StreamOptions | None) -> None:
    """Raise if a request has options of a stream and wants none.

    Raises:
        RequestError: It does.
    """
    if options is not None and not stream:
        raise RequestError("stream_options is for streams; send stream: true with it.", param="stream_options")


def usage(generations: Sequence[Generation], n: int, tokens: int) -> dict[str, Any]:
    """Return the numbers of tokens of a reply.

    Args:
        generations: `n` generations for each prompt.
        n: Number of texts of each prompt, which is counted once.
        tokens: Number of generated tokens.
    """
    prompts = generations[::n]
    prompt_tokens = sum(each.prompt_tokens for each in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""Return a token as text: control tokens by name, bytes that may be part of a character as `bytes:\xe2`."""
    if token < 0:
        return "<image>"
    if token >= tokenizer.size:
        return f"token_id:{token}"
    piece = tokenizer.piece_bytes(token, keep_control=True)
    if tokenizer.kinds[token] == BYTE:
        return f"bytes:\\x{piece[0]:02x}"
    return piece.decode("utf-8", "replace")


def chat_logprobs(tokenizer: Tokenizer, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return log-probabilities in the format of chat."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        piece = tokenizer.piece_bytes(token, keep_control=True) if 0 <= token < tokenizer.size else b""
        return {"token": token_text(tokenizer, token), "logprob": finite(logprob), "bytes": list(piece)}

    return {
        "content": [
            {
                **entry(each.token, dict(each.top).get(each.token, each.logprob)),
                "top_logprobs": [entry(*top) for top in each.top],
            }
            for each in logprobs
        ]
    }


def finite(logprob: float | None) -> float | None:
    """Return a log-probability that JSON can hold."""
    return logprob if logprob is None or math.isfinite(logprob) else LEAST_LOGPROB


class LegacyLogprobs:
    """Log-probabilities in the format of completions; offsets count the characters of the text from its start."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._stream, self._offset = tokenizer, TextStream(tokenizer), 0

    def add(self, logprobs: Iterable[TokenLogprob]) -> dict[str, list[Any]]:
        """Return the entries of the next tokens."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in logprobs:
            top = dict(each.top)
            # Both numbers from one computation: clients compare them to find whether the token is the likeliest.
            logprob = finite(top.get(each.token, each.logprob))
            found["tokens"].append(token_text(self._tokenizer, each.token))
            found["token_logprobs"].append(logprob)
            found["top_logprobs"].append(None if logprob is None else self._named({**top, each.token: logprob}))
            found["text_offset"].append(self._offset)
            if 0 <= each.token < self._tokenizer.size:
                self._offset += len(self._stream.push(each.token))
        return found

    def _named(self, logprobs: dict[int, float]) -> dict[str, float | None]:
        """Return log-probabilities by text; a second token of the same text is called by its id."""
        named: dict[str, float | None] = {}
        for token, logprob in logprobs.items():
            text = token_text(self._tokenizer, token)
            named[f"token_id:{token}" if text in named else text] = finite(logprob)
        return named
