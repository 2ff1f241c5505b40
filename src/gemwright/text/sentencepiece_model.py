"""The SentencePiece `.model` file: a protocol buffer of pieces, their merge scores and their kinds.

Field numbers and enum values are those of sentencepiece/src/sentencepiece_model.proto. The bytes are read and
written here, without message objects: a quarter of a million of those cost seconds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`ModelProto.SentencePiece.Type`; GGUF's `token_type` uses the same numbers."""

# Field numbers of ModelProto, ModelProto.SentencePiece, TrainerSpec and NormalizerSpec, in this order.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _VOCAB_SIZE, _SPLIT_DIGITS, _WHITESPACE_ONLY, _BYTE_FALLBACK = 3, 4, 25, 26, 35
_SPECIAL_IDS = {"<unk>": 40, "<bos>": 41, "<eos>": 42, "<pad>": 43}
_SPECIAL_PIECES = {"<unk>": 45, "<bos>": 46, "<eos>": 47, "<pad>": 48}
_NAME, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 1, 3, 4

_UNIGRAM, _BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# A piece's message as SentencePiece writes it: text, score, kind. A NORMAL piece may omit its kind.
_PIECE_TAG, _TEXT_TAG, _SCORE_TAG, _KIND_TAG = 0x0A, 0x0A, 0x15, 0x18
_TAIL = np.dtype([("score_tag", "u1"), ("score", "<f4"), ("kind_tag", "u1"), ("kind", "u1")])
_NORMAL_KIND = bytes([_KIND_TAG, NORMAL])


def parse(data: bytes) -> tuple[list[str], NDArray[np.float32], NDArray[np.uint8]]:
    """Reads a serialised ModelProto.

    Args:
        data: the content of a `.model` file, from anywhere; its size bounds everything that is allocated.

    Returns:
        Pieces, scores and kinds, one entry an id, as they stand in the file.

    Raises:
        CheckpointError: not a protocol buffer, not a BPE model, or a piece that is not UTF-8.
    """
    texts: list[bytes] = []
    tails: list[bytes] = []
    model_type = _BPE
    position = 0
    try:
        while position < len(data):
            if data[position] == _PIECE_TAG and data[position + 1] < 0x80 and data[position + 2] == _TEXT_TAG:
                start = position + 4
                middle = start + data[position + 3]
                position += 2 + data[position + 1]
                if middle > position:
                    raise IndexError("the text of a piece runs past the piece")
                texts.append(data[start:middle])
                tails.append(data[middle:position])
                continue
            number, value, position = _field(data, position)
            if number == _PIECES:
                message = _message(value)
                texts.append(_as_bytes(message.get(_TEXT, b"")))
                tails.append(_tail(message))
            elif number == _TRAINER:
                model_type = _message(value).get(_MODEL_TYPE, _UNIGRAM)
        if position > len(data):
            raise IndexError("the last piece runs past the end")
        pieces = [text.decode() for text in texts]
        table = _tail_table(tails)
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "The SentencePiece model is damaged or is something else: fetch the file again."
        ) from error
    if model_type != _BPE:
        raise CheckpointError("The SentencePiece model is not of type BPE as every Gemma's is: give Gemma's own file.")
    return pieces, table["score"].astype(np.float32), table["kind"].copy()


def serialize(pieces: Sequence[str], scores: NDArray[np.float32], kinds: NDArray[np.uint8]) -> bytes:
    """Writes a ModelProto with Gemma's settings: BPE, byte fallback, no normalisation of any kind.

    Args:
        pieces: the text of every id; `<unk>`, `<bos>`, `<eos>` and `<pad>` are among them.
        scores: merge priority of every id, higher first.
        kinds: NORMAL .. BYTE of every id.

    Returns:
        The content of a `.model` file.
    """
    texts = [piece.encode() for piece in pieces]
    tails = np.empty(len(pieces), _TAIL)
    tails["score_tag"], tails["score"], tails["kind_tag"], tails["kind"] = (
        _SCORE_TAG,
        scores,
        _KIND_TAG,
        kinds,
    )
    heads = [_piece_head(size) for size in range(max(map(len, texts)) + 1)]

    parts = [b""] * (3 * len(pieces))  # one flat join: no message, no concatenation a piece
    parts[0::3] = [heads[len(text)] for text in texts]
    parts[1::3] = texts
    parts[2::3] = tails.view(f"V{_TAIL.itemsize}").tolist()
    parts += [_trainer_spec(pieces), _normalizer_spec()]
    return b"".join(parts)


