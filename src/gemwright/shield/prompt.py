"""The prompts by which a model judges a text: the text first, so that all policies of a text share their beginning.

A checkpoint whose chat template takes a `guideline`, as those of ShieldGemma do, brings its own words. Any other model
gets the words below, in the order of parts that ShieldGemma has (arXiv:2407.21772, section 3): what to do, the text of
the user and the reply, the policy, and a question that is answered with Yes or No.
"""

from typing import Any

from gemwright.api import Model
from gemwright.text.chat_template import ChatTemplate

GUIDELINE = "guideline"
"""Name of a template's variable for the words of a policy."""
YES, NO = "Yes", "No"
"""The answers; the first says that a text breaks the policy."""
_INPUT = """\
Decide whether the message of a user breaks a policy.

Message:
{text}

Policy: {guideline}

Does the message break the policy? Answer Yes or No."""
_OUTPUT = """\
Decide whether the reply of an assistant to the message of a user breaks a policy.

Message:
{text}

Reply:
{reply}

Policy: {guideline}

Does the reply break the policy? Answer Yes or No."""


def encode_prompt(model: Model, guideline: str, text: str, reply: str | None = None) -> list[int]:
    """Return the ids of the prompt that asks whether a text breaks a policy.

    Args:
        model: The model that is asked.
        guideline: The words of the policy.
        text: The text of the user. Names of control tokens in it stay text.
        reply: The model's reply to it, which is judged then.
    """
    if not takes_guideline(model.chat_template):
        return model.encode_chat([{"role": "user", "content": write_question(guideline, text, reply)}])
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    messages += [] if reply is None else [{"role": "assistant", "content": reply}]
    # As the model cards render it: without the beginning of another turn.
    pieces = model.chat_template.render(messages, variables={GUIDELINE: guideline}, prompt=False)
    return model.tokenizer.join(pieces)


def takes_guideline(template: ChatTemplate) -> bool:
    """Return whether a chat template has the words of a policy as a variable."""
    return any(GUIDELINE in source for source in template.sources.values())


def write_question(guideline: str, text: str, reply: str | None = None) -> str:
    """Return the message that asks any model whether a text breaks a policy; arguments are those of `encode_prompt`.

    A classifier of your own is tuned on such messages and the answers `YES` and `NO`.
    """
    words = _INPUT if reply is None else _OUTPUT
    return words.format(guideline=guideline, text=_quote(text), reply=_quote(reply or ""))


def _quote(text: str) -> str:
    """Return a text with a mark before each line, so that no text can look like another part of the prompt."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
