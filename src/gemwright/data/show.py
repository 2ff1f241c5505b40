"""Show documents token by token, with those that are learned marked."""

import json
from collections.abc import Iterator

import numpy as np

from gemwright.data.dataset import Dataset
from gemwright.data.documents import Document
from gemwright.text.image_format import SOFT_TOKEN
from gemwright.text.tokenizer import Tokenizer

MAX_SHOWN = 400
"""Maximum number of tokens of a document that are shown."""


def show(dataset: Dataset, tokenizer: Tokenizer, count: int = 3) -> Iterator[str]:
    """Yield lines that show the first documents.

    Tokens are separated by `|`. Those that are learned are between brackets, which work without color.
    """
    yield f"{dataset.kind} ({len(dataset.documents):,} documents); tokens that are learned are in [brackets]"
    for index in range(min(count, len(dataset.documents))):
        document, record = dataset.documents[index], int(dataset.documents.records[index])
        size, learned = len(document.ids), int(document.learned.sum())
        yield f"{dataset.place(record)}: {size:,} tokens, {learned:,} of them learned"
        yield from _lines(document, tokenizer)


def _lines(document: Document, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens of a document; a line ends after a token with a line break."""
    line = ""
    document, soft = _without_soft_tokens(document)
    if soft:
        yield f"  <{soft:,} soft tokens of images>"
    pairs = zip(document.ids.tolist(), document.learned.tolist(), strict=True)
    for _, (token, learned) in zip(range(MAX_SHOWN), pairs, strict=False):
        text = quote(tokenizer, token)
        line += f"[{text}]" if learned else f"{text}|"
        if text.endswith("\\n"):
            yield f"  {line}"
            line = ""
    rest = len(document.ids) - MAX_SHOWN
    if rest > 0:
        line += f" ... and {rest:,} more, {int(document.learned[MAX_SHOWN:].sum()):,} of them learned"
    if line:
        yield f"  {line}"


def _without_soft_tokens(document: Document) -> tuple[Document, int]:
    """Return a document without the soft tokens of its images, and their number."""
    kept = document.ids != SOFT_TOKEN
    return Document(document.ids[kept], document.learned[kept]), int(np.count_nonzero(~kept))


def quote(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token with control characters escaped; a control token gives its name."""
    text = tokenizer.piece_bytes(token, keep_control=True).decode("utf-8", "backslashreplace")
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\x7f", "\\u007f")
