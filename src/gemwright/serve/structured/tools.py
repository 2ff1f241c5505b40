"""Functions that a model may call: validated, described in the prompt, and demanded by a grammar.

    use = tools.prepare(template, messages, tools, tool_choice)
    prompt = template.encode(use.messages, tools=use.template_tools)
    request = GenerationRequest(prompt, grammar=use.grammar, skip_control_tokens=use.skip_control_tokens, ...)
    parser = use.parser()  # gives content and calls for each piece of the text

Models whose chat template takes `tools` are prompted by it, and their own format of calls is parsed. To others, such as
Gemma 3, a system message describes the functions and asks for calls as JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gemwright.errors import RequestError
from gemwright.serve.structured import json_schemas, tool_grammar
from gemwright.serve.structured.tool_formats import JSON, CallFormat, format_of
from gemwright.serve.structured.tool_parser import ParsedText, ToolCallDelta, ToolCallParser
from gemwright.text.chat_template import ChatTemplate

__all__ = ["ParsedText", "ToolCallDelta", "ToolCallParser", "ToolUse", "prepare"]

MAX_TOOLS = 128
"""Maximum number of functions of a request."""
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_INTRODUCTION = """\
You can call functions. To call one, answer with JSON alone, in this form and without other text:
{"name": "the function", "arguments": {"an argument": "its value"}}
"""
_SEVERAL = "To call several, answer with a list of such objects. "
_OTHERWISE = "If no function is needed, answer as usual. "
_MUST = "You must call a function now. "
_LIST = "The functions, with their arguments as JSON schemas:\n"


@dataclass(frozen=True)
class ToolUse:
    """How a request uses functions.

    Attributes:
        messages: The conversation, with descriptions of functions, calls and results as the chat template reads them.
            The descriptions may be a system message in front.
        template_tools: Functions for the template to describe.
        grammar: The grammar of the calls that are required; None if the model decides.
        stop_ids: Control tokens that end the text after calls, besides the model's own.
        skip_control_tokens: See `GenerationRequest`; False if control tokens mark the calls.
        call_format: How the model writes calls.
        names: The functions.
        parallel: Whether there may be several calls.
    """

    messages: list[dict[str, Any]]
    template_tools: list[dict[str, Any]] | None = None
    grammar: str | None = None
    stop_ids: tuple[int, ...] = ()
    skip_control_tokens: bool = True
    call_format: CallFormat = JSON
    names: tuple[str, ...] = ()
    parallel: bool = True

    def parser(self) -> ToolCallParser:
        """Return a parser of one text."""
        return ToolCallParser(self.call_format, self.names, self.parallel)


def prepare(
    template: ChatTemplate | None,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel: bool | None = True,
) -> ToolUse:
    """Return how a conversation with functions is to be prompted, constrained and parsed.

    It may take a second for large schemas: call it in a thread.

    Args:
        template: The chat template of the model.
        messages: In OpenAI's form, before roles are merged.
        tools: In OpenAI's form. None and an empty list are alike.
        tool_choice: "none", "auto", "required" or `{"type": "function", "function": {"name": ...}}`; auto by default.
        parallel: Whether there may be several calls in one answer; None for the default.

    Raises:
        RequestError: A function or the choice is invalid.
    """
    functions = [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or [])]
    if len(functions) > MAX_TOOLS:
        raise _error(f"There are {len(functions)} tools, and at most {MAX_TOOLS} are supported.", "tools")
    names = [function["name"] for function in functions]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise _error(f"Two tools have the name {repeated!r}; give each another.", "tools")
    chosen, is_required = _choose(functions, tool_choice)
    call_format, is_native = format_of(template)
    parallel = parallel is not False
    turns = _native_messages(messages) if is_native else _plain_messages(messages)
    if not chosen:
        return ToolUse(turns)
    if not is_native:
        turns = [{"role": "system", "content": _describe(chosen, is_required, parallel)}, *turns]
    control_tokens = {} if template is None else template.tokenizer.control_tokens
    rule = tool_grammar.required_calls(call_format, chosen, control_tokens, parallel) if is_required else None
    response = control_tokens.get(call_format.response)
    return ToolUse(
        turns,
        [{"type": "function", "function": function} for function in chosen] if is_native else None,
        rule,
        () if response is None else (response,),
        call_format.start not in control_tokens,
        call_format,
        tuple(function["name"] for function in chosen),
        parallel,
    )


def _read_tool(tool: Any, param: str) -> dict[str, Any]:
    """Return the function of a tool, with a schema of its parameters that is an object's."""
    match tool:
        case {"type": "function", "function": Mapping() as given}:
            function = {key: value for key, value in cast(Mapping[str, Any], given).items() if value is not None}
        case _:
            raise _error(f'{param} must be {{"type": "function", "function": {{"name": ...}}}}.', param)
    name, description = function.get("name"), function.get("description", "")
    if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        message = f"The name of {param} must be 1 to 64 letters, digits, underscores or hyphens."
        raise _error(message, f"{param}.function.name")
    if not isinstance(description, str):
        raise _error(f"The description of {name} must be a text.", f"{param}.function.description")
    if not isinstance(function.get("strict", False), bool):
        raise _error(f"strict of {name} must be true or false.", f"{param}.function.strict")
    place = f"{param}.function.parameters"
    parameters = function.get("parameters", {})
    if not isinstance(parameters, Mapping) or cast(Mapping[str, Any], parameters).get("type", "object") != "object":
        raise _error(f"{place} must be a JSON schema of an object.", place)
    schema = {"type": "object", **(cast(Mapping[str, Any], parameters) or {"properties": {}})}
    json_schemas.check(schema, place)
    _check_schema(schema, place)
    return {**function, "parameters": schema}


