"""Added tokens of a Hugging Face tokenizer, which are matched whole in a text before any merging."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemwright.errors import CheckpointError


@dataclass(frozen=True)
class AddedToken:
    """An added token.

    Attributes:
        content: Its text.
        special: Whether it is a control token, which decoded text omits.
    """

    content: str
    special: bool


def parse_added_token(entry: Any) -> AddedToken:
    """Parse an entry of `added_tokens` in `tokenizer.json` or `added_tokens_decoder` in `tokenizer_config.json`.

    It is special if it does not say: a text must not become a token that may be special.

    Raises:
        CheckpointError: It has no text, or its matching is not supported.
    """
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    content, special = fields.get("content"), fields.get("special", True)
    if not isinstance(content, str) or not content or not isinstance(special, bool):
        raise CheckpointError(f"An added token is not valid ({str(entry)[:100]}): fetch the file again.")
    if not special and any(fields.get(flag, False) for flag in ("lstrip", "rstrip", "single_word")):
        raise CheckpointError(
            f"The added token {content!r:.80} has lstrip, rstrip or single_word, which is not supported; set them to "
            "false."
        )
    return AddedToken(content, special)
