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


def parse(data: bytes) -> tuple[list[str], NDArray[np.float32], NDArray[np.uint8]]:
    """Reads a serialised ModelProto.

    Args:
        data: the content of a `.model` file, from anywhere; its size bounds everything that is allocated.

    Returns:
        Pieces, scores and kinds, one entry an id, as they stand in the file.

    Raises:
        CheckpointError: not a protocol buffer, not a BPE model, or a piece that is not UTF-8.
    """
    try:
        pieces, tails, model_type = _read(data)
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "The SentencePiece model is damaged or is something else: fetch the file again."
        ) from error
    if model_type != _BPE:
        raise CheckpointError("The SentencePiece model is not of type BPE as every Gemma's is: give Gemma's own file.")
    return pieces, tails["score"].astype(np.float32), tails["kind"].copy()


def serialize(pieces: Sequence[str], scores: NDArray[np.float32], kinds: NDArray[np.uint8]) -> bytes:
    """Writes a ModelProto with Gemma's settings: BPE, byte fallback, no normalisation of any kind.

    Args:
        pieces: the text of every id; `<unk>`, `<bos>`, `<eos>` and `<pad>` are among them.
        scores: merge priority of every id, higher first.
        kinds: NORMAL .. BYTE of every id.

    Returns:
        The content of a `.model` file.
    """
    text, sizes = _text(pieces)

    # All lengths are as wide as the longest, one byte in every Gemma, so that what stands around the texts is a table.
    width = len(_varint(int(sizes.max()) + 2 * _TAIL.itemsize))
    head = [("piece_tag", "u1"), ("piece_size", "u1", (width,)), ("text_tag", "u1"), ("text_size", "u1", (width,))]
    around = np.empty(len(pieces), [*head, *_TAIL.descr])
    head_size = around.itemsize - _TAIL.itemsize
    around["piece_tag"], around["piece_size"] = _PIECE_TAG, _varints(1 + width + sizes + _TAIL.itemsize, width)
    around["text_tag"], around["text_size"] = _TEXT_TAG, _varints(sizes, width)
    around["score_tag"], around["score"] = _SCORE_TAG, scores
    around["kind_tag"], around["kind"] = _KIND_TAG, kinds

    # What stands between two texts is the tail of one piece and the head of the next.
    gaps = np.concatenate([np.zeros(_TAIL.itemsize, np.uint8), around.view(np.uint8), np.zeros(head_size, np.uint8)])
    gaps = gaps.view(f"V{around.itemsize}")
    places = np.append(0, np.cumsum(sizes)) + around.itemsize * np.arange(len(gaps))
    content = np.empty(len(text) + gaps.nbytes, np.uint8)
    is_text = np.ones(len(content), np.bool_)
    for array, between in ((content, gaps), (is_text, np.zeros_like(gaps))):
        np.ndarray(len(array) - around.itemsize + 1, gaps.dtype, array.data, strides=(1,))[places] = between
    content[is_text] = text
    return content[_TAIL.itemsize : -head_size].tobytes() + _trainer_spec(pieces) + _normalizer_spec()


