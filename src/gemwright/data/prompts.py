"""Prompts whose replies are sampled in training: `open_prompts`.

A record has a prompt, and other fields that a reward may need, such as the right answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from gemwright.data.dataset import Dataset, Documents, Statistics
from gemwright.data.records import Form, check_text
from gemwright.data.sources import Places, Record, digest, find_files, read_records
from gemwright.errors import DataError, GemwrightError
from gemwright.text.chat import read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer

FIELDS = ("messages", "prompt", "question")
"""Fields with the prompt, of which a record's first counts: a conversation up to the reply, or a text."""
_NAMED = 3
"""Number of places that a message names."""


@dataclass(frozen=True, eq=False)
class Prompts(Dataset):
    """Prompts, tokenized. A document is a prompt with room for a reply, the room marked as learned.

    Attributes:
        texts: The prompt of each record, of a conversation the last message.
        fields: The records.
    """

    texts: tuple[str, ...] = field(default=(), repr=False)
    fields: tuple[Record, ...] = field(default=(), repr=False)


def open_prompts(
    paths: str | Path | Iterable[str | Path],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    *,
    max_length: int,
    max_tokens: int,
    chat: bool | None = None,
    tuned: bool = False,
) -> Prompts:
    """Read and tokenize prompts.

    Args:
        paths: A file or folder, or several.
        tokenizer: The model's tokenizer.
        chat_template: The model's chat template.
        max_length: Number of positions of a row, which has the prompt and the reply but its last token.
        max_tokens: Most tokens of a reply.
        chat: Whether a text is a message of a user; by default if the model is tuned on conversations.
        tuned: Whether the model is tuned on conversations.

    Raises:
        DataError: The data cannot be read, are empty or malformed, or no prompt leaves room for a reply.
    """
    files = find_files(paths)
    reader = _Reader(tokenizer, chat_template, max_length + 1 - max_tokens, tuned if chat is None else chat)
    for record in read_records(files):
        reader.add(record)
    return reader.finish(files, max_tokens)


class _Reader:
    """Prompts that are being collected."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate, longest: int, chat: bool):
        self._tokenizer, self._template, self._longest, self._chat = tokenizer, chat_template, longest, chat
        self._ids: list[list[int]] = []
        self._texts: list[str] = []
        self._records: list[Record] = []
        self._places, self._forms = Places(), dict[Form, Record]()
        self._dropped: list[Record] = []

    def add(self, record: Record) -> None:
        """Add the prompt of a record.

        Raises:
            DataError: It has none, or one of another form than those before.
        """
        try:
            found, text, ids = self._encode(record.fields)
        except GemwrightError as error:
            raise record.place.error(str(error)) from error
        first = self._forms.setdefault(found, record)
        if len(self._forms) > 1:
            other = next(record for form, record in self._forms.items() if form != found)
            raise first.place.error(
                f"the prompt is of another form than that of {other.place}; give all as texts, or all as conversations."
            )
        if len(ids) > self._longest:
            self._dropped.append(record)
            return
        self._places.append(record.place)
        self._ids.append(ids)
        self._texts.append(text)
        self._records.append(record)

    def _encode(self, fields: Mapping[str, Any]) -> tuple[Form, str, list[int]]:
        """Return the form, the text and the ids of a prompt."""
        name = next((name for name in FIELDS if fields.get(name) is not None), None)
        if name is None:
            raise GemwrightError(f"the record has no prompt; give it one of the fields {', '.join(FIELDS)}.")
        given = fields[name]
        if isinstance(given, str) and name != "messages":
            text = check_text(given, name)
            if not text.strip():
                raise GemwrightError(f'"{name}" is empty; correct the record.')
            if not self._chat:
                return "prompted", text, self._tokenizer.with_bos(self._tokenizer.encode(text))
            given = [{"role": "user", "content": text}]
        messages, images = read_messages(cast(Any, given))
        if images or not messages or messages[-1]["role"] not in ("user", "tool"):
            raise GemwrightError(
                f'"{name}" must be a conversation of texts that ends with the user; correct the record.'
            )
        text = check_text(messages[-1].get("content"), "content")
        ids = self._template.encode(messages, fields.get("tools"))
        return "chat", text, self._tokenizer.with_bos(ids)

    def finish(self, files: list[Path], max_tokens: int) -> Prompts:
        """Return the prompts."""
        if not self._records:
            names = ", ".join(map(str, files[:_NAMED]))
            if not self._dropped:
                raise DataError(f"The training data are empty: {names} has no record.")
            raise DataError(
                f"No prompt of {names} leaves room for a reply of {max_tokens:,} tokens; use a larger length or fewer "
                "tokens."
            )
        lengths = np.array([len(ids) + max_tokens for ids in self._ids], np.int64)
        documents = Documents(
            np.concatenate([np.array(ids + [0] * max_tokens, np.int32) for ids in self._ids]),
            np.concatenate([np.arange(len(ids) + max_tokens) >= len(ids) for ids in self._ids]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.arange(len(self._ids), dtype=np.int32),
        )
        count = len(self._ids)
        size = Statistics(count, count, int(lengths.sum()), max_tokens * count, int(lengths.max()))
        form, texts, records = next(iter(self._forms)), tuple(self._texts), tuple(self._records)
        return Prompts(
            files=tuple(files),
            kind="prompts",
            form=form,
            documents=documents,
            statistics=size,
            notes=self._notes(),
            digest=digest(files),
            _places=self._places,
            texts=texts,
            fields=records,
        )

    def _notes(self) -> tuple[str, ...]:
        if not self._dropped:
            return ()
        named = "; ".join(str(record.place) for record in self._dropped[:_NAMED])
        more = "; ..." if len(self._dropped) > _NAMED else ""
        return (f"Longer than {self._longest:,} tokens and left out: {len(self._dropped):,} prompts ({named}{more}).",)
