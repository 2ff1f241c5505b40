"""One vocabulary for every tokenizer file: SentencePiece `.model`, Hugging Face `tokenizer.json` and GGUF.

Pieces are spelled as by SentencePiece, with U+2581 for a space. The readers convert three conventions to one form, so
that one tokenizer gives the same `Vocabulary` from each of its files:

* a piece that the file calls special is CONTROL, and another that is matched whole in a text (`<b>`, `<think>`) is
  USER_DEFINED; the family's own markers are CONTROL whatever the file says, and whitespace runs USER_DEFINED;
* only learned pieces have a score, which decreases with the id; all others have 0;
* byte pieces are spelled `<0x00>` .. `<0xFF>`.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError
from gemwright.text import sentencepiece_model, tokenizer_json
from gemwright.text.added_tokens import AddedToken
from gemwright.text.merges import follow_ids, rank_pieces
from gemwright.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from gemwright.text.tokenizer_json import SPACE

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Pieces of every Gemma vocabulary, at ids 0 .. 3."""

INFILL_SLOTS = {
    67: ("<|fim_prefix|>", "<unused60>"),
    68: ("<|fim_middle|>", "<unused61>"),
    69: ("<|fim_suffix|>", "<unused62>"),
    70: ("<|file_separator|>", "<unused63>"),
}
"""Ids of CodeGemma's markers, which its SentencePiece model still names `<unused..>` (CodeGemma's model card)."""

MARKERS = frozenset(
    {
        *(*SPECIAL, "<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>"),
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<image>"),
        *("<start_of_audio>", "<end_of_audio>", "<audio_soft_token>"),
        *("<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>"),
        *(name for name, _ in INFILL_SLOTS.values()),
    }
)
"""Control tokens of the family: files may type them as text, and then a user's text could open a turn."""

MAX_PIECE = 256
"""Maximum length of a piece in characters; the longest published one has about fifty."""
_MAX_SYMBOLS = 1 << 14
"""Maximum number of symbols at the end of a vocabulary that are found by their text; Gemma 3 has 6,145."""

_TEXT_LIKE = re.compile(rf"\n+|\t+|{SPACE}+|<loc[0-9]{{4}}>|<seg[0-9]{{3}}>")
# Kind of a symbol by the kind in its file; some converters call symbols NORMAL.
_SYMBOL_KINDS = np.array([0, USER_DEFINED, CONTROL, CONTROL, USER_DEFINED, CONTROL, CONTROL], np.uint8)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")

