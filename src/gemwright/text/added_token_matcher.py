"""Match added tokens whose match depends on the text around them, as `tokenizers` does.

Source: huggingface/tokenizers `tokenizers/src/tokenizer/added_vocabulary.rs` (0.23).
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from gemwright.text.added_tokens import AddedToken
from gemwright.text.control_tokens import ControlTokens
from gemwright.text.tokenizer_json import SPACE

_SPACES = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")


@final
class AddedTokenMatcher:
    """Splits texts at added tokens.

    Attributes:
        tokens: The tokens whose match depends on the text around them, by id.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], others: Mapping[str, int]):
        """Prepare the search.

        Args:
            tokens: The tokens whose match depends on the text around them, by id; no text becomes a special one.
            others: Ids of the other tokens that are matched whole in a text.
        """
        self.tokens = tokens
        visible = {index: token for index, token in tokens.items() if not token.special}
        raw = {token.content: index for index, token in visible.items() if not token.normalized}
        spelled = {token.content.replace(" ", SPACE): index for index, token in visible.items() if token.normalized}
        self._raw, self._normalized = ControlTokens({**others, **raw}), ControlTokens(spelled)

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the parts of a text: ids of added tokens, and other texts."""
        for part in self._split(text, self._raw):
            if isinstance(part, str):
                yield from self._split(part.replace(" ", SPACE), self._normalized)
            else:
                yield part

    def _split(self, text: str, names: ControlTokens) -> Iterator[str | int]:
        end = 0
        for start, name in names.find(text):
            index, stop = names.ids[name], start + len(name)
            token = self.tokens.get(index)
            if token and token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[stop : stop + 1])):
                continue
            if token and token.lstrip:
                start = end + _trailing(text[end:start]) if start > end else start
            if token and token.rstrip:
                stop = _leading(text, stop)
            if start > end:
                yield text[end:start]
            yield index
            end = stop  # whitespace that a token has taken may begin the next one, too
        if end < len(text):
            yield text[end:]

    def strip(self, pieces: Sequence[str | int]) -> list[str | int]:
        """Return the pieces of a conversation without the whitespace that its control tokens take."""
        stripped = list(pieces)
        for index, piece in enumerate(pieces):
            token = self.tokens.get(piece) if isinstance(piece, int) else None
            before = stripped[index - 1] if token and token.lstrip and index else None
            after = stripped[index + 1] if token and token.rstrip and index + 1 < len(pieces) else None
            if isinstance(before, str):
                matches = [start + len(name) for start, name in self._raw.find(before)]
                stripped[index - 1] = before[: max(_trailing(before), *matches[-1:], 0)]
            if isinstance(after, str):
                first = next((start for start, _ in self._raw.find(after)), len(after))
                stripped[index + 1] = after[min(_leading(after, 0), first) :]
        return stripped


def _leading(text: str, start: int) -> int:
    """Return the end of the whitespace at a place."""
    match = _SPACES.match(text, start)
    return match.end() if match else start


def _trailing(text: str) -> int:
    """Return the start of the whitespace at the end of a text."""
    end = len(text)
    while end and _SPACES.fullmatch(text, end - 1, end):
        end -= 1
    return end


def _is_word(character: str) -> bool:
    """Return whether a character is of a word in a regular expression of Rust: a letter, mark, digit or connector."""
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"
