"""`/v1/chat/completions`: answers in a conversation, with images, tools and structured output."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemwright.errors import RequestError
from gemwright.generate.prompts import Ids, Prompt
from gemwright.serve import collect, grammar, tools
from gemwright.serve.collect import Result
from gemwright.serve.conversation import encode_messages
from gemwright.serve.generation import Generation
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
from gemwright.serve.openai import replies
from gemwright.serve.openai.messages import ChatMessage, read_messages
from gemwright.serve.openai.replies import Head, StreamOptions
from gemwright.serve.prepare import Parameters, make_requests
from gemwright.serve.request import Update

_REFUSED = {
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "audio": "leave it out: the server writes text.",
    "web_search_options": "leave it out, or offer a search as a tool.",
    "use_beam_search": "leave it out.",
    "structured_outputs": "use response_format.",
    "grammar": "use response_format.",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), "use response_format."),
}
_WITHOUT_EFFECT = replies.WITHOUT_EFFECT | {
    *("parallel_tool_calls", "prediction", "reasoning_effort", "verbosity", "modalities")
}


class ChatRequest(Parameters, kw_only=True):
    """The body of a request."""

    messages: list[ChatMessage]
    model: str = ""
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


async def chat(request: Request) -> Response:
    """Answer a request for the next message of a conversation."""
    wanted = await _read(request)
    served = await get_model(request, wanted.model)
    prompt, rule = await _encode(request, served, wanted)
    if wanted.max_completion_tokens is not None:
        wanted.max_tokens = wanted.max_completion_tokens
    requests = make_requests(
        served,
        prompt,
        wanted,
        stop_ids=served.model.chat_stop_ids,
        top_logprobs=_top_logprobs(wanted),
        grammar=rule,
    )
    reply = _Reply(served, wanted)
    async with AsyncExitStack() as stack:
        generations = await stack.enter_async_context(collect.start(served, requests))
        if wanted.stream:
            return stream_events(request, reply.events(generations), stack.pop_all())
        results = await until_disconnect(request, collect.collect(generations))
        return JSONResponse(reply.whole(results))


async def count_input_tokens(request: Request) -> Response:
    """Answer with the number of tokens of a conversation."""
    wanted = await _read(request)
    served = await get_model(request, wanted.model)
    prompt, _ = await _encode(request, served, wanted)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt)})


async def _read(request: Request) -> ChatRequest:
    fields = await read_json(request)
    refuse(fields, _REFUSED, (False, [], {}, "none"))
    if fields.get("modalities", ["text"]) != ["text"]:
        raise RequestError("modalities must be ['text']: the server writes text.", param="modalities")
    wanted = convert(fields, ChatRequest, _WITHOUT_EFFECT)
    replies.check_stream_options(wanted.stream, wanted.stream_options)
    return wanted


async def _encode(request: Request, served: ServedModel, wanted: ChatRequest) -> tuple[Ids | Prompt, str | None]:
    """Return the prompt of a conversation, and the grammar of its answer."""
    messages = read_messages(wanted.messages)
    rule = None if wanted.response_format is None else grammar.from_response_format(wanted.response_format)
    if wanted.tools:
        messages, call = tools.prepare(wanted.tools, wanted.tool_choice, messages)
        rule = call or rule
    settings = settings_of(request)
    return await encode_messages(served, messages, settings, variables=wanted.chat_template_kwargs), rule


def _top_logprobs(wanted: ChatRequest) -> int | None:
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return (wanted.top_logprobs or 0) if wanted.logprobs else None


class _Reply:
    """The reply to a request, whole or in events."""

    def __init__(self, served: ServedModel, wanted: ChatRequest):
        self._tokenizer, self._wanted = served.model.tokenizer, wanted
        kind = "chat.completion.chunk" if wanted.stream else "chat.completion"
        self._head = Head(kind, served.name, replies.new_id("chatcmpl-"))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """Return the reply with complete answers."""
        tokens = sum(len(result.tokens) for result in results)
        usage = replies.usage([result.generation for result in results], self._wanted.n, tokens)
        return self._head(choices=[self._choice(*pair) for pair in enumerate(results)], usage=usage)

    def _choice(self, index: int, result: Result) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
        logprobs = replies.chat_logprobs(self._tokenizer, result.logprobs) if self._wanted.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": result.finish_reason}

    async def events(self, generations: Sequence[Generation]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the parts of the reply as they come."""
        options = self._wanted.stream_options or StreamOptions()
        tokens = 0
        for index in range(len(generations)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)
        async for index, update in collect.merge(generations):
            tokens += len(update.tokens)
            if update.text or update.logprobs:
                yield self._chunk(index, {"content": update.text}, update)
            if update.finish_reason is not None:
                yield self._chunk(index, {}, None, update.finish_reason)
        if options.include_usage:
            yield self._head(choices=[], usage=replies.usage(generations, self._wanted.n, tokens))

    def _chunk(
        self, index: int, delta: dict[str, Any], update: Update | None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if update is not None and self._wanted.logprobs:
            logprobs = replies.chat_logprobs(self._tokenizer, update.logprobs)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head(choices=[choice])
