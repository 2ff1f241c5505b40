"""`/v1/completions`: the continuation of texts and token ids, with their log-probabilities."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemwright.api import Model
from gemwright.errors import RequestError
from gemwright.generate.prompts import Ids, Prompt, token_ids
from gemwright.serve.apis import collect
from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.openai import replies
from gemwright.serve.apis.openai.replies import Head, LegacyLogprobs, StreamOptions
from gemwright.serve.apis.prepare import Parameters, encode_infill, encode_prompt, infill_markers, make_requests
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest, Update
from gemwright.serve.http import (
    JSONResponse,
    convert,
    get_model,
    read_json,
    refuse,
    stream_events,
    until_disconnect,
)
from gemwright.serve.models import ServedModel
from gemwright.serve.structured import grammar
from gemwright.text import infill

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default."""
MAX_PROMPTS = 256
"""Maximum number of prompts of a request."""
_REFUSED = replies.REFUSED | {
    "prompt_logprobs": "use echo with logprobs.",
}


class CompletionRequest(Parameters, kw_only=True):
    """The body of a request."""

    prompt: str | list[str | int | list[int]]
    model: str = ""
    best_of: int | None = None
    suffix: str | None = None
    echo: bool = False
    logprobs: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    add_special_tokens: bool = True
    return_token_ids: bool = False
    response_format: dict[str, Any] | None = None


async def complete(request: Request) -> Response:
    """Answer a request for completions."""
    fields = await read_json(request)
    refuse(fields, _REFUSED)
    wanted = convert(fields, CompletionRequest, replies.WITHOUT_EFFECT)
    replies.check_stream_options(wanted.stream, wanted.stream_options)
    served = await get_model(request, wanted.model)
    requests = await served.run(make_all, served, wanted)
    reply = _Reply(served, wanted)
    async with AsyncExitStack() as stack:
        generations = await stack.enter_async_context(collect.start(served, requests))
        if wanted.stream:
            return stream_events(request, reply.events(generations), stack.pop_all())
        results = await until_disconnect(request, collect.collect(generations))
        return JSONResponse(reply.whole(results))


def make_all(served: ServedModel, wanted: CompletionRequest) -> list[GenerationRequest]:
    """Return the requests for all texts of all prompts.

    Raises:
        RequestError: A field is wrong.
    """
    prompts = _split(wanted.prompt)
    if wanted.best_of is not None and wanted.best_of > wanted.n:
        raise RequestError("best_of is not supported; use n, and choose by the log-probabilities.", param="best_of")
    if wanted.max_tokens == 0 and not wanted.echo:
        raise RequestError("max_tokens is 0, which needs echo: true to return the prompt.", param="max_tokens")
    if wanted.logprobs is not None and wanted.logprobs < 0:
        raise RequestError(f"logprobs is {wanted.logprobs}, and it must be at least 0.", param="logprobs")
    if wanted.suffix is not None and wanted.echo:
        raise RequestError("echo does not work with suffix; leave one of them out.", param="echo")
    made: list[GenerationRequest] = []
    rule = None if wanted.response_format is None else grammar.from_response_format(wanted.response_format)
    for prompt in prompts:
        encoded, stop_ids = _encode(served.model, prompt, wanted)
        made += make_requests(
            served,
            encoded,
            wanted,
            stop_ids=stop_ids,
            max_tokens=DEFAULT_MAX_TOKENS,
            top_logprobs=wanted.logprobs,
            prompt_logprobs=wanted.echo and wanted.logprobs is not None,
            grammar=rule,
        )
    return made


