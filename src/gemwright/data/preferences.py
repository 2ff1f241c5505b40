"""Pairs of answers to the same prompt, of which one was preferred: `open_preferences`.

A pair is two documents, the chosen answer after its prompt and then the rejected one, which stay together in a row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from gemwright.data.dataset import Builder, Counter, Dataset
from gemwright.data.documents import Document, Encoder
from gemwright.data.images import ImageReader
from gemwright.data.records import Example, Form, find_kind, form, read_examples
from gemwright.data.sources import Record, find_files, read_records
from gemwright.errors import DataError, GemwrightError
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer

KINDS: Mapping[Form, str] = {"prompted": "pairs of texts", "chat": "pairs of conversations"}
"""Kinds of records by how they are encoded."""
PROMPTS = ("prompt", "question", "instruction")
"""Names of the field with the prompt; without it, the prompt is what both answers begin with."""
_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]*")
_DIALOGUE = re.compile(r"\s*Human:")
_ROLES = {"Human": "user", "Assistant": "assistant"}
Messages: TypeAlias = list[Any]


def open_preferences(
    paths: str | Path | Iterable[str | Path],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    *,
    max_length: int,
    chat: bool | None = None,
    tuned: bool = False,
    scored: bool = False,
) -> Dataset:
    """Read and tokenize pairs of answers.

    A record has `chosen` and `rejected`, both texts or both lists of messages, and usually a `prompt`. Texts that begin
    with `Human:` are dialogues, as in HH-RLHF (arXiv:2204.05862). Pairs that are too long, equal or without an answer
    are left out, and the notes say so; nothing is cut.

    Args:
        paths: A file or folder, or several.
        tokenizer: The model's tokenizer.
        chat_template: The model's chat template.
        max_length: Number of positions of a row, in which both answers fit, each after its prompt.
        chat: Whether a prompt and its answer are a conversation; by default if the model is tuned on them.
        tuned: Whether the model is tuned on conversations.
        scored: Whether the last id of each answer is read too, as by a reward model, and is all that is learned;
            otherwise the ids of the answers are predicted.

    Raises:
        DataError: The data cannot be read, are empty or malformed, or no pair is left.
    """
    if max_length < 1:
        raise GemwrightError("max_length must be positive.")
    files = find_files(paths)
    builder = _PairBuilder(Encoder(tokenizer, chat_template), max_length, scored)
    for record in read_records(files):
        builder.add_pair(record, *read_pair(record, tuned if chat is None else chat))
    return builder.finish(files)


def read_pair(record: Record, chat: bool) -> tuple[Example, Example]:
    """Return the chosen and the rejected answer of a record, each with its prompt.

    Raises:
        DataError: A field is missing, of another type, or has text that is not valid.
    """
    place, fields = record.place, record.fields
    missing = [name for name in ("chosen", "rejected") if fields.get(name) is None]
    if missing:
        raise place.error(f'"{missing[0]}" is missing; a pair has a chosen and a rejected answer.')
    answers = [fields["chosen"], fields["rejected"]]
    for kind in (str, list):
        if isinstance(answers[0], kind) != isinstance(answers[1], kind):
            raise place.error('"chosen" and "rejected" must both be texts, or both lists of messages.')
    if isinstance(answers[0], list) and not all(isinstance(item, Mapping) for answer in answers for item in answer):
        raise place.error('"chosen" and "rejected" must be texts or lists of messages; correct the record.')
    if not isinstance(answers[0], str | list):
        raise place.error(f'"chosen" must be a text or a list of messages, not {type(answers[0]).__name__}.')
    prompt, answers = _split(fields, answers)
    chat = chat and any(fields.get(name) is not None for name in PROMPTS)  # what both texts begin with is no message
    others = {name: fields.get(name) for name in ("system", "system_prompt", "tools")}
    chosen, rejected = (
        _read_one(Record(place, {**others, "prompt": prompt, "completion": answer}), chat) for answer in answers
    )
    return chosen, rejected


def _read_one(record: Record, chat: bool) -> Example:
    (example,) = read_examples(find_kind(record), record, chat)
    return example


def _split(fields: Mapping[str, Any], answers: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Return the prompt and the answers after it: all texts, or all lists of messages."""
    prompt = next((fields[name] for name in PROMPTS if fields.get(name) is not None), None)
    if isinstance(answers[0], list):
        whole = [_is_whole(answer) for answer in answers]
        if prompt is None or all(whole):  # some data have the prompt again, as the name of the pair
            return _split_messages(*answers)
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, answers
    if isinstance(prompt, str) and _DIALOGUE.match(prompt):
        prompt = [message for message in _read_dialogue(prompt) if message["content"]]
    if isinstance(prompt, list):
        return prompt, [[{"role": "assistant", "content": answer}] for answer in answers]
    if prompt is not None:
        return prompt, answers
    if all(map(_DIALOGUE.match, answers)):
        return _split_messages(*map(_read_dialogue, answers))
    return _split_texts(*answers)


