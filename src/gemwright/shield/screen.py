"""Screen a reply while it is generated: no part of it is shown before the sentence that it is in has been judged."""

import re
from collections.abc import Iterable, Iterator

from gemwright.errors import PolicyError
from gemwright.shield.classifier import Shield

MOST_HELD = 400
"""Maximum number of characters held back, in text without sentences."""
_END = re.compile(r"[.!?…][\"'”’)\]*_]*\s|[。！？]|\n")
"""The end of a sentence, which is certain when the next one begins."""


class Sentences:
    """Finds when to judge a text that grows.

    Attributes:
        text: The text so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._judged = 0

    def push(self, piece: str) -> bool:
        """Add a piece; return whether a sentence has ended in what was added since the text was last judged."""
        self.text += piece
        held = self.text[self._judged :]
        if not (piece and (len(held) > MOST_HELD or (held.strip() and _END.search(held.lstrip())))):
            return False
        self._judged = len(self.text)
        return True


def screen(shield: Shield, text: str, pieces: Iterable[str]) -> Iterator[str]:
    """Yield a reply in parts that have been judged, each with the sentences before it.

    Args:
        shield: What judges.
        text: The text that the reply answers.
        pieces: The pieces of the reply.

    Raises:
        PolicyError: The reply is refused; what came before was yielded.
    """
    sentences, held = Sentences(), ""
    for piece in pieces:
        held += piece
        if sentences.push(piece):
            yield from _judge(shield, text, sentences.text, held)
            held = ""
    if held:
        yield from _judge(shield, text, sentences.text, held)


def _judge(shield: Shield, text: str, reply: str, held: str) -> Iterator[str]:
    violation = shield.find_violation(text, reply)
    if violation is not None:
        raise PolicyError(violation.sentence)
    yield held
