"""Functions that a model may call: validated, described in the prompt, and parsed from the text.

use = tools.prepare(template, messages, tools, tool_choice)
ids = template.encode(use.messages, tools=use.template_tools)   # after merging roles etc.
request = GenerationRequest(ids, grammar=use.grammar, skip_control_tokens=use.skip_control_tokens, ...)
parser = use.parser()
for each update: piece = parser.push(update.text)
last = parser.finish()
# finish_reason "tool_calls" if parser.has_calls and the engine's reason is "stop"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemwright.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class ToolCallDelta:
    """The next part of a call: its id and name in the first part, then its arguments in pieces.

    Attributes:
        index: Number of the call, from 0.
        id: "call_..." in the first part, else None.
        name: The function in the first part, else None.
        arguments: The next piece of the arguments, which together are a JSON object.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ParsedText:
    """A part of a text: content for the user, and parts of calls."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallParser:
    """Separates calls from content, in a text that arrives in pieces.

    A call is complete before any part of it is given, so arguments are always valid JSON; a text that turns out not to
    be a call, or is cut off within one, is content.
    """

    has_calls: bool

    def push(self, text: str) -> ParsedText:
        """Return what the next piece of the text adds."""
        raise NotImplementedError

    def finish(self) -> ParsedText:
        """Return the rest, at the end of the text, whatever ended it."""
        raise NotImplementedError


@dataclass(frozen=True)
class ToolUse:
    """How a request uses functions.

    Attributes:
        messages: The conversation with descriptions of functions, calls and results as the template reads them. The
            descriptions may be a system message in front.
        template_tools: What to pass to the template as `tools`.
        grammar: The grammar of a required call; None if the model decides.
        stop_ids: Control tokens that end the text after calls, beside those of the model.
        skip_control_tokens: For `GenerationRequest`; False if calls are marked by control tokens.
    """

    messages: list[dict[str, Any]]
    template_tools: list[dict[str, Any]] | None = None
    grammar: str | None = None
    stop_ids: tuple[int, ...] = ()
    skip_control_tokens: bool = True

    def parser(self) -> ToolCallParser:
        """Return a parser of one text."""
        raise NotImplementedError


def prepare(
    template: ChatTemplate | None,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel: bool = True,
) -> ToolUse:
    """Return how a conversation with functions is to be encoded, constrained and parsed.

    Args:
        template: The chat template of the model; None for one without chat.
        messages: In OpenAI's form, before roles are merged.
        tools: In OpenAI's form. None and an empty list are alike: calls and results in messages are still read.
        tool_choice: "none", "auto", "required" or `{"type": "function", "function": {"name": ...}}`; auto by default.
        parallel: Whether there may be several calls in one answer.

    Raises:
        RequestError: A tool or the choice is invalid (400, with param).
    """
    raise NotImplementedError