def _is_whole(messages: Messages) -> bool:
    """Return whether messages are a conversation, not an answer alone."""
    return any(cast("Mapping[str, Any]", message).get("role") == "user" for message in messages[:2])


def _split_messages(chosen: Messages, rejected: Messages) -> tuple[Messages, list[Messages]]:
    """Return the messages that both begin with, and the others, at least the last of each."""
    most = min(len(chosen), len(rejected)) - 1
    same = next((place for place in range(most) if chosen[place] != rejected[place]), max(most, 0))
    return chosen[:same], [chosen[same:], rejected[same:]]


def _split_texts(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """Return what both texts begin with, up to the end of a word, and the rests."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    while same > 0 and not (chosen[same - 1 : same].isspace() or chosen[same : same + 1].isspace()):
        same -= 1
    same = len(chosen[:same].rstrip(" "))
    return chosen[:same], [chosen[same:], rejected[same:]]


def _read_dialogue(text: str) -> Messages:
    """Return the messages of a dialogue; turns of one speaker in a row are one message."""
    _, *parts = _TURN.split("\n\n" + text.strip())
    messages: list[dict[str, str]] = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        if messages and messages[-1]["role"] == _ROLES[name]:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": _ROLES[name], "content": content})
    return messages


class _PairBuilder(Builder):
    """Pairs that are being collected."""

    def __init__(self, encoder: Encoder, max_length: int, scored: bool):
        super().__init__(max_length, "drop")
        self._encoder, self._scored = encoder, scored
        self._equal = Counter()

    def add_pair(self, record: Record, chosen: Example, rejected: Example) -> None:
        """Add the documents of a pair, unless it is left out."""
        index, place = len(self.places), record.place
        self.places.append(place)
        for example in (chosen, rejected):
            self.check_form(form(example), KINDS[form(example)], place)
        try:
            pair = [self._encode(example) for example in (chosen, rejected)]
        except DataError:
            raise
        except GemwrightError as error:
            raise place.error(str(error)) from error
        if not all(document.learned.any() for document in pair):
            self.unlearned.add(place)
        elif np.array_equal(pair[0].ids, pair[1].ids):
            self._equal.add(place)
        else:
            pair = [self._with_score(document) if self._scored else document for document in pair]
            if sum(len(document.ids) - 1 for document in pair) > self.max_length:
                self.dropped.add(place)
                return
            for document in pair:
                self.append(document, index)

    def finish(self, files: list[Path], reader: ImageReader | None = None) -> Dataset:
        """Return the dataset."""
        return replace(super().finish(files, reader), group=2)

    def _encode(self, example: Example) -> Document:
        documents = self._encoder.encode(example)
        if len(documents) > 1:
            raise GemwrightError(
                "the answer has several messages, which the chat template does not keep in one document; end each "
                "answer with its first message."
            )
        return documents[0]

    def _with_score(self, document: Document) -> Document:
        """Return a document whose last id is an input, the only one that is learned."""
        learned = np.arange(len(document.ids) + 1) == len(document.ids)
        return Document(np.append(document.ids, self._encoder.tokenizer.pad_id).astype(np.int32), learned)

    def _nothing(self) -> str:
        return f"No pair is left to train on; use a larger length or other data. {' '.join(self._notes())}"

    def _notes(self) -> tuple[str, ...]:
        pairs = (
            (self.unlearned, "Without an answer and left out"),
            (self._equal, "Chosen and rejected are equal and left out"),
            (self.dropped, f"Longer than {self.max_length:,} tokens together and left out"),
        )
        total = f"{len(self.places):,}"
        return tuple(f"{text}: {found.count:,} of {total} pairs ({found})." for found, text in pairs if found.count)
