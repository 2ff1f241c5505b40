"""Text to ids and back, with one guarantee: text never becomes a control token.

`encode` gives ids of text only. What a user types as `<end_of_turn>`, `<bos>` or `<start_of_image>` stays those
characters; control tokens come from `id_of` alone, which chat formats and fill-in-the-middle prompts use.
"""

import codecs
from collections.abc import Iterable
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError, GemwrightError
from gemwright.text import sentencepiece_model
from gemwright.text.vocabulary import SPACE, Vocabulary

# CodeGemma's markers stand in slots that its SentencePiece model still calls unused (CodeGemma's model card).
_INFILL_SLOTS = {
    67: ("<|fim_prefix|>", "<unused60>"),
    68: ("<|fim_middle|>", "<unused61>"),
    69: ("<|fim_suffix|>", "<unused62>"),
    70: ("<|file_separator|>", "<unused63>"),
}


@final
class Tokenizer:
    """Encodes and decodes text with a Gemma vocabulary.

    Attributes:
        size: number of ids; the model's embedding may have more rows, or fewer.
        bos_id, eos_id, pad_id, unk_id: ids of the four special pieces.
    """

    def __init__(self, source: Vocabulary | bytes):
        """Makes one from a vocabulary, or from the `model` of another."""
        from sentencepiece import SentencePieceProcessor

        # Here markers are CONTROL, which SentencePiece never produces from text; in a published file they are
        # user-defined symbols, which it does.
        if isinstance(source, Vocabulary):
            source = sentencepiece_model.serialize(source.pieces, source.scores, source.kinds)
        try:
            self._processor = SentencePieceProcessor(model_proto=source)
        except RuntimeError as error:
            raise CheckpointError(f"SentencePiece refuses the vocabulary ({error}): fetch it again.") from error
        self.size: int = self._processor.get_piece_size()
        self.bos_id = self.id_of("<bos>")
        self.eos_id = self.id_of("<eos>")
        self.pad_id = self.id_of("<pad>")
        self.unk_id = self.id_of("<unk>")

    @property
    def model(self) -> bytes:
        """What another can be made from, as SentencePiece writes it."""
        return self._processor.serialized_model_proto()

    @property
    def vocabulary(self) -> Vocabulary:
        """What it was made from, made anew."""
        pieces, scores, kinds = sentencepiece_model.parse(self.model)
        return Vocabulary(tuple(pieces), scores, kinds)

    @cached_property
    def kinds(self) -> NDArray[np.uint8]:
        """The SentencePiece type of every id; see `Vocabulary`."""
        return self.vocabulary.kinds

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id as the vocabulary spells it, U+2581 for a space."""
        # Of SentencePiece's own copy: 262144 strings of Python's would take another 22 MB.
        return tuple(self._processor.id_to_piece(list(range(self.size))))

    def is_control(self, token: int) -> bool:
        """Whether an id below `size` stands for something other than text."""
        return self._processor.is_control(token) or self._processor.is_unknown(token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and free of control tokens.

        Any str is accepted: a lone surrogate, which is no character, is read as U+FFFD. U+2581 is read as a
        space, as in every tokenizer of the family.
        """
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            encoded = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        return self._processor.encode(encoded)

    def id_of(self, piece: str) -> int:
        """Id of a control piece, such as `<end_of_turn>`.

        Raises:
            GemwrightError: this vocabulary has no such control piece.
        """
        slot = next((index for index, names in _INFILL_SLOTS.items() if piece in names), self.size)
        if slot < self.size and self._processor.id_to_piece(slot) in _INFILL_SLOTS[slot]:
            return slot
        token: int = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token) != piece or not self.is_control(token):
            raise GemwrightError(
                f"The vocabulary has no control token {piece!r}: use a model that was trained with it."
            )
        return token

    def with_bos(self, ids: Iterable[int]) -> list[int]:
        """The ids behind exactly one BOS, however many stood at their front."""
        ids = list(ids)
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        return [self.bos_id, *ids[start:]]

    def piece_bytes(self, token: int, keep_control: bool = False) -> bytes:
        """What one id adds to the text, in UTF-8; a byte piece may be part of a character.

        Args:
            token: an id below `size`.
            keep_control: give a control piece its name; otherwise it is empty.

        Raises:
            GemwrightError: the id is outside the vocabulary.
        """
        if not 0 <= token < self.size:
            raise GemwrightError(
                f"Token id {token} is outside the vocabulary of {self.size} pieces: use the model's own tokenizer."
            )
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        if self.is_control(token):
            return piece.encode() if keep_control else b""
        return piece.replace(SPACE, " ").encode()

    def decode(self, ids: Iterable[int], keep_control: bool = False) -> str:
        """The text of ids; bytes that form no character become U+FFFD.

        Args:
            ids: ids below `size`.
            keep_control: write control pieces by name instead of leaving them out.

        Raises:
            GemwrightError: an id is outside the vocabulary.
        """
        return b"".join([self.piece_bytes(token, keep_control) for token in ids]).decode("utf-8", "replace")

    def stream(self) -> "TextStream":
        """A decoder that takes ids one at a time."""
        return TextStream(self)


@final
class TextStream:
    """Decodes ids as they come and never splits a character: all that it returns, joined, equals `decode`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this id completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.piece_bytes(token))

    def finish(self) -> str:
        """U+FFFD for a character that was left incomplete, or nothing."""
        return self._decoder.decode(b"", final=True)
