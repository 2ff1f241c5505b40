"""The response object of OpenAI, complete or as events.

Source: openai-python, src/openai/types/responses/
"""

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from gemwright.errors import RequestError
from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.openai.replies import chat_logprobs, new_id
from gemwright.serve.apis.responses.fields import ResponseFields
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import TokenLogprob
from gemwright.serve.models import ServedModel

Event = tuple[str, dict[str, Any]]
"""The name of a server-sent event, and its data."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the reason for the end of its text."""


class ResponseWriter:
    """Builds one response: its items one after another, each with its events.

    Attributes:
        response: The response so far.
    """

    def __init__(self, fields: ResponseFields, served: ServedModel):
        self._tokenizer = served.model.tokenizer
        self._number = -1
        self.response: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": fields.metadata,
            "model": served.name,
            "output": [],
            "parallel_tool_calls": fields.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": fields.temperature,
            "text": {"format": fields.text.get("format") or {"type": "text"}},
            "tool_choice": fields.tool_choice or "auto",
            "tools": fields.tools,
            "top_p": fields.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def start(self, generation: Generation) -> Iterator[Event]:
        """Yield the first events."""
        yield self._event("response.created", response=dict(self.response))
        yield self._event("response.in_progress", response=dict(self.response))

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[Event]:
        """Yield the events of more text, with the log-probabilities of its tokens if they are reported."""
        if self._kind != "message":
            yield from self._close()
            yield from self._add({"type": "message", "id": new_id("msg_"), "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._item_event("response.content_part.added", content_index=0, part=deepcopy(part))
            self._item["content"].append(part)
        part, entries = self._item["content"][0], chat_logprobs(self._tokenizer, logprobs)["content"]
        part["text"] += text
        part["logprobs"] += entries
        yield self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=entries)

    def call(self, identifier: str, name: str) -> Iterator[Event]:
        """Yield the events that begin a call of a function."""
        yield from self._close()
        item = {"type": "function_call", "id": new_id("fc_"), "call_id": identifier, "name": name, "arguments": ""}
        yield from self._add(item)

    def arguments(self, text: str) -> Iterator[Event]:
        """Yield the event of more JSON of the arguments of the last call."""
        self._item["arguments"] += text
        yield self._item_event("response.function_call_arguments.delta", delta=text)

    def finish(self, result: Result, *, has_calls: bool) -> Iterator[Event]:
        """Yield the last events; a response without output has an empty message."""
        if not self.response["output"]:
            yield from self.text("")
        is_complete = result.finish_reason == "stop"
        status = "completed" if is_complete else "incomplete"
        yield from self._close(status)
        self.response |= {"status": status, "usage": _usage(result)}
        if is_complete:
            self.response["completed_at"] = int(time.time())
        else:
            self.response["incomplete_details"] = {"reason": _INCOMPLETE[result.finish_reason]}
        yield self._event(f"response.{status}", response=self.response)

    def fail(self, error: RequestError) -> Event:
        """Return the event of an error."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    @property
    def _item(self) -> dict[str, Any]:
        return self.response["output"][-1]

    @property
    def _kind(self) -> str:
        """Return the type of the item that is being written."""
        output = self.response["output"]
        return output[-1]["type"] if output and output[-1]["status"] == "in_progress" else ""

    def _add(self, item: dict[str, Any]) -> Iterator[Event]:
        item["status"] = "in_progress"
        self.response["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=deepcopy(item))

    def _close(self, status: str = "completed") -> Iterator[Event]:
        """Yield the events at the end of the item that is being written."""
        if not self._kind:
            return
        item = self._item
        if self._kind == "message":
            part = item["content"][0]
            done = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
            yield self._item_event("response.output_text.done", **done)
            yield self._item_event("response.content_part.done", content_index=0, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._item_event("response.function_call_arguments.done", **done)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _item_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number, **fields}


def _usage(result: Result) -> dict[str, Any]:
    prompt, output = result.generation.prompt_tokens, len(result.tokens)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": result.generation.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + output,
    }
