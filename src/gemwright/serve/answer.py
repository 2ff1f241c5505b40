"""Answers for the APIs that say in other words what OpenAI's chat says.

Their requests become the fields of OpenAI's chat, and a `Writer` makes their replies from the parts of an answer.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import msgspec
from starlette.requests import Request

from gemwright.generate.prompts import Ids, Prompt
from gemwright.serve import grammar, tools
from gemwright.serve.collect import Result, merge, start
from gemwright.serve.conversation import encode_messages
from gemwright.serve.generation import Generation
from gemwright.serve.http import convert, settings_of
from gemwright.serve.models import ServedModel
from gemwright.serve.openai.chat import ChatRequest
from gemwright.serve.openai.messages import read_messages
from gemwright.serve.prepare import make_requests
from gemwright.serve.request import GenerationRequest, TokenLogprob

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
        has_tools: Whether the text may call tools.
    """

    served: ServedModel
    generation: Generation
    has_tools: bool = False

    async def write(self, writer: Writer[Event]) -> AsyncGenerator[Event, None]:
        """Yield the parts of the reply as they come."""
        result, has_begun = Result(self.generation), False
        async for _, update in merge([self.generation]):
            result.add(update)
            if not has_begun:
                has_begun = True
                for event in writer.start(self.generation):
                    yield event
            if update.text or update.logprobs:
                for event in writer.text(update.text, update.logprobs):
                    yield event
        for event in writer.finish(result, has_calls=False):
            yield event

    async def finish(self, writer: Writer[Any]) -> None:
        """Let a writer take the whole answer."""
        async for _ in self.write(writer):
            pass


async def begin(served: ServedModel, request: GenerationRequest, stack: AsyncExitStack) -> Answer:
    """Queue a request, which is cancelled when `stack` is left.

    Raises:
        RequestError: As `ServedModel.generate`.
    """
    (generation,) = await stack.enter_async_context(start(served, [request]))
    return Answer(served, generation)


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
    wanted = convert(fields, ChatRequest)
    prompt, rule = await encode_chat(request, served, wanted)
    (made,) = make_requests(
        served,
        prompt,
        wanted,
        stop_ids=served.model.chat_stop_ids,
        top_logprobs=(wanted.top_logprobs or 0) if wanted.logprobs else None,
        grammar=rule,
    )
    (generation,) = await stack.enter_async_context(start(served, [made]))
    return Answer(served, generation, bool(wanted.tools))


async def encode_chat(request: Request, served: ServedModel, wanted: ChatRequest) -> tuple[Ids | Prompt, str | None]:
    """Return the prompt of a conversation, and the grammar of its answer.

    Raises:
        RequestError: A message, a tool or a format is wrong.
    """
    messages = read_messages(wanted.messages)
    rule = None if wanted.response_format is None else grammar.from_response_format(wanted.response_format)
    if wanted.tools:
        messages, call = tools.prepare(wanted.tools, wanted.tool_choice, messages)
        rule = call or rule
    return await encode_messages(served, messages, settings_of(request), variables=wanted.chat_template_kwargs), rule


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call; none if the answer ended before they did."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}
