import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import CheckpointError
from gemwright.text import sentencepiece_model
from gemwright.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "<0x0A>", "a", "b", "ab"]
KINDS = np.array([CONTROL] * 3 + [UNKNOWN, USER_DEFINED, BYTE] + [NORMAL] * 3, np.uint8)
SCORES = np.array([0, 0, 0, 0, 0, 0, -1, -2, -0.5], np.float32)


def test_parse_equals_sentencepiece(small_model: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    ids = list(range(processor.get_piece_size()))
    pieces, scores, kinds = sentencepiece_model.parse(small_model)
    assert pieces == processor.id_to_piece(ids)
    assert scores.tolist() == processor.get_score(ids)
    assert (kinds == CONTROL).tolist() == processor.is_control(ids)
    assert (kinds == UNKNOWN).tolist() == processor.is_unknown(ids)
    assert (kinds == BYTE).tolist() == processor.is_byte(ids)
    assert (kinds == USER_DEFINED).sum() == 3 + 99 + 2 + 31 + 30 + 48


def test_sentencepiece_reads_serialized_models(small_model: bytes, torture_texts: list[str]) -> None:
    rewritten = sentencepiece_model.serialize(*sentencepiece_model.parse(small_model))
    ours = sentencepiece.SentencePieceProcessor(model_proto=rewritten)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    assert [ours.encode(text) for text in torture_texts] == [theirs.encode(text) for text in torture_texts]
    assert (ours.pad_id(), ours.eos_id(), ours.bos_id(), ours.unk_id()) == (0, 1, 2, 3)


@pytest.mark.parametrize("last", ["f" * 20000, "a\0b", "\0"])
def test_round_trip_is_exact_for_long_pieces_and_zero_bytes_too(last: str) -> None:
    pieces = [*PIECES, "\u2581" * 31, "c" * 118, "d" * 119, "e" * 130, last]
    scores = np.append(SCORES, np.float32([1e-30, -1e30, 7, 8, 9]))
    kinds = np.append(KINDS, np.uint8([USER_DEFINED, NORMAL, CONTROL, NORMAL, CONTROL]))
    again = sentencepiece_model.parse(sentencepiece_model.serialize(pieces, scores, kinds))
    assert again[0] == pieces
    np.testing.assert_array_equal(again[1], scores)
    np.testing.assert_array_equal(again[2], kinds)


@pytest.mark.parametrize(
    "message",
    [
        b"\x15\x00\x00\x80\x3f\x0a\x02hi",  # score before text
        b"\x0a\x02hi\x18\x01\x15\x00\x00\x80\x3f",  # kind before score
        b"\x0a\x02hi\x15\x00\x00\x80\x3f\xc2\x0c\x03xyz",  # unknown field
    ],
)
def test_any_order_of_fields_is_read(message: bytes) -> None:
    data = sentencepiece_model.serialize(PIECES, SCORES, KINDS)
    pieces, scores, kinds = sentencepiece_model.parse(b"\x0a" + bytes([len(message)]) + message + data)
    assert (pieces[0], scores[0], kinds[0]) == ("hi", 1.0, NORMAL)
    assert pieces[1:] == PIECES
    np.testing.assert_array_equal(kinds[1:], KINDS)


def encode_piece(text: bytes, rest: bytes = b"\x15\x00\x00\x80\x3f") -> bytes:
    """Return a record as SentencePiece writes it; an empty `rest` leaves score and kind at their defaults."""
    message = b"\x0a" + bytes([len(text)]) + text + rest
    return b"\x0a" + bytes([len(message)]) + message


def test_records_of_all_layouts_keep_their_order() -> None:
    user_defined, byte, settings = b"\x15\x00\x00\x00\x40\x18\x04", b"\x18\x06", b"\x12\x02\x18\x02"
    wide_length = b"\x0a\x83\x00" + encode_piece(b"c", b"")[2:]
    data = (
        encode_piece(b"a")
        + encode_piece(b"b", b"")
        + encode_piece("\u2581é".encode(), user_defined)
        + encode_piece(b"", byte)
        + settings
    )
    data += encode_piece(b"x\0y") + b"\x0a\x00" + encode_piece(b"") + wide_length
    texts = ["a", "b", "\u2581é", "", "x\0y", "", "", "c"]
    pieces, scores, kinds = sentencepiece_model.parse(data)
    assert pieces == texts
    assert scores.tolist() == [1, 0, 2, 0, 1, 0, 1, 0]
    assert kinds.tolist() == [NORMAL, NORMAL, USER_DEFINED, BYTE, NORMAL, NORMAL, NORMAL, NORMAL]


def test_a_text_that_looks_like_a_record_is_a_text() -> None:
    texts = [
        encode_piece(b"a") + b"z",
        b"z" + encode_piece(b"a"),
        encode_piece(encode_piece(b"a")),
        b"\x0a" * 10,
        b"\x0a\x0c\x0a\x03b",
    ]
    texts = [text.replace(b"\x80\x3f", b"\x00\x3f") for text in texts]  # UTF-8
    pieces, scores, _ = sentencepiece_model.parse(b"".join(map(encode_piece, texts)))
    assert pieces == [text.decode() for text in texts]
    assert scores.tolist() == [1] * 5


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05\x0a",
        b"\x0a\x09\x0a\x7fab\x15\x00\x00\x00\x00",  # the text is longer than its piece
        b"\x0a\x70\x0a\x02ab\x15\x00\x00\x00\x00",  # the piece is longer than the file
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a length of 2**70
        b"\x0a\x09\x0a\x02\xff\xfe\x15\x00\x00\x00\x00",  # not UTF-8
        b"\x0a\x0b\x0a\x02ab\x15\x00\x00\x00\x00\x18\x09",  # no such kind
        b"\x08\x01\x0a\x04\x08\x07\x10\x07",  # text is a number
        b"\x0b\x0c",  # groups, which no version of the format has
        b"<html>not a model</html>",
    ],
)
def test_damage_is_one_sentence(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^The SentencePiece model is damaged.*\.$"):
        sentencepiece_model.parse(data)


def test_other_model_types_are_rejected() -> None:
    with pytest.raises(CheckpointError, match="BPE"):
        sentencepiece_model.parse(b"\x12\x02\x18\x01")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_never_crash(data: st.DataObject) -> None:
    content = bytearray(sentencepiece_model.serialize(PIECES, SCORES, KINDS))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        pieces, scores, kinds = sentencepiece_model.parse(bytes(content))
    except CheckpointError:
        return
    assert len(pieces) == len(scores) == len(kinds) <= len(content)
    assert all(NORMAL <= kind <= BYTE for kind in kinds)