def _split(prompt: str | list[str | int | list[int]]) -> Sequence[str | Sequence[int]]:
    """Return the prompts of a request: one or several texts, or lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    texts = [each for each in prompt if not isinstance(each, int)]
    if ids or not texts or len({type(text) for text in texts}) > 1:
        raise RequestError(
            "prompt must be a text, a list of texts, a list of token ids, or a list of lists of them.", param="prompt"
        )
    if len(texts) > MAX_PROMPTS:
        raise RequestError(f"prompt has {len(texts)} prompts, and at most {MAX_PROMPTS} are allowed.", param="prompt")
    return texts


def _encode(model: Model, prompt: str | Sequence[int], wanted: CompletionRequest) -> tuple[Ids | Prompt, Sequence[int]]:
    """Return a prompt and the ids that end its text."""
    if wanted.suffix is not None:
        if not isinstance(prompt, str):
            raise RequestError("suffix needs a prompt of text.", param="suffix")
        return encode_infill(model, prompt, wanted.suffix), infill.stop_ids(model.tokenizer)
    encoded = encode_prompt(model, prompt, bos=wanted.add_special_tokens, markers=True)
    markers = infill_markers(model.tokenizer).values()
    is_infill = not set(markers).isdisjoint(token_ids(encoded))
    return encoded, (*model.stop_ids, *infill.stop_ids(model.tokenizer)) if is_infill else model.stop_ids


class _Reply:
    """The reply to a request, whole or in events."""

    def __init__(self, served: ServedModel, wanted: CompletionRequest):
        self._tokenizer, self._wanted = served.model.tokenizer, wanted
        self._head = Head("text_completion", served.name, replies.new_id("cmpl-"))
        self._prompts = _split(wanted.prompt)

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """Return the reply with complete texts."""
        choices = [
            self._choice(
                index,
                self._echoed(index) + result.text,
                self._logprobs(LegacyLogprobs(self._tokenizer), result.generation, result.logprobs),
                result.finish_reason,
                self._ids(result.generation, result.tokens, first=True),
            )
            for index, result in enumerate(results)
        ]
        tokens = sum(len(result.tokens) for result in results)
        generations = [result.generation for result in results]
        return self._head(choices=choices, usage=replies.usage(generations, self._wanted.n, tokens))

    async def events(self, generations: Sequence[Generation]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the parts of the reply as they come."""
        options = self._wanted.stream_options or StreamOptions()
        logprobs = [LegacyLogprobs(self._tokenizer) for _ in generations]
        counts = [0] * len(generations)
        begun: set[int] = set()
        async for index, update in collect.merge(generations):
            counts[index] += len(update.tokens)
            choice = self._part(index, generations[index], update, logprobs[index], first=index not in begun)
            begun.add(index)
            if choice is None:
                continue
            chunk = self._head(choices=[choice])
            if options.continuous_usage_stats:
                chunk["usage"] = replies.usage([generations[index]], 1, counts[index])
            elif options.include_usage:
                chunk["usage"] = None
            yield chunk
        if options.include_usage:
            yield self._head(choices=[], usage=replies.usage(generations, self._wanted.n, sum(counts)))

    def _part(
        self, index: int, generation: Generation, update: Update, logprobs: LegacyLogprobs, *, first: bool
    ) -> dict[str, Any] | None:
        """Return the part of a choice in an update, if there is anything in it."""
        text = (self._echoed(index) if first else "") + update.text
        if not (text or update.logprobs or update.finish_reason or (self._wanted.return_token_ids and update.tokens)):
            return None
        given = self._logprobs(logprobs, generation, update.logprobs, first=first)
        ids = self._ids(generation, update.tokens, first=first)
        return self._choice(index, text, given, update.finish_reason, ids)

    def _choice(
        self, index: int, text: str, logprobs: Any, finish_reason: str | None, ids: dict[str, Any]
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason, **ids}

    def _ids(self, generation: Generation, tokens: Sequence[int], *, first: bool) -> dict[str, Any]:
        if not self._wanted.return_token_ids:
            return {}
        prompt = {"prompt_token_ids": list(token_ids(generation.request.prompt))} if first else {}
        return {"token_ids": list(tokens), **prompt}

    def _echoed(self, index: int) -> str:
        """Return the prompt of a choice, if it is part of the text."""
        if not self._wanted.echo:
            return ""
        prompt = self._prompts[index // self._wanted.n]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _logprobs(
        self, legacy: LegacyLogprobs, generation: Generation, logprobs: Sequence[Any], *, first: bool = True
    ) -> dict[str, Any] | None:
        if self._wanted.logprobs is None:
            return None
        return legacy.add([*(generation.prompt_logprobs if first else ()), *logprobs])
