"""`/v1/chat/completions`: answers in a conversation, with images, tools and structured output."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemwright.errors import RequestError
from gemwright.serve.apis import collect
from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.openai import replies
from gemwright.serve.apis.openai.plan import ChatRequest, Plan, plan
from gemwright.serve.apis.openai.replies import Head, StreamOptions
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import FinishReason, TokenLogprob, Update
from gemwright.serve.http import (
    JSONResponse,
    convert,
    get_model,
    read_json,
    refuse,
    settings_of,
    stream_events,
    until_disconnect,
)
from gemwright.serve.models import ServedModel
from gemwright.serve.structured.tools import ParsedText

_REFUSED = replies.REFUSED | {
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "audio": "leave it out: the server writes text.",
    "web_search_options": "leave it out, or offer a search as a tool.",
}
_WITHOUT_EFFECT = (
    replies.WITHOUT_EFFECT
    | {"prediction", "reasoning_effort", "verbosity", "modalities"}
    | {"add_generation_prompt", "continue_final_message"}  # as the last message decides
)


async def chat(request: Request) -> Response:
    """Answer a request for the next message of a conversation."""
    wanted = await _read(request)
    served = await get_model(request, wanted.model)
    planned = await plan(served, wanted, settings_of(request))
    reply = _Reply(served, wanted, planned)
    async with AsyncExitStack() as stack:
        generations = await stack.enter_async_context(collect.start(served, planned.requests))
        if wanted.stream:
            return stream_events(request, reply.events(generations), stack.pop_all())
        results = await until_disconnect(request, collect.collect(generations))
        return JSONResponse(reply.whole(results))


async def count_input_tokens(request: Request) -> Response:
    """Answer with the number of tokens of a conversation."""
    wanted = await _read(request)
    planned = await plan(await get_model(request, wanted.model), wanted, settings_of(request))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(planned.requests[0].prompt)})


async def _read(request: Request) -> ChatRequest:
    fields = await read_json(request)
    refuse(fields, _REFUSED, (False, [], {}, "none"))
    if fields.get("modalities", ["text"]) != ["text"]:
        raise RequestError("modalities must be ['text']: the server writes text.", param="modalities")
    wanted = convert(fields, ChatRequest, _WITHOUT_EFFECT)
    replies.check_stream_options(wanted.stream, wanted.stream_options)
    return wanted


class _Reply:
    """The reply to a request, whole or in events."""

    def __init__(self, served: ServedModel, wanted: ChatRequest, planned: Plan):
        self._tokenizer, self._wanted, self._planned = served.model.tokenizer, wanted, planned
        kind = "chat.completion.chunk" if wanted.stream else "chat.completion"
        self._head = Head(kind, served.name, replies.new_id("chatcmpl-"))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """Return the reply with complete answers."""
        tokens = sum(len(result.tokens) for result in results)
        usage = replies.usage([result.generation for result in results], self._wanted.n, tokens)
        return self._head(choices=[self._choice(*pair) for pair in enumerate(results)], usage=usage)

    def _choice(self, index: int, result: Result) -> dict[str, Any]:
        text = _AnswerText(self._planned)
        deltas = [*text.push(result.text), *text.finish()]
        content = "".join(delta.get("content", "") for delta in deltas)
        calls = _join_calls(deltas)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        return {
            "index": index,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": text.finish_reason(result.finish_reason),
        }

    async def events(self, generations: Sequence[Generation]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the parts of the reply as they come."""
        options = self._wanted.stream_options or StreamOptions()
        texts = [_AnswerText(self._planned) for _ in generations]
        counts = [0] * len(generations)
        for index in range(len(generations)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, update in collect.merge(generations):
            counts[index] += len(update.tokens)
            for chunk in self._chunks(index, texts[index], update):
                if options.continuous_usage_stats:
                    chunk["usage"] = replies.usage([generations[index]], 1, counts[index])
                yield chunk
        if options.include_usage:
            yield self._head(choices=[], usage=replies.usage(generations, self._wanted.n, sum(counts)))

    def _chunks(self, index: int, text: "_AnswerText", update: Update) -> Iterator[dict[str, Any]]:
        """Yield the parts of a choice in an update."""
        ended = update.finish_reason is not None
        deltas = [*text.push(update.text), *(text.finish() if ended else ())]
        if not deltas and update.logprobs:
            deltas = [{"content": ""}]
        logprobs = update.logprobs
        for delta in deltas:
            yield self._chunk(index, delta, logprobs)
            logprobs = ()
        if update.finish_reason is not None:
            yield self._chunk(index, {}, (), text.finish_reason(update.finish_reason))

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        given = self._logprobs(logprobs) if logprobs else None
        return self._head(choices=[{"index": index, "delta": delta, "logprobs": given, "finish_reason": finish_reason}])

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return replies.chat_logprobs(self._tokenizer, logprobs) if self._wanted.logprobs else None


class _AnswerText:
    """The text of an answer as deltas of OpenAI's streams, with its calls of tools apart."""

    def __init__(self, planned: Plan):
        self._parser = None if planned.parser is None else planned.parser()

    def push(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas of the next part of the text."""
        if self._parser is None:
            return [{"content": text}] if text else []
        return _deltas(self._parser.push(text)) if text else []

    def finish(self) -> list[dict[str, Any]]:
        """Return the deltas of the rest."""
        return [] if self._parser is None else _deltas(self._parser.finish())

    def finish_reason(self, reason: FinishReason) -> str:
        """Return the reason for the end, after `finish`."""
        return "tool_calls" if reason == "stop" and self._parser is not None and self._parser.has_calls else reason


def _deltas(parsed: ParsedText) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"content": parsed.content}] if parsed.content else []
    for call in parsed.calls:
        named = {} if call.id is None else {"id": call.id, "type": "function"}
        function = {"arguments": call.arguments} if call.name is None else {"name": call.name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": call.index, **named, "function": function}]})
        if call.name is not None and call.arguments:
            rest = {"index": call.index, "function": {"arguments": call.arguments}}
            deltas.append({"tool_calls": [rest]})
    return deltas


def _join_calls(deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the whole calls of tools from their deltas."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls.append({"id": part["id"], "type": "function", "function": dict(part["function"])})
            else:
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    return calls
