"""The lines of JSON that answer a request, each with a part of the text, the last with counts and times.

Source: ollama, docs/api.md and api/types.go
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from gemwright.errors import RequestError
from gemwright.serve.apis.answer import read_arguments
from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.openai.replies import chat_logprobs
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import TokenLogprob
from gemwright.serve.models import ServedModel

Kind = Literal["generate", "chat"]


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": str(error)}


def make_line(model: str, kind: Kind, text: str = "", calls: Sequence[Any] = ()) -> dict[str, Any]:
    """Return a line with a part of a text, or with calls of tools."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    message = {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})
    part = {"response": text} if kind == "generate" else {"message": message}
    return {"model": model, "created_at": now, **part, "done": False}


class LineWriter:
    """Writes the lines of one answer.

    Attributes:
        whole: The whole answer as one line.
    """

    def __init__(self, served: ServedModel, name: str, kind: Kind, *, logprobs: bool):
        """Make a writer.

        Args:
            served: The model.
            name: Its name in the request.
            kind: The endpoint.
            logprobs: Whether log-probabilities are reported.
        """
        self._tokenizer, self._name = served.model.tokenizer, name
        self._kind: Kind = kind
        self._reports_logprobs = logprobs
        self._text, self._logprobs = "", list[TokenLogprob]()
        self._calls, self._arguments, self._is_call_open = list[dict[str, Any]](), "", False
        self.whole: dict[str, Any] = {}

    def start(self, generation: Generation) -> Iterator[dict[str, Any]]:
        """Yield nothing: the first line has text."""
        yield from ()

    def text(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[dict[str, Any]]:
        """Yield the line of more text."""
        self._text += text
        self._logprobs += logprobs
        yield self._line(text, logprobs=logprobs)

    def call(self, identifier: str, name: str) -> Iterator[dict[str, Any]]:
        """Yield the line of the call before, as a line has a whole call."""
        yield from self._end_call()
        self._is_call_open, self._arguments = True, ""
        self._calls.append({"id": identifier, "function": {"index": len(self._calls), "name": name}})

    def arguments(self, text: str) -> Iterator[dict[str, Any]]:
        """Yield nothing, as a line has a whole call."""
        self._arguments += text
        yield from ()

    def finish(self, result: Result, *, has_calls: bool) -> Iterator[dict[str, Any]]:
        """Yield the last lines."""
        yield from self._end_call()
        end = {"done": True, "done_reason": result.finish_reason, **make_metrics(result)}
        self.whole = self._line(self._text, self._calls, self._logprobs) | end
        yield self._line("") | end

    def _end_call(self) -> Iterator[dict[str, Any]]:
        if self._is_call_open:
            self._is_call_open = False
            self._calls[-1]["function"]["arguments"] = read_arguments(self._arguments)
            yield self._line("", self._calls[-1:])

    def _line(self, text: str, calls: Sequence[Any] = (), logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        line = make_line(self._name, self._kind, text, calls)
        if self._reports_logprobs and logprobs:
            line["logprobs"] = chat_logprobs(self._tokenizer, logprobs)["content"]
        return line


def make_metrics(result: Result) -> dict[str, int]:
    """Return the numbers of tokens of an answer and its times in nanoseconds."""
    generation = result.generation
    end = generation.finished or time.monotonic()
    first = generation.first or end
    start = generation.started or generation.arrival
    return {
        "total_duration": _nanoseconds(end - generation.arrival),
        "load_duration": 0,
        "prompt_eval_count": generation.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(first - start),
        "eval_count": len(result.tokens),
        "eval_duration": _nanoseconds(end - first),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
