from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import CheckpointError, GemwrightError
from gemwright.text.sentencepiece_model import BYTE, CONTROL, UNKNOWN
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary

MARKERS = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "[multimodal]", "<unused0>", "<unused98>"),
    *("<unused6241>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"),
]
# SentencePiece writes a space as U+2581, so that U+2581 is not preserved; surrogates are not valid text.
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
PARTS = st.sampled_from(["  ", "\n\n", "\t", "<b>", "</table>", "<", ">", "1", "👩‍👩‍👧‍👦", "é", "\0", "<0x0A>"])
TEXT = st.lists(PLAIN | PARTS | st.sampled_from(MARKERS), max_size=12).map("".join)


@pytest.fixture(params=["small", "demo"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(f"{request.param}_tokenizer")


def test_ids_equal_transformers(demo_tokenizer: Tokenizer, demo_oracle: Any, torture_texts: list[str]) -> None:
    # transformers' conversion merges runs of more than 31 spaces differently; see the test against sentencepiece below.
    texts = [text for text in torture_texts if " " * 32 not in text]
    assert len(texts) > 400
    for text in texts:
        assert demo_tokenizer.encode(text) == demo_oracle.encode(text, add_special_tokens=False).ids, repr(text)


def test_ids_equal_sentencepiece_with_user_defined_markers(tokenizer: Tokenizer, torture_texts: list[str]) -> None:
    model = tokenizer.vocabulary.sentencepiece_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in torture_texts:
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text), repr(text)
        assert tokenizer.decode(ids) == processor.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\n\n", [108]),
        ("0123456789", [236771, 236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 236819]),
        (" " * 33, [167, 138]),
        ("\n" * 63, [137, 137, 107]),
        ("\t", [255968]),
        ("<table></footer>", [168, 237]),
        ("\x00", [238]),
        (" ", [236743]),
        ("▁", [236743]),
    ],
)
def test_known_ids_of_gemma_3(demo_tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert demo_tokenizer.encode(text) == ids


@settings(deadline=None)
@given(text=TEXT)
def test_text_is_preserved_and_never_becomes_control(
    text: str, small_tokenizer: Tokenizer, demo_tokenizer: Tokenizer
) -> None:
    for tokenizer in (small_tokenizer, demo_tokenizer):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not np.isin(tokenizer.kinds[ids], (CONTROL, UNKNOWN)).any()


def test_every_control_piece_typed_stays_text(tokenizer: Tokenizer) -> None:
    kinds = tokenizer.kinds
    pieces = tokenizer.pieces
    names = [pieces[index] for index in np.flatnonzero((kinds == CONTROL) | (kinds == UNKNOWN))]
    ids = tokenizer.encode("".join(names))
    assert not np.isin(kinds[ids], (CONTROL, UNKNOWN)).any()
    assert tokenizer.decode(ids) == "".join(names)


@settings(deadline=None)
@given(data=st.data())
def test_stream_equals_decode(data: st.DataObject, small_tokenizer: Tokenizer) -> None:
    byte_ids = np.flatnonzero(small_tokenizer.kinds == BYTE).tolist()
    anything = st.integers(0, small_tokenizer.size - 1)
    ids = data.draw(st.lists(anything | st.sampled_from(byte_ids), max_size=40))
    stream = small_tokenizer.stream()
    pushed = [stream.push(token) for token in ids]
    assert "".join(pushed) + stream.finish() == small_tokenizer.decode(ids)


def test_stream_never_splits_a_character(demo_tokenizer: Tokenizer) -> None:
    ids = demo_tokenizer.encode("\U0010fffe")
    assert len(ids) == 4
    stream = demo_tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["", "", "", "\U0010fffe"]
    assert stream.finish() == ""
    stream.push(ids[0])
    assert stream.finish() == "\ufffd"


def test_decode_omits_control_pieces_by_default(demo_tokenizer: Tokenizer) -> None:
    ids = [2, 105, *demo_tokenizer.encode("user\nhi  there"), 106, 3]
    assert demo_tokenizer.decode(ids) == "user\nhi  there"
    kept = demo_tokenizer.decode(ids, keep_control=True)
    assert kept == "<bos><start_of_turn>user\nhi  there<end_of_turn><unk>"
    assert demo_tokenizer.piece_bytes(238 + 0xE2) == b"\xe2"
    assert demo_tokenizer.decode(np.array(ids)) == "user\nhi  there"


@pytest.mark.parametrize("token", [-1, 262144, 10**30])
def test_ids_outside_the_vocabulary_are_refused(demo_tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(GemwrightError, match=f"id {token} .* 262144"):
        demo_tokenizer.decode([token])


def test_the_vocabulary_comes_back(small_tokenizer: Tokenizer, small_vocabulary: Vocabulary) -> None:
    vocabulary = small_tokenizer.vocabulary
    assert vocabulary.pieces == small_vocabulary.pieces
    np.testing.assert_array_equal(vocabulary.scores, small_vocabulary.scores)
    np.testing.assert_array_equal(vocabulary.kinds, small_vocabulary.kinds)


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.size == len(tokenizer.pieces)


def test_id_of_control_pieces(demo_tokenizer: Tokenizer) -> None:
    names = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<unused99>", "<bos>"]
    assert [demo_tokenizer.id_of(name) for name in names] == [105, 106, 255999, 256000, 256001, 2]
    for name in ("hello", "\n", "<table>", "<0x0A>", "<|fim_prefix|>"):
        with pytest.raises(GemwrightError, match="no control token"):
            demo_tokenizer.id_of(name)


def test_infill_markers_have_two_names(small_tokenizer: Tokenizer, small_vocabulary: Vocabulary) -> None:
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"]
    slots = [f"<unused{n}>" for n in range(60, 64)]
    pieces = list(small_vocabulary.pieces)
    pieces[67:71] = names
    renamed = Tokenizer(Vocabulary(tuple(pieces), small_vocabulary.scores, small_vocabulary.kinds))
    for tokenizer in (small_tokenizer, renamed):
        assert [tokenizer.id_of(name) for name in names] == [67, 68, 69, 70]
        assert [tokenizer.id_of(slot) for slot in slots] == [67, 68, 69, 70]


@pytest.mark.parametrize("ids", [[], [5], [2], [2, 5], [2, 2, 2, 5, 2]])
def test_with_bos_puts_exactly_one_at_the_front(small_tokenizer: Tokenizer, ids: list[int]) -> None:
    rest = ids[len([i for i, token in enumerate(ids) if set(ids[: i + 1]) == {2}]) :]
    assert small_tokenizer.with_bos(ids) == [2, *rest]
    assert small_tokenizer.with_bos(small_tokenizer.with_bos(ids)) == [2, *rest]


def test_lone_surrogates_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


@pytest.mark.parametrize("text", ["hello wörld \n" * 80_000, " " * 1_000_000, "a" * 1_000_000, "\0" * 100_000])
def test_a_megabyte_of_text(demo_tokenizer: Tokenizer, text: str) -> None:
    assert demo_tokenizer.decode(demo_tokenizer.encode(text)) == text


def test_a_vocabulary_that_sentencepiece_rejects_is_one_sentence() -> None:
    pieces = ("<pad>", "<eos>", "<bos>", "<unk>", "<0x00>")
    vocabulary = Vocabulary(pieces, np.zeros(5, np.float32), np.array([3, 3, 3, 2, 6], np.uint8))
    with pytest.raises(CheckpointError, match="SentencePiece rejects the vocabulary"):
        Tokenizer(vocabulary)
