"""Added tokens of a Hugging Face tokenizer, which are matched whole in a text before any merging."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemwright.errors import CheckpointError

FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """An added token.

    Attributes:
        content: Its text.
        special: Whether it is a control token, which decoded text omits.
        lstrip, rstrip: Whether a match takes the whitespace before it, or after it.
        single_word: Whether a letter or digit beside it prevents a match.
        normalized: Whether it is matched after spaces have become U+2581, which is no whitespace.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def contextual(self) -> bool:
        """Whether the text around it changes its match."""
        return self.lstrip or self.rstrip or self.single_word


def parse_added_token(entry: Any) -> AddedToken:
    """Parse an entry of `added_tokens` in `tokenizer.json` or `added_tokens_decoder` in `tokenizer_config.json`.

    It is special if it does not say: a text must not become a token that may be special.

    Raises:
        CheckpointError: It has no text, or a field of another type.
    """
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    content, special = fields.get("content"), fields.get("special", True)
    flags = {name: fields.get(name, False) for name in FLAGS} | {"normalized": fields.get("normalized", not special)}
    if (
        not isinstance(content, str)
        or not content
        or not all(type(flag) is bool for flag in (special, *flags.values()))
    ):
        raise CheckpointError(f"An added token is not valid ({str(entry)[:100]}): fetch the file again.")
    return AddedToken(content, special, **flags)
