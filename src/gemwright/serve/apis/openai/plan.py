"""From the fields of a chat request to the requests for its answers, with tools and structured output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemwright.errors import RequestError
from gemwright.serve.apis.conversation import encode_messages, find_texts
from gemwright.serve.apis.openai.messages import ChatMessage, read_messages
from gemwright.serve.apis.openai.replies import StreamOptions
from gemwright.serve.apis.prepare import Parameters, make_requests
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.models import ServedModel
from gemwright.serve.settings import Settings
from gemwright.serve.structured import grammar, tools
from gemwright.serve.structured.tools import ToolCallParser, ToolUse


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
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """How a chat request is answered.

    Attributes:
        requests: A request for each answer.
        parser: Makes a parser of an answer's calls; None if there can be none.
    """

    requests: list[GenerationRequest]
    parser: Callable[[], ToolCallParser] | None


async def plan(served: ServedModel, wanted: ChatRequest, settings: Settings) -> Plan:
    """Return how a chat request is answered.

    Raises:
        RequestError: A field is wrong, or the conversation does not fit in the context.
        GemwrightError: The chat template refuses the conversation, or an image cannot be read.
    """
    top_logprobs = _top_logprobs(wanted)
    rule = None
    if wanted.response_format is not None:
        rule = await served.run(grammar.from_response_format, wanted.response_format)
    use, has_tools = await served.run(_use_of_tools, served, wanted)
    prompt = await encode_messages(served, use.messages, settings, use.template_tools, wanted.chat_template_kwargs)
    if wanted.max_completion_tokens is not None:
        wanted.max_tokens = wanted.max_completion_tokens
    wanted.skip_special_tokens &= use.skip_control_tokens
    requests = make_requests(
        served,
        prompt,
        wanted,
        stop_ids=(*served.model.chat_stop_ids, *use.stop_ids),
        top_logprobs=top_logprobs,
        grammar=use.grammar or rule,
        texts=find_texts(use.messages),
    )
    return Plan(requests, use.parser if has_tools else None)


def _use_of_tools(served: ServedModel, wanted: ChatRequest) -> tuple[ToolUse, bool]:
    """Return the conversation with its tools, and whether an answer may call one."""
    messages = read_messages(wanted.messages)
    has_tools = bool(wanted.tools) and wanted.tool_choice != "none"
    if not wanted.tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        return ToolUse(messages), False
    template = served.model.chat_template
    use = tools.prepare(template, messages, wanted.tools, wanted.tool_choice, wanted.parallel_tool_calls)
    return use, has_tools


def _top_logprobs(wanted: ChatRequest) -> int | None:
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return (wanted.top_logprobs or 0) if wanted.logprobs else None
