"""Text to ids and back, with one guarantee: text never becomes a control token.

`encode` gives ids of text only. What a user types as `<end_of_turn>`, `<bos>` or `<start_of_image>` stays those
characters; control tokens come from `id_of` alone, which chat formats and fill-in-the-middle prompts use.
"""

import codecs
from collections.abc import Iterable
from typing import final

import numpy as np

from gemwright.errors import CheckpointError, GemwrightError
from gemwright.text import sentencepiece_model
from gemwright.text.sentencepiece_model import BYTE, CONTROL, UNKNOWN
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
        kinds: uint8, the SentencePiece type of every id; see `Vocabulary`.
        bos_id, eos_id, pad_id, unk_id: ids of the four special pieces.
    """

    def __init__(self, vocabulary: Vocabulary):
        from sentencepiece import SentencePieceProcessor

        # Here markers are CONTROL, which SentencePiece never produces from text; in a published file they are
        # user-defined symbols, which it does.
        model = sentencepiece_model.serialize(vocabulary.pieces, vocabulary.scores, vocabulary.kinds)
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(f"SentencePiece refuses the vocabulary ({error}): fetch it again.") from error
        self.kinds, self._scores = vocabulary.kinds, vocabulary.scores
        self._control_ids = _control_ids(vocabulary)
        self.bos_id = self._control_ids["<bos>"]
        self.eos_id = self._control_ids["<eos>"]
        self.pad_id = self._control_ids["<pad>"]
        self.unk_id = self._control_ids["<unk>"]

    @property
    def size(self) -> int:
        """Number of ids; the model's embedding may have more rows, or fewer."""
        return len(self.kinds)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id as the vocabulary spells it, U+2581 for a space."""
        # Of SentencePiece's own copy: 262144 strings of Python's would take another 22 MB.
        return tuple(self._processor.id_to_piece(list(range(self.size))))

    @property
    def vocabulary(self) -> Vocabulary:
        """What it was made from, made anew."""
        return Vocabulary(self.pieces, self._scores, self.kinds)

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
        try:
            return self._control_ids[piece]
        except KeyError:
            raise GemwrightError(
                f"The vocabulary has no control token {piece!r}: use a model that was trained with it."
            ) from None

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
        piece, kind = self._processor.id_to_piece(token), self.kinds[token]
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        if kind in (CONTROL, UNKNOWN):
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


def _control_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids by name of all control pieces, under both of their names where they have two."""
    control = np.flatnonzero((vocabulary.kinds == CONTROL) | (vocabulary.kinds == UNKNOWN)).tolist()
    ids = {vocabulary.pieces[index]: index for index in control}
    for index, names in _INFILL_SLOTS.items():
        if index < vocabulary.size and vocabulary.pieces[index] in names:
            ids |= dict.fromkeys(names, index)
    return ids
