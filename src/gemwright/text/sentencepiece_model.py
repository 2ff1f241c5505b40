"""The SentencePiece `.model` file: a protocol buffer of pieces, their merge scores and their kinds.

Field numbers and enum values are those of sentencepiece/src/sentencepiece_model.proto. The bytes are parsed and
written directly: a quarter of a million message objects would take seconds.
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
    """Parse a serialized ModelProto.

    Args:
        data: Content of a `.model` file, untrusted; its size bounds all allocations.

    Returns:
        Pieces, scores and kinds by id, as stored.

    Raises:
        CheckpointError: Not a protocol buffer, not a BPE model, or a piece that is not UTF-8.
    """
    try:
        pieces, tails, model_type = _read(data)
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "The SentencePiece model is damaged or not a SentencePiece model: download the file again."
        ) from error
    if model_type != _BPE:
        raise CheckpointError("The SentencePiece model is not of type BPE, as every Gemma tokenizer is: use one.")
    return pieces, tails["score"].astype(np.float32), tails["kind"].copy()


def serialize(pieces: Sequence[str], scores: NDArray[np.float32], kinds: NDArray[np.uint8]) -> bytes:
    """Serialize a ModelProto with Gemma's settings: BPE, byte fallback and no normalization.

    Args:
        pieces: Text of every id, including `<unk>`, `<bos>`, `<eos>` and `<pad>`.
        scores: Merge priority of every id, highest first.
        kinds: NORMAL .. BYTE of every id.

    Returns:
        Content of a `.model` file.
    """
    text, sizes = _join_texts(pieces)

    # All lengths use as many bytes as the longest, one in every Gemma, so that the bytes around texts form a table.
    width = len(_encode_varint(int(sizes.max()) + 2 * _TAIL.itemsize))
    head = [("piece_tag", "u1"), ("piece_size", "u1", (width,)), ("text_tag", "u1"), ("text_size", "u1", (width,))]
    around = np.empty(len(pieces), [*head, *_TAIL.descr])
    head_size = around.itemsize - _TAIL.itemsize
    around["piece_tag"], around["piece_size"] = _PIECE_TAG, _encode_varints(1 + width + sizes + _TAIL.itemsize, width)
    around["text_tag"], around["text_size"] = _TEXT_TAG, _encode_varints(sizes, width)
    around["score_tag"], around["score"] = _SCORE_TAG, scores
    around["kind_tag"], around["kind"] = _KIND_TAG, kinds

    # The gap between two texts holds the tail of one piece and the head of the next.
    gaps = np.concatenate([np.zeros(_TAIL.itemsize, np.uint8), around.view(np.uint8), np.zeros(head_size, np.uint8)])
    gaps = gaps.view(f"V{around.itemsize}")
    offsets = np.append(0, np.cumsum(sizes)) + around.itemsize * np.arange(len(gaps))
    content = np.empty(len(text) + gaps.nbytes, np.uint8)
    is_text = np.ones(len(content), np.bool_)
    for array, between in ((content, gaps), (is_text, np.zeros_like(gaps))):
        np.ndarray(len(array) - around.itemsize + 1, gaps.dtype, array.data, strides=(1,))[offsets] = between
    content[is_text] = text
    return content[_TAIL.itemsize : -head_size].tobytes() + _encode_trainer_spec(pieces) + _encode_normalizer_spec()


def _join_texts(pieces: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all texts as one UTF-8 buffer, and the size of each in bytes."""
    text = np.frombuffer("\0".join([*pieces, ""]).encode(), np.uint8)
    ends = np.flatnonzero(text == 0)
    if len(ends) == len(pieces):
        return text[text != 0], np.diff(ends, prepend=-1) - 1
    encoded = [piece.encode() for piece in pieces]  # a piece contains a zero byte
    return np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(map(len, encoded), np.int64, len(encoded))


