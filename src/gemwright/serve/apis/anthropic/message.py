"""The message that answers a request, complete or as events.

Source: anthropic-sdk-python, src/anthropic/types/
"""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from gemwright.errors import RequestError
from gemwright.serve.apis.answer import read_arguments
from gemwright.serve.apis.collect import Result
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import TokenLogprob

Event = tuple[str, dict[str, Any]]
"""The name of a server-sent event, and its data."""

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


class MessageWriter:
    """Writes one message: its start, the blocks of its content one after another, its end.

    Attributes:
        message: The message so far.
    """

    def __init__(self, model: str):
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {},
        }
        self._arguments = ""
        self._is_open = False

    def start(self, generation: Generation) -> Iterator[Event]:
        """Yield the first event."""
        self.message["usage"] = make_usage(generation, 0)
        yield _event("message_start", message={**self.message, "content": []})

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[Event]:
        """Yield the events of more text."""
        if not text:
            return
        if not self._is_open or self._block["type"] != "text":
            yield from self._begin({"type": "text", "text": ""})
        self._block["text"] += text
        yield self._delta({"type": "text_delta", "text": text})

    def call(self, identifier: str, name: str) -> Iterator[Event]:
        """Yield the events that begin a call of a tool."""
        yield from self._begin({"type": "tool_use", "id": identifier, "name": name, "input": {}})

    def arguments(self, text: str) -> Iterator[Event]:
        """Yield the event of more JSON of the arguments of the last call."""
        self._arguments += text
        yield self._delta({"type": "input_json_delta", "partial_json": text})

    def finish(self, result: Result, *, has_calls: bool) -> Iterator[Event]:
        """Yield the last events; a message without content has an empty block."""
        if not self.message["content"]:
            yield from self._begin({"type": "text", "text": ""})
        yield from self._end()
        reason, sequence = _stop(result, has_calls=has_calls)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self.message |= {**delta, "usage": make_usage(result.generation, len(result.tokens))}
        yield _event("message_delta", delta=delta, usage=self.message["usage"])
        yield _event("message_stop")

    @property
    def _block(self) -> dict[str, Any]:
        return self.message["content"][-1]

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._end()
        self.message["content"].append(block)
        self._arguments, self._is_open = "", True
        yield _event("content_block_start", index=self._index, content_block=dict(block))
        if self._index == 0:
            yield _event("ping")

    def _end(self) -> Iterator[Event]:
        if self._is_open:
            self._is_open = False
            if self._block["type"] == "tool_use":
                self._block["input"] = read_arguments(self._arguments)
            yield _event("content_block_stop", index=self._index)

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=self._index, delta=delta)


def make_usage(generation: Generation, tokens: int) -> dict[str, int]:
    """Return numbers of tokens; those of the prompt that were cached are counted apart."""
    return {
        "input_tokens": generation.prompt_tokens - generation.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": generation.cached_tokens,
        "output_tokens": tokens,
    }


def _stop(result: Result, *, has_calls: bool) -> tuple[str, str | None]:
    """Return the reason of the end, and the stop sequence if it is one."""
    if result.finish_reason == "content_filter":
        return "refusal", None
    if result.finish_reason == "length":
        return "max_tokens", None
    if has_calls:
        return "tool_use", None
    return ("stop_sequence", result.stop) if isinstance(result.stop, str) else ("end_turn", None)


def _event(kind: str, **fields: Any) -> Event:
    return kind, {"type": kind, **fields}