def _text(pieces: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All texts in UTF-8, and the size of each."""
    text = np.frombuffer("\0".join([*pieces, ""]).encode(), np.uint8)
    ends = np.flatnonzero(text == 0)
    if len(ends) == len(pieces):
        return text[text != 0], np.diff(ends, prepend=-1) - 1
    encoded = [piece.encode() for piece in pieces]  # one holds a zero byte itself
    return np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(map(len, encoded), np.int64, len(encoded))


def _read(data: bytes) -> tuple[list[str], NDArray[np.void], int | bytes]:
    """Text and tail of every piece, and the type of the model."""
    starts, text_ends, ends, tails = _find_usual(data)
    is_piece, others, model_type = _walk(data, starts, ends)
    starts, text_ends, tails = starts[is_piece], text_ends[is_piece], tails[is_piece]
    pieces = _texts(data, starts + 4, text_ends)
    if others:
        other_pieces = [_as_bytes(message.get(_TEXT, b"")).decode() for message in others.values()]
        other_tails = np.frombuffer(b"".join(map(_tail, others.values())), _TAIL)
        places = np.searchsorted(starts, list(others))
        pieces = np.insert(np.array(pieces, np.object_), places, other_pieces).tolist()
        tails = np.insert(tails, places, other_tails)
    return pieces, tails, model_type


def _find_usual(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.void]]:
    """All places that read as a piece that SentencePiece wrote, of which a few may lie inside of another field.

    Returns:
        Where each starts, where its text ends and where it ends itself, all ascending, and its tail.
    """
    padded = data + bytes(_TAIL.itemsize)
    content = np.frombuffer(padded, np.uint8)
    starts = np.flatnonzero((content[:-2] == _PIECE_TAG) & (content[2:] == _TEXT_TAG))
    sizes, text_sizes = content[starts + 1].astype(np.int64), content[starts + 3].astype(np.int64)
    ends, text_ends = starts + 2 + sizes, starts + 4 + text_sizes
    without_kind = ends - text_ends == _TAIL.itemsize - 2
    fits = (sizes < 0x80) & (ends <= len(data)) & (without_kind | (ends - text_ends == _TAIL.itemsize))
    starts, text_ends, ends, without_kind = starts[fits], text_ends[fits], ends[fits], without_kind[fits]

    tail_at = np.ndarray(len(data) + 1, f"V{_TAIL.itemsize}", padded, strides=(1,))
    tails = tail_at[text_ends].view(_TAIL)
    tails["kind_tag"][without_kind], tails["kind"][without_kind] = _KIND_TAG, NORMAL
    is_tail = (tails["score_tag"] == _SCORE_TAG) & (tails["kind_tag"] == _KIND_TAG)
    is_tail &= (tails["kind"] >= NORMAL) & (tails["kind"] <= BYTE)
    return starts[is_tail], text_ends[is_tail], ends[is_tail], tails[is_tail]


def _walk(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], dict[int, dict[int, int | bytes]], int | bytes]:
    """Goes from field to field, over a run of usual pieces in one step.

    Returns:
        Which of the usual places are pieces, the messages of all other pieces by position, and the type of the model.
    """
    run_ends = np.flatnonzero(ends != np.append(starts[1:], -1))
    is_start = np.zeros(len(data), np.bool_)
    is_start[starts] = True
    is_piece = np.zeros(len(starts), np.bool_)
    others: dict[int, dict[int, int | bytes]] = {}
    model_type: int | bytes = _BPE
    position = 0
    while position < len(data):
        if is_start[position]:
            first = np.searchsorted(starts, position)
            last = run_ends[np.searchsorted(run_ends, first)]
            is_piece[first : last + 1] = True
            position = int(ends[last])
            continue
        start = position
        field, value, position = _field(data, start)
        if field == _PIECES:
            others[start] = _message(value)
        elif field == _TRAINER:
            model_type = _message(value).get(_MODEL_TYPE, _UNIGRAM)
    return is_piece, others, model_type


def _texts(data: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    """The texts between the given positions, decoded as one with a zero byte in front of each."""
    content = np.frombuffer(data, np.uint8).copy()
    content[begins - 1] = 0
    gaps_and_texts = np.diff(np.column_stack([begins - 1, ends]).ravel(), prepend=0)
    is_text = np.repeat(np.tile([False, True], len(begins)), gaps_and_texts)
    pieces = content[: len(is_text)][is_text].tobytes().decode().split("\0")[1:]
    if len(pieces) == len(begins):
        return pieces
    return [data[begin:end].decode() for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


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


def _varints(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Shape (number, width): the bytes of every number, with leading zeros to one width."""
    groups = values[:, np.newaxis] >> np.arange(0, 7 * width, 7) & 0x7F
    groups[:, :-1] |= 0x80
    return groups


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