def _read(data: bytes) -> tuple[list[str], NDArray[np.void], int | bytes]:
    """Return the text and tail of every piece, and the model type."""
    starts, text_ends, ends, tails = _find_usual_pieces(data)
    is_piece, others, model_type = _walk(data, starts, ends)
    starts, text_ends, tails = starts[is_piece], text_ends[is_piece], tails[is_piece]
    pieces = _decode_texts(data, starts + 4, text_ends)
    if others:
        other_pieces = [_require_bytes(message.get(_TEXT, b"")).decode() for message in others.values()]
        other_tails = np.frombuffer(b"".join(map(_encode_tail, others.values())), _TAIL)
        indices = np.searchsorted(starts, list(others))
        pieces = np.insert(np.array(pieces, np.object_), indices, other_pieces).tolist()
        tails = np.insert(tails, indices, other_tails)
    return pieces, tails, model_type


def _find_usual_pieces(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.void]]:
    """Find all byte sequences that look like a piece written by SentencePiece; some may be inside another field.

    Returns:
        Start, end of text, end (all ascending) and tail of each.
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
    """Walk from field to field, skipping each run of usual pieces in one step.

    Returns:
        Mask of the candidates that are pieces, messages of all other pieces by position, and the model type.
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
        field, value, position = _read_field(data, start)
        if field == _PIECES:
            others[start] = _read_message(value)
        elif field == _TRAINER:
            model_type = _read_message(value).get(_MODEL_TYPE, _UNIGRAM)
    return is_piece, others, model_type


def _decode_texts(data: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    """Return the texts between the given positions, decoded in one call with a zero byte before each."""
    content = np.frombuffer(data, np.uint8).copy()
    content[begins - 1] = 0
    gaps_and_texts = np.diff(np.column_stack([begins - 1, ends]).ravel(), prepend=0)
    is_text = np.repeat(np.tile([False, True], len(begins)), gaps_and_texts)
    pieces = content[: len(is_text)][is_text].tobytes().decode().split("\0")[1:]
    if len(pieces) == len(begins):
        return pieces
    return [data[begin:end].decode() for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _read_field(data: bytes, position: int) -> tuple[int, int | bytes, int]:
    """Return (number, value, next position) of the field at `position`; only a varint has an int value."""
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


def _read_message(data: int | bytes) -> dict[int, int | bytes]:
    data = _require_bytes(data)
    fields: dict[int, int | bytes] = {}
    position = 0
    while position < len(data):
        number, fields[number], position = _read_field(data, position)
    return fields


def _require_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("found a number, expected bytes")
    return value


def _encode_tail(message: dict[int, int | bytes]) -> bytes:
    """Return the score and kind of a piece, encoded as SentencePiece writes them."""
    score, kind = _require_bytes(message.get(_SCORE, bytes(4))), message.get(_KIND, NORMAL)
    if len(score) != 4 or not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise TypeError("invalid score or kind of a piece")
    return bytes([_SCORE_TAG, *score, _KIND_TAG, kind])


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _encode_number(field: int, value: int) -> bytes:
    return _encode_varint(field << 3 | _VARINT) + _encode_varint(value)


def _encode_bytes(field: int, content: bytes) -> bytes:
    return _encode_varint(field << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_varints(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the bytes [values, width] of every varint, padded to one width."""
    groups = values[:, np.newaxis] >> np.arange(0, 7 * width, 7) & 0x7F
    groups[:, :-1] |= 0x80
    return groups


def _encode_trainer_spec(pieces: Sequence[str]) -> bytes:
    numbers = {
        _MODEL_TYPE: _BPE,
        _VOCAB_SIZE: len(pieces),
        _SPLIT_DIGITS: 1,
        _WHITESPACE_ONLY: 1,
        _BYTE_FALLBACK: 1,
    }
    numbers |= {field: pieces.index(piece) for piece, field in _SPECIAL_IDS.items()}
    content = [_encode_number(field, number) for field, number in numbers.items()]
    content += [_encode_bytes(field, piece.encode()) for piece, field in _SPECIAL_PIECES.items()]
    return _encode_bytes(_TRAINER, b"".join(content))


def _encode_normalizer_spec() -> bytes:
    settings = _encode_number(_ADD_DUMMY_PREFIX, 0) + _encode_number(_REMOVE_EXTRA_WHITESPACES, 0)
    return _encode_bytes(_NORMALIZER, _encode_bytes(_NAME, b"identity") + settings)