# Score that llama.cpp's converter writes for every control or user-defined piece.
_GGUF_UNSCORED = -1000.0


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The pieces of a Gemma tokenizer, by id.

    Attributes:
        pieces: Text of every id, U+2581 for a space.
        scores: Merge priority of every NORMAL piece, highest first; 0 for all others.
        kinds: SentencePiece type of every id: NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4,
            UNUSED 5, BYTE 6.
        contextual: The added tokens whose match depends on the text around them, by id; usually none.
    """

    pieces: tuple[str, ...]
    scores: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    contextual: Mapping[int, AddedToken] = dataclasses.field(default_factory=dict[int, AddedToken])

    @classmethod
    def from_sentencepiece(cls, source: Path | bytes) -> "Vocabulary":
        """Read a `.model` file, or its content.

        Raises:
            CheckpointError: The file is damaged or is not a Gemma vocabulary.
        """
        data = source if isinstance(source, bytes) else source.read_bytes()
        return _canonicalize(*sentencepiece_model.parse(data))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Vocabulary":
        """Read the vocabulary from the metadata of a GGUF file.

        Without scores, or if all are equal as in a vocabulary of type "gemma4", the merges order the pieces.

        Args:
            metadata: `tokenizer.ggml.tokens`, `.token_type` and `.scores` as sequences of equal length, or `.merges`.

        Raises:
            CheckpointError: A key is missing, lengths differ, or it is not a Gemma vocabulary.
        """
        merges = metadata.get("tokenizer.ggml.merges")
        try:
            pieces, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
            pieces, kinds = list(pieces), np.asarray(kinds, np.int64)
            scores = metadata.get("tokenizer.ggml.scores") if merges else metadata["tokenizer.ggml.scores"]
            scores = None if scores is None else np.asarray(scores, np.float32)
            merges = [str(merge) for merge in merges or ()]
            if kinds.ndim != 1 or (scores is not None and scores.ndim != 1):
                raise TypeError("not a sequence of numbers")
        except KeyError as error:
            raise CheckpointError(f"The GGUF metadata has no {error}: use a file that includes it.") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                "The vocabulary in the GGUF metadata has the wrong type: convert the model again."
            ) from error
        if not np.all((kinds >= NORMAL) & (kinds <= BYTE)):
            raise CheckpointError("The GGUF metadata has a token type that is not from 1 to 6: convert the model.")
        if merges and (scores is None or not np.ptp(scores)):
            pieces = _check_pieces(pieces, scores, kinds)
            ranks = rank_pieces(pieces, merges)
            whole = np.isinf(ranks) & (np.fromiter(map(len, pieces), np.int64, len(pieces)) > 1)
            kinds[whole & (kinds == NORMAL)] = USER_DEFINED
            scores = -np.minimum(ranks, len(merges)).astype(np.float32)
        return _canonicalize(pieces, scores, kinds.astype(np.uint8))

    @classmethod
    def from_tokenizer_json(cls, path: Path) -> "Vocabulary":
        """Read a Hugging Face `tokenizer.json`.

        Ids are in the order of the merges, as in all published files. If they are not, which samples show, the merges
        order the pieces.

        Raises:
            CheckpointError: The file is damaged or is not a Gemma vocabulary.
        """
        data = path.read_bytes()
        pieces, added = tokenizer_json.parse(data)
        kinds = np.full(len(pieces), NORMAL, np.uint8)
        for index, token in added.items():
            kinds[index] = CONTROL if token.special else USER_DEFINED
        vocabulary = _canonicalize(pieces, None, kinds)._with_contextual(added)
        learned, parts = vocabulary.kinds == NORMAL, tokenizer_json.sample_merges(data)
        if not parts or follow_ids(parts, pieces, learned):
            return vocabulary
        merges = tokenizer_json.read_merges(data)
        ranks = rank_pieces(pieces, [f"{left} {right}" for left, right in merges])
        unformed = np.flatnonzero(np.isinf(ranks) & learned & (np.fromiter(map(len, pieces), np.int64) > 1))
        if unformed.size:
            raise CheckpointError(
                f"No merge of the tokenizer.json forms {len(unformed)} pieces, such as {pieces[unformed[0]]!r}: "
                "use the files of the model that was fine-tuned."
            )
        scores = -np.minimum(ranks, len(merges)).astype(np.float32)
        return _canonicalize(pieces, scores, kinds)._with_contextual(added)

    def with_added_tokens(self, added: Mapping[int, AddedToken]) -> "Vocabulary":
        """Return the vocabulary with added tokens, each at its id, where it may replace a piece.

        Raises:
            CheckpointError: Ids have a gap, or two ids have the same piece.
        """
        pieces, kinds = list(self.pieces), self.kinds.tolist()
        for index, token in sorted(added.items()):
            if index > len(pieces):
                raise CheckpointError(f"The ids of the tokens have a gap at {len(pieces)}: fetch all tokenizer files.")
            if index == len(pieces):
                pieces.append("")
                kinds.append(NORMAL)
            if kinds[index] not in (UNKNOWN, BYTE):
                pieces[index], kinds[index] = spell(token.content), CONTROL if token.special else USER_DEFINED
        scores = np.append(self.scores, np.zeros(len(pieces) - self.size, np.float32))
        return _canonicalize(pieces, scores, np.array(kinds, np.uint8))._with_contextual({**self.contextual, **added})

    def _with_contextual(self, added: Mapping[int, AddedToken]) -> "Vocabulary":
        """Return the vocabulary with the tokens of which the match depends on the text around, special as it says."""
        return dataclasses.replace(
            self,
            contextual={
                index: dataclasses.replace(token, special=bool(self.kinds[index] != USER_DEFINED))
                for index, token in added.items()
                if token.contextual
            },
        )

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def sentencepiece_model(self) -> bytes:
        """Return the content of a `.model` file, in which markers are user-defined symbols, as in Google's files."""
        kinds, symbols = self.kinds.copy(), MARKERS.difference(SPECIAL)
        markers = [index for index in np.flatnonzero(kinds == CONTROL).tolist() if self.pieces[index] in symbols]
        kinds[markers] = USER_DEFINED
        return sentencepiece_model.serialize(self.pieces, self.scores, kinds)

    def gguf_metadata(self) -> dict[str, Any]:
        """Return the `tokenizer.ggml.*` metadata of a GGUF file, with the conventions of llama.cpp's converter."""
        stored = list(self.pieces)
        for index in np.flatnonzero(self.kinds == USER_DEFINED).tolist():
            stored[index] = stored[index].replace(SPACE, " ")
        scored = (self.kinds == NORMAL) | (self.kinds == BYTE)
        values = {
            "model": "llama",
            "pre": "default",
            "tokens": stored,
            "scores": np.where(scored, self.scores, np.float32(_GGUF_UNSCORED)),
            "token_type": self.kinds.astype(np.int32),
            "bos_token_id": self.pieces.index("<bos>"),
            "eos_token_id": self.pieces.index("<eos>"),
            "unknown_token_id": self.pieces.index("<unk>"),
            "padding_token_id": self.pieces.index("<pad>"),
            "add_bos_token": True,
            "add_eos_token": False,
            "add_space_prefix": False,
        }
        return {f"tokenizer.ggml.{key}": value for key, value in values.items()}

    def tokenizer_json(self) -> dict[str, Any]:
        """Return the document of a Hugging Face `tokenizer.json`, as published with Gemma models."""
        return tokenizer_json.make_document(self.pieces, self.scores, self.kinds, self.contextual)

    @staticmethod
    def tokenizer_config(chat_template: str | None = None) -> dict[str, Any]:
        """Return the document of a Hugging Face `tokenizer_config.json`.

        Args:
            chat_template: Jinja source, for an instruction-tuned model.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "GemmaTokenizer",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "spaces_between_special_tokens": False,
        }
        return config if chat_template is None else config | {"chat_template": chat_template}


def spell(text: str) -> str:
    """Return a text as SentencePiece spells it."""
    return text.replace(" ", SPACE)


def _canonicalize(pieces: list[str], scores: NDArray[np.float32] | None, kinds: NDArray[np.uint8]) -> Vocabulary:
    """Check a vocabulary and convert it to the form described in the module's docstring.

    Args:
        pieces: As read; spaces may be plain or U+2581.
        scores: As read; None if the file has none and ids are in merge order.
        kinds: As read; symbols may be NORMAL too.
    """
    pieces = _check_pieces(pieces, scores, kinds)
    distinct = set(pieces)
    if "" in distinct or len(distinct) < len(pieces):
        raise CheckpointError("The vocabulary has an empty or a duplicate piece: download the file again.")
    missing = [piece for piece in SPECIAL if piece not in distinct]
    if missing:
        raise CheckpointError(f"The vocabulary lacks {', '.join(missing)}, so it is not a Gemma tokenizer: use one.")

    learned = _find_learned(pieces, distinct, kinds)
    kinds = np.where(learned, kinds, _SYMBOL_KINDS[kinds])
    for index in np.flatnonzero(~learned).tolist():
        if _BYTE_PIECE.fullmatch(pieces[index]):
            kinds[index] = BYTE
        elif _TEXT_LIKE.fullmatch(pieces[index]):
            kinds[index] = USER_DEFINED
    markers = [pieces.index(piece) for piece in MARKERS & distinct]
    slots = [slot for slot, names in INFILL_SLOTS.items() if slot < len(pieces) and pieces[slot] in names]
    kinds[markers + slots] = CONTROL
    kinds[pieces.index("<unk>")] = UNKNOWN

    normal = kinds == NORMAL
    if scores is None:
        scores = (1 - np.cumsum(normal)).astype(np.float32)
    scores = np.where(normal, scores, np.float32(0)) + np.float32(0)  # no negative zero
    if not np.all(np.isfinite(scores)):
        raise CheckpointError("The vocabulary has a score that is not a finite number: download the file again.")
    return Vocabulary(tuple(pieces), scores, kinds.astype(np.uint8))


def _check_pieces(pieces: list[str], scores: NDArray[np.float32] | None, kinds: NDArray[Any]) -> list[str]:
    """Check that pieces are text, and as many as scores and kinds; return them with U+2581 for each space."""
    if len(pieces) != len(kinds) or (scores is not None and len(pieces) != len(scores)):
        raise CheckpointError("The vocabulary's pieces, scores and kinds differ in number: download the file again.")
    try:
        text = "".join(pieces)
        text.encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise CheckpointError("The vocabulary has a piece that is not text: download the file again.") from error
    if max(map(len, pieces), default=0) > MAX_PIECE:
        raise CheckpointError(f"The vocabulary has a piece of more than {MAX_PIECE} characters: use another file.")
    return [spell(piece) if " " in piece else piece for piece in pieces] if " " in text else pieces


def _find_learned(pieces: list[str], distinct: set[str], kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask of the learned pieces: a contiguous range between the byte pieces and the symbols at the end.

    The kinds in a file do not suffice: some converters mark every piece NORMAL that is not special, and a
    tokenizer.json need not list all symbols.
    """

    def is_symbol(index: int) -> bool:
        piece = pieces[index]
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        return bool(
            not learned[index]
            or (_TEXT_LIKE.fullmatch(piece) and piece != SPACE)
            or (len(piece) > 1 and not any(left in distinct and right in distinct for left, right in splits))
        )

    learned = (kinds == NORMAL) | (kinds == UNUSED)
    learned[[pieces.index(piece) for piece in SPECIAL]] = False
    first = pieces.index("<0xFF>") + 1 if "<0xFF>" in distinct else 0
    last = len(pieces)
    while last > max(first, len(pieces) - _MAX_SYMBOLS) and is_symbol(last - 1):
        last -= 1
    learned[:first] = learned[last:] = False
    return learned
