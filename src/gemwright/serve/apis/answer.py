"""Answers for the APIs that say in other words what OpenAI's chat says.

Their requests become the fields of OpenAI's chat, and a `Writer` makes their replies from the parts of an answer.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import msgspec
from starlette.requests import Request

from gemwright.serve.apis.collect import Result, merge, start
from gemwright.serve.apis.openai.plan import ChatRequest, Plan, plan
from gemwright.serve.batching.generation import Generation
from gemwright.serve.batching.request import GenerationRequest, TokenLogprob, Update
from gemwright.serve.http import convert, settings_of
from gemwright.serve.models import ServedModel
from gemwright.serve.structured.tools import ParsedText, ToolCallParser

Event = TypeVar("Event", covariant=True)


class Writer(Protocol[Event]):
    """Writes the reply of an API: takes the parts of an answer in order, and yields what a stream sends for each."""

    def start(self, generation: Generation) -> Iterator[Event]:
        """Take the beginning, when the numbers of tokens of the prompt are known."""
        ...

    def text(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[Event]:
        """Take more text, with the log-probabilities of its tokens if they were requested."""
        ...

    def call(self, identifier: str, name: str) -> Iterator[Event]:
        """Take the beginning of a call of a tool."""
        ...

    def arguments(self, text: str) -> Iterator[Event]:
        """Take more JSON of the arguments of the last call."""
        ...

    def finish(self, result: Result, *, has_calls: bool) -> Iterator[Event]:
        """Take the end, with all tokens of the answer and the reason that it ended."""
        ...


@dataclass(frozen=True)
class Answer:
    """An answer that is being generated.

    Attributes:
        served: The model.
        generation: The running request.
        parser: Separates calls of tools from the text; None if there can be none.
    """

    served: ServedModel
    generation: Generation
    parser: ToolCallParser | None = None

    async def write(self, writer: Writer[Event]) -> AsyncGenerator[Event, None]:
        """Yield the parts of the reply as they come."""
        result, has_begun = Result(self.generation), False
        async for _, update in merge([self.generation]):
            result.add(update)
            if not has_begun:
                has_begun = True
                for event in writer.start(self.generation):
                    yield event
            for part in self._parse(update):
                for event in _write(writer, part, update.logprobs):
                    yield event
        has_calls = self.parser is not None and self.parser.has_calls
        for event in writer.finish(result, has_calls=has_calls):
            yield event

    async def finish(self, writer: Writer[Any]) -> None:
        """Let a writer take the whole answer."""
        async for _ in self.write(writer):
            pass

    def _parse(self, update: Update) -> list[ParsedText]:
        """Return the parts of an update, whose log-probabilities belong to the first."""
        if self.parser is None:
            return [ParsedText(update.text)]
        rest = [self.parser.finish()] if update.finish_reason else []
        return [self.parser.push(update.text), *rest]


def _write(writer: Writer[Event], part: ParsedText, logprobs: Sequence[TokenLogprob]) -> Iterator[Event]:
    if part.content or logprobs:
        yield from writer.text(part.content, logprobs)
    for call in part.calls:
        if call.name is not None:
            yield from writer.call(call.id or "", call.name)
        if call.arguments:
            yield from writer.arguments(call.arguments)


async def begin(
    served: ServedModel, request: GenerationRequest, stack: AsyncExitStack, parser: ToolCallParser | None = None
) -> Answer:
    """Queue a request, which is cancelled when `stack` is left.

    Raises:
        RequestError: As `ServedModel.generate`.
    """
    (generation,) = await stack.enter_async_context(start(served, [request]))
    return Answer(served, generation, parser)


async def begin_chat(request: Request, served: ServedModel, fields: Mapping[str, Any], stack: AsyncExitStack) -> Answer:
    """Queue a request for the next message of a conversation, which is cancelled when `stack` is left.

    Args:
        request: The HTTP request.
        served: The model.
        fields: The fields of OpenAI's chat.
        stack: The context of the answer.

    Raises:
        RequestError: A field is wrong, or as `ServedModel.generate`.
    """
    planned = await plan_chat(request, served, fields)
    parser = None if planned.parser is None else planned.parser()
    return await begin(served, planned.requests[0], stack, parser)


async def plan_chat(request: Request, served: ServedModel, fields: Mapping[str, Any]) -> Plan:
    """Return how a request with the fields of OpenAI's chat is answered.

    Raises:
        RequestError: A field is wrong.
    """
    return await plan(served, convert(fields, ChatRequest), settings_of(request))


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call; none if the answer ended before they did."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}