def _field(data: bytes, position: int) -> tuple[int, int | bytes, int]:
    """(number, value, next position) of the field at `position`; only a varint's value is an int."""
    tag, position = _read_varint(data, position)
    number, wire = tag >> 3, tag & 7
    if wire == _VARINT:
        value, position = _read_varint(data, position)
        return number, value, position
    if wire == _BYTES:
        size, position = _read_varint(data, position)
    else:
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire, len(data) + 1)
    if position + size > len(data):
        raise IndexError(f"field {number} runs past the end")
    return number, data[position : position + size], position + size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError("a number of more than ten bytes")


def _message(data: int | bytes) -> dict[int, int | bytes]:
    data = _as_bytes(data)
    fields: dict[int, int | bytes] = {}
    position = 0
    while position < len(data):
        number, fields[number], position = _field(data, position)
    return fields


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number stands where bytes belong")
    return value


def _tail(message: dict[int, int | bytes]) -> bytes:
    """Score and kind of a piece, in the bytes in which SentencePiece would have written them."""
    score, kind = _as_bytes(message.get(_SCORE, bytes(4))), message.get(_KIND, NORMAL)
    if len(score) != 4 or not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise TypeError("a piece has a score or a kind that is none")
    return bytes([_SCORE_TAG, *score, _KIND_TAG, kind])


def _tail_table(tails: list[bytes]) -> NDArray[np.void]:
    """One row of _TAIL for each piece."""
    standard = [tail + _NORMAL_KIND if len(tail) == 5 else tail for tail in tails]
    joined = b"".join(standard)
    if all(len(tail) == _TAIL.itemsize for tail in standard):
        table = np.frombuffer(joined, _TAIL)
        tags = (table["score_tag"] == _SCORE_TAG) & (table["kind_tag"] == _KIND_TAG)
        if np.all(tags & (table["kind"] >= NORMAL) & (table["kind"] <= BYTE)):
            return table
    return np.frombuffer(b"".join(_tail(_message(tail)) for tail in tails), _TAIL)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _delimited(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _piece_head(size: int) -> bytes:
    """What stands before the text of a piece of `size` bytes: two tags and two lengths."""
    inner = bytes([_TEXT_TAG]) + _varint(size)
    return bytes([_PIECE_TAG]) + _varint(len(inner) + size + _TAIL.itemsize) + inner


def _trainer_spec(pieces: Sequence[str]) -> bytes:
    numbers = {
        _MODEL_TYPE: _BPE,
        _VOCAB_SIZE: len(pieces),
        _SPLIT_DIGITS: 1,
        _WHITESPACE_ONLY: 1,
        _BYTE_FALLBACK: 1,
    }
    numbers |= {field: pieces.index(piece) for piece, field in _SPECIAL_IDS.items()}
    content = [_number(field, number) for field, number in numbers.items()]
    content += [_delimited(field, piece.encode()) for piece, field in _SPECIAL_PIECES.items()]
    return _delimited(_TRAINER, b"".join(content))


def _normalizer_spec() -> bytes:
    settings = _number(_ADD_DUMMY_PREFIX, 0) + _number(_REMOVE_EXTRA_WHITESPACES, 0)
    return _delimited(_NORMALIZER, _delimited(_NAME, b"identity") + settings)
