"""Encode examples as documents: ids, and which of them are learned.

Every document begins with exactly one BOS. The ids before a learned turn are those of the prompt at inference, and the
learned ids are those that the model would have to generate, the one that ends the turn included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gemwright.data.records import Chat, Example, Prompted, Text
from gemwright.errors import GemwrightError
from gemwright.text.chat import RefusedError
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.image_format import MARKERS, ImageFormat
from gemwright.text.tokenizer import Tokenizer

TEXT_CHUNK = 1 << 20
"""Characters of a text that are tokenized at once."""
_NOTHING = np.empty(0, np.int32)
_TEXT_ONLY = (
    "the record has an image, and the model or the objective reads text only; use a model with a vision tower, such as "
    "paligemma2-3b-pt-224, or records without images."
)


class Document(NamedTuple):
    """A document.

    Attributes:
        ids: [n] token ids, of which the first is BOS, after the soft tokens of a prefix-LM's images.
        learned: [n] whether the loss covers an id.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


class _Turn(NamedTuple):
    """A turn of the model: the ids before it, its own, and whether a conversation may go on after it."""

    prompt: list[int]
    answer: list[int]
    may_go_on: bool


@dataclass(frozen=True)
class Encoder:
    """An encoder of examples.

    Attributes:
        tokenizer: The model's tokenizer.
        chat_template: Its chat template.
        images: How its prompts contain images; None if it reads text only.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    images: ImageFormat | None = None

    def encode(self, example: Example) -> list[Document]:
        """Return the documents of an example; several if its chat template changes earlier turns later.

        Raises:
            GemwrightError: The chat template refuses the conversation or is not suitable for training.
        """
        match example:
            case Text(text):
                begin = [self.tokenizer.bos_id]
                return [self._document(begin, self._encode_text(text) if text.strip() else _NOTHING)]
            case Prompted(prompt, completion, system, images):
                before = self._encode_prompt(f"{system}\n\n{prompt}" if system else prompt, len(images))
                answer = self._encode_text(completion) if completion.strip() else _NOTHING
                return [self._document(before, answer)]
            case Chat():
                self._check_images(example)
                return list(self._encode_chat(example))

    def _encode_prompt(self, text: str, images: int) -> list[int]:
        """Return the ids of a prompt that begins with so many images."""
        if images and self.images is None:
            raise GemwrightError(_TEXT_ONLY)
        if self.images is not None and (images or self.images.style == "prefix"):
            return self.images.encode(text, [1] * images)
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def _check_images(self, chat: Chat) -> None:
        if chat.images and self.images is None:
            raise GemwrightError(_TEXT_ONLY)
        if chat.images and self.images is not None and self.images.style == "prefix":
            raise GemwrightError(
                "this model reads images before a prompt, and not in conversations; give an image, its prefix and its "
                "suffix."
            )

    def _document(self, prompt: Sequence[int], answer: NDArray[np.int32]) -> Document:
        """Return an unlearned prompt, an answer and EOS; nothing is learned without an answer."""
        before = np.array(prompt, np.int32)
        ids = np.concatenate([before, answer, np.array([self.tokenizer.eos_id], np.int32)])
        return Document(ids, (np.arange(len(ids)) >= len(before)) & (len(answer) > 0))

    def _encode_text(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text, which is cut between lines if it is long, to bound the memory of tokenization."""
        parts = [_NOTHING]
        start = 0
        while start < len(text):
            stop = start + TEXT_CHUNK
            if stop < len(text):
                stop = _cut(text, start, stop)
            parts.append(np.array(self.tokenizer.encode(text[start:stop]), np.int32))
            start = stop
        return np.concatenate(parts)

    def _encode_chat(self, chat: Chat) -> Iterator[Document]:
        """Yield one document for as many turns as the prompt of each begins with the document so far."""
        ids: list[int] = []
        learned: list[bool] = []
        may_go_on = True
        for index in np.flatnonzero(chat.learned).tolist():
            turn = self._encode_turn(chat, index)
            if ids and not (may_go_on and turn.prompt[: len(ids)] == ids):
                yield Document(np.array(ids, np.int32), np.array(learned))
                ids, learned = [], []
            learned += [False] * (len(turn.prompt) - len(ids)) + [True] * len(turn.answer)
            ids = turn.prompt + turn.answer
            may_go_on = turn.may_go_on
        if not ids:
            ids, learned = [self.tokenizer.bos_id], [False]
        yield Document(np.array(ids, np.int32), np.array(learned))

    def _encode_turn(self, chat: Chat, index: int) -> _Turn:
        """Return a turn of the model, as the difference of two renderings."""
        if index == 0:
            raise GemwrightError("the conversation begins with the model; begin with a message of the user.")
        try:
            before = self.chat_template.render(chat.messages[:index], chat.tools)
        except RefusedError:
            if chat.messages[index - 1]["role"] in ("user", "tool"):
                raise
            raise GemwrightError(
                f"message {index + 1} is of the model and does not follow one of the user; correct the conversation."
            ) from None
        after = self.chat_template.render(chat.messages[: index + 1], chat.tools, prompt=False)
        answer = _remove_prefix(before, after)
        if answer is None:
            raise GemwrightError(
                f"the chat template begins message {index + 1} in another way than its prompt for the model does; use "
                "another template."
            )
        stop = next((place for place, piece in enumerate(answer) if piece in self._ends), None)
        if stop is not None and any(isinstance(piece, str) and piece.strip() for piece in answer[stop + 1 :]):
            raise GemwrightError(f"the chat template ends message {index + 1} before its text; use another template.")
        _check_content(chat.messages[index], answer[:stop], index + 1)
        prompt = self.tokenizer.with_bos(self._with_images(self._ids(before), chat.messages[:index]))
        if stop is not None:
            ids = self._ids(answer[: stop + 1])
        else:  # the template does not end the turn, so EOS does
            ids = [*self._ids([*answer[:-1], *(_strip_end(piece) for piece in answer[-1:])]), self.tokenizer.eos_id]
        if self.tokenizer.bos_id in prompt[1:] or self.tokenizer.bos_id in ids:
            raise GemwrightError("the chat template writes BOS inside the conversation; use another template.")
        return _Turn(prompt, ids, stop is not None)

    def _with_images(self, ids: list[int], messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a prompt with the soft tokens of its images in place of their markers."""
        count = sum(map(_count_images, messages))
        if not count or self.images is None:
            return ids
        marker = self.tokenizer.id_of(MARKERS[self.images.style])
        if ids.count(marker) != count:
            raise GemwrightError(
                f"the chat template writes {ids.count(marker)} images for {count}; put them into messages of the user."
            )
        insertion = self.images.insertion(1)
        return [token for piece in ids for token in (insertion if piece == marker else [piece])]

    @cached_property
    def _ends(self) -> frozenset[Any]:
        return frozenset((self.tokenizer.eos_id, *self.chat_template.end_ids))

    def _ids(self, pieces: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self.tokenizer.encode(piece) if isinstance(piece, str) else [piece]
        return ids


def _check_content(message: Mapping[str, Any], answer: Sequence[str | int], number: int) -> None:
    """Refuse a turn whose calls of functions, or whose only content, the chat template leaves out."""
    text = "".join(piece for piece in answer if isinstance(piece, str))
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    functions: list[Any] = [call.get("function", call) for call in calls]
    names = [str(cast(Mapping[str, Any], found).get("name")) for found in functions if isinstance(found, Mapping)]
    if not text.strip() or not all(name in text for name in names):
        left_out = "calls of functions" if calls else "content"
        raise GemwrightError(
            f"the chat template leaves out the {left_out} of message {number}; use a model or a template with them, or "
            "leave out the record."
        )


def _count_images(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def _strip_end(piece: str | int) -> str | int:
    return piece.rstrip() if isinstance(piece, str) else piece


def _remove_prefix(prefix: Sequence[str | int], pieces: Sequence[str | int]) -> list[str | int] | None:
    """Return the pieces after a prefix, whose last text may be the beginning of a piece; None if they differ."""
    if not prefix:
        return list(pieces)
    *first, last = prefix
    same = list(pieces[: len(first)]) == first and len(pieces) > len(first)
    place = len(first)
    if same and pieces[place] == last:
        return list(pieces[place + 1 :])
    if same and isinstance(last, str) and str(pieces[place]).startswith(last) and isinstance(pieces[place], str):
        return [str(pieces[place])[len(last) :], *pieces[place + 1 :]]
    return None


def _cut(text: str, start: int, stop: int) -> int:
    """Return a place at or before `stop` between a line break and another character, or else between words.

    No piece of Gemma's vocabulary spans such a place: a line break merges with line breaks alone, and a word with the
    space before it.
    """
    place = text.rfind("\n", start, stop)
    while place > start and text[place + 1 : place + 2] == "\n":
        place = text.rfind("\n", start, place)
    if place > start:
        return place + 1
    place = text.rfind(" ", start + 1, stop)
    while place > start and not text[place - 1].isalnum():
        place = text.rfind(" ", start + 1, place)
    return place if place > start else stop