def _check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Refuse what is not a JSON schema; `json_schemas.check` has bounded it."""
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise _error(f"{param} has a schema that is neither an object nor true or false.", param)
        part = cast(Mapping[str, Any], part)
        kind = part.get("type", [])
        kinds: Sequence[Any] = [kind] if isinstance(kind, str) else kind
        if not isinstance(kinds, list) or not all(each in _TYPES for each in kinds):
            raise _error(f"{param} has the type {kind!r}, which is none of {', '.join(_TYPES)}.", param)
        required = part.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in cast(list[Any], required)):
            raise _error(f"required in {param} must be a list of names.", param)
        if not isinstance(part.get("enum", []), list):
            raise _error(f"enum in {param} must be a list.", param)
        for key in ("properties", "$defs", "definitions"):
            table = part.get(key, {})
            if not isinstance(table, Mapping):
                raise _error(f"{key} in {param} must be an object.", param)
            left += cast(Mapping[str, Any], table).values()
        for key in ("anyOf", "oneOf", "allOf"):
            schemas = part.get(key, [])
            if not isinstance(schemas, list):
                raise _error(f"{key} in {param} must be a list.", param)
            left += cast(list[Any], schemas)
        left += [part[key] for key in ("items", "additionalProperties") if key in part]


def _choose(functions: list[dict[str, Any]], choice: object) -> tuple[list[dict[str, Any]], bool]:
    """Return the functions that may be called, and whether one must be."""
    match choice:
        case None | "auto":
            return functions, False
        case "none":
            return [], False
        case "required":
            chosen = functions
        case {"type": "function", "function": {"name": str() as name}}:
            chosen = [function for function in functions if function["name"] == name]
            if not chosen:
                raise _error(f"tool_choice names {name!r}, which is none of the tools.", "tool_choice")
        case _:
            form = '{"type": "function", "function": {"name": ...}}'
            raise _error(f"tool_choice must be none, auto, required or {form}.", "tool_choice")
    if not chosen:
        raise _error("tool_choice is required without tools; send tools.", "tool_choice")
    return chosen, True


def _describe(functions: list[dict[str, Any]], is_required: bool, parallel: bool) -> str:
    """Return a system message about functions."""
    listed = [
        {key: function[key] for key in ("name", "description", "parameters") if key in function}
        for function in functions
    ]
    lines = ",\n".join(json.dumps(function, ensure_ascii=False) for function in listed)
    return f"{_INTRODUCTION}{_SEVERAL * parallel}{_MUST if is_required else _OTHERWISE}{_LIST}[{lines}]"


def _native_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with arguments as objects and results with the name of their function, as templates read them."""
    names, turns = _names_of_calls(messages), list[dict[str, Any]]()
    for message in messages:
        turn = dict(message)
        if turn.get("tool_calls"):
            turn["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _arguments(call)}} for call in _calls_of(turn)
            ]
        elif turn.get("role") == "tool" and not turn.get("name") and turn.get("tool_call_id") in names:
            turn["name"] = names[turn["tool_call_id"]]
        turns.append(turn)
    return turns


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with calls as JSON in the text of the assistant, and results as turns of the user."""
    names, turns = _names_of_calls(messages), list[dict[str, Any]]()
    for message in messages:
        turn = dict(message)
        if turn.get("tool_calls"):
            calls = [{"name": call["function"].get("name"), "arguments": _arguments(call)} for call in _calls_of(turn)]
            del turn["tool_calls"]
            text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
            turn["content"] = _after(turn.get("content"), text)
        elif turn.get("role") == "tool":
            name = turn.get("name") or names.get(turn.get("tool_call_id"), "the function")
            turn = {"role": "user", "content": _before(f"Result of {name}:\n", turn.get("content"))}
        turns.append(turn)
    return turns


def _calls_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in cast(list[Any], calls)
    ):
        raise _error('tool_calls of a message must be a list of {"function": {"name", "arguments"}}.', "messages")
    return cast(list[dict[str, Any]], calls)


def _names_of_calls(messages: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    calls = [call for message in messages if message.get("tool_calls") for call in _calls_of(message)]
    return {call.get("id"): str(call["function"].get("name")) for call in calls}


def _arguments(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a past call as an object; as a text if they are no JSON."""
    arguments = call["function"].get("arguments") or {}
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def _after(content: Any, text: str) -> Any:
    """Return a content, a text or a list of parts, followed by a text."""
    if isinstance(content, list):
        return [*cast(list[Any], content), {"type": "text", "text": text}]
    return f"{content}\n{text}" if content else text


def _before(text: str, content: Any) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": text}, *cast(list[Any], content)]
    return text + (content or "")


def _error(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_tool", param=param)
