"""Text to ids and back, with one guarantee: text never becomes a control token.

`encode` treats `<end_of_turn>`, `<bos>` or `<start_of_image>` in user text as plain characters. Control tokens come
from `id_of` alone, which chat formats and fill-in-the-middle prompts use.
"""

import codecs
from collections.abc import Iterable
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError, GemwrightError
from gemwright.text import sentencepiece_model
from gemwright.text.added_token_matcher import AddedTokenMatcher
from gemwright.text.vocabulary import INFILL_SLOTS, SPACE, Vocabulary


@final
class Tokenizer:
    """An encoder and decoder of text with a Gemma vocabulary.

    Attributes:
        size: Number of ids; the model's embedding may have more rows, or fewer.
        bos_id, eos_id, pad_id, unk_id: Ids of the four special pieces.
    """

    def __init__(self, source: Vocabulary | bytes):
        """Make a tokenizer from a vocabulary, or from the `model` of another tokenizer."""
        from sentencepiece import SentencePieceProcessor

        # Our markers are CONTROL, which SentencePiece never produces from text. In published files they are
        # user-defined symbols, which it does produce.
        self._matcher: AddedTokenMatcher | None = None
        self._visible: frozenset[int] = frozenset()
        if isinstance(source, Vocabulary):
            kinds = source.kinds
            if source.contextual:
                self._matcher = _make_matcher(source)
                self._visible = frozenset(index for index, token in source.contextual.items() if not token.special)
                kinds = kinds.copy()
                kinds[list(self._visible)] = sentencepiece_model.CONTROL  # matched by us
            source = sentencepiece_model.serialize(source.pieces, source.scores, kinds)
        try:
            self._processor = SentencePieceProcessor(model_proto=source)
        except RuntimeError as error:
            raise CheckpointError(f"SentencePiece rejects the vocabulary ({error}): download it again.") from error
        self.size: int = self._processor.get_piece_size()
        self.bos_id = self.id_of("<bos>")
        self.eos_id = self.id_of("<eos>")
        self.pad_id = self.id_of("<pad>")
        self.unk_id = self.id_of("<unk>")

    def __repr__(self) -> str:
        return f"Tokenizer({self.size} tokens)"

    @property
    def model(self) -> bytes:
        """Serialized SentencePiece model, from which another tokenizer can be made, but for `Vocabulary.contextual`."""
        return self._processor.serialized_model_proto()

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the tokenizer, parsed from `model`."""
        pieces, scores, kinds = sentencepiece_model.parse(self.model)
        kinds[list(self._visible)] = sentencepiece_model.USER_DEFINED
        return Vocabulary(tuple(pieces), scores, kinds, self._matcher.tokens if self._matcher else {})

    @cached_property
    def kinds(self) -> NDArray[np.uint8]:
        """SentencePiece type of every id; see `Vocabulary`."""
        return self.vocabulary.kinds

    @property
    def pieces(self) -> tuple[str, ...]:
        """Text of every id as spelled in the vocabulary, U+2581 for a space."""
        # Read from SentencePiece's copy on each call: keeping 262,144 Python strings would take another 22 MB.
        return tuple(self._processor.id_to_piece(list(range(self.size))))

    @property
    def control_tokens(self) -> dict[str, int]:
        """Id of every control or unknown piece by name."""
        ids = list(range(self.size))
        flags = zip(ids, self._processor.is_control(ids), self._processor.is_unknown(ids), strict=True)
        found = [token for token, control, unknown in flags if (control or unknown) and token not in self._visible]
        return dict(zip(self._processor.id_to_piece(found), found, strict=True))

    def is_control(self, token: int) -> bool:
        """Return whether an id below `size` is a control or unknown piece, not text."""
        return (self._processor.is_control(token) and token not in self._visible) or self._processor.is_unknown(token)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and without control tokens.

        Any str is accepted: a lone surrogate is replaced by U+FFFD. U+2581 is read as a space, as by every tokenizer of
        the family.
        """
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            encoded = text.encode()
        if self._matcher is None:
            return self._processor.encode(encoded)
        parts = self._matcher.split(text)
        return [
            token for part in parts for token in (self._processor.encode(part) if isinstance(part, str) else [part])
        ]

    def join(self, pieces: Iterable[str | int]) -> list[int]:
        """Return the ids of texts and control tokens, which may take the whitespace beside them."""
        pieces = list(pieces)
        stripped = self._matcher.strip(pieces) if self._matcher else pieces
        return [token for piece in stripped for token in (self.encode(piece) if isinstance(piece, str) else [piece])]

    def id_of(self, piece: str) -> int:
        """Return the id of a control piece such as `<end_of_turn>`.

        Raises:
            GemwrightError: The vocabulary has no such control piece.
        """
        slot = next((index for index, names in INFILL_SLOTS.items() if piece in names), self.size)
        if slot < self.size and self._processor.id_to_piece(slot) in INFILL_SLOTS[slot]:
            return slot
        token: int = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(token) != piece or not self.is_control(token):
            raise GemwrightError(
                f"The vocabulary has no control token {piece!r}: use a model that was trained with it."
            )
        return token

    def with_bos(self, ids: Iterable[int]) -> list[int]:
        """Return the ids after exactly one BOS; leading BOS ids are removed first."""
        ids = list(ids)
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        return [self.bos_id, *ids[start:]]

    def piece_bytes(self, token: int, keep_control: bool = False) -> bytes:
        """Return the UTF-8 bytes of one id; a byte piece may be part of a character.

        Args:
            token: Id below `size`.
            keep_control: Return the name of a control piece instead of nothing.

        Raises:
            GemwrightError: The id is outside the vocabulary.
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
        """Return the text of ids; invalid UTF-8 becomes U+FFFD.

        Args:
            ids: Ids below `size`.
            keep_control: Write control pieces by name instead of omitting them.

        Raises:
            GemwrightError: An id is outside the vocabulary.
        """
        return b"".join([self.piece_bytes(token, keep_control) for token in ids]).decode("utf-8", "replace")

    def stream(self, keep_control: bool = False) -> "TextStream":
        """Return a decoder that takes one id at a time; the argument is that of `decode`."""
        return TextStream(self, keep_control)


def _make_matcher(vocabulary: Vocabulary) -> AddedTokenMatcher:
    whole = np.flatnonzero(vocabulary.kinds == sentencepiece_model.USER_DEFINED).tolist()
    others = {vocabulary.pieces[index]: index for index in whole if index not in vocabulary.contextual}
    others = {piece: index for piece, index in others.items() if SPACE not in piece}
    return AddedTokenMatcher(vocabulary.contextual, others)


@final
class TextStream:
    """An incremental decoder that never splits a character: its outputs, joined, equal `decode`."""

    def __init__(self, tokenizer: Tokenizer, keep_control: bool = False):
        self._tokenizer = tokenizer
        self._keep_control = keep_control
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the characters that this id completes, if any."""
        return self._decoder.decode(self._tokenizer.piece_bytes(token, self._keep_control))

    def finish(self) -> str:
        """Return U+FFFD if a character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)
