import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from gemwright.errors import CheckpointError
from gemwright.text.merges import list_merges
from gemwright.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary

PUBLISHED = [Path(path) for path in os.environ.get("GEMWRIGHT_TOKENIZER_JSON", "").split(os.pathsep) if path]


def assert_same(actual: Vocabulary, expected: Vocabulary, exact_scores: bool = True) -> None:
    assert actual.pieces == expected.pieces
    np.testing.assert_array_equal(actual.kinds, expected.kinds)
    if exact_scores:
        np.testing.assert_array_equal(actual.scores, expected.scores)
    else:
        learned = expected.kinds == NORMAL
        np.testing.assert_array_equal(np.argsort(-actual.scores[learned]), np.argsort(-expected.scores[learned]))


def through_json(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(vocabulary.tokenizer_json(), ensure_ascii=False), encoding="utf-8")
    return Vocabulary.from_tokenizer_json(path)


def test_every_format_holds_the_small_vocabulary_exactly(small_vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert_same(Vocabulary.from_sentencepiece(small_vocabulary.sentencepiece_model()), small_vocabulary)
    assert_same(Vocabulary.from_gguf(small_vocabulary.gguf_metadata()), small_vocabulary)
    assert_same(through_json(small_vocabulary, tmp_path), small_vocabulary)


def test_every_format_holds_the_demo_vocabulary(demo_vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(demo_vocabulary.sentencepiece_model())
    assert_same(Vocabulary.from_sentencepiece(path), demo_vocabulary)
    # tokenizer.json has ranks but no scores, and the scores of this file have gaps.
    assert_same(through_json(demo_vocabulary, tmp_path), demo_vocabulary, exact_scores=False)


def test_gguf_metadata_equals_the_published_file(demo_metadata: dict[str, Any], demo_vocabulary: Vocabulary) -> None:
    written = demo_vocabulary.gguf_metadata()
    kinds = "tokenizer.ggml.token_type"
    for key in written.keys() - {kinds}:
        np.testing.assert_array_equal(np.asarray(written[key]), np.asarray(demo_metadata[key]), err_msg=key)
    # The one difference: the published file calls <unk> a control piece and three markers user-defined.
    changed = np.flatnonzero(written[kinds] != np.asarray(demo_metadata[kinds])).tolist()
    names = [demo_vocabulary.pieces[index] for index in changed]
    assert names == ["<unk>", "[multimodal]", "<start_of_image>", "<end_of_image>"]
    assert written[kinds][changed].tolist() == [UNKNOWN, CONTROL, CONTROL, CONTROL]


def test_kinds_of_gemma_3(demo_vocabulary: Vocabulary) -> None:
    kinds = demo_vocabulary.kinds
    assert demo_vocabulary.size == len(kinds) == 262144
    assert kinds[3] == UNKNOWN
    assert (kinds[[0, 1, 2]] == CONTROL).all()
    assert (kinds[4:107] == CONTROL).all()  # <mask> .. <end_of_turn>
    assert (kinds[107:238] == USER_DEFINED).all()  # newlines, spaces, HTML tags
    assert (kinds[238:494] == BYTE).all()
    assert (kinds[494:255968] == NORMAL).all()
    assert (kinds[255968:255999] == USER_DEFINED).all()  # tabs
    assert (kinds[255999:] == CONTROL).all()


def test_markers_are_user_defined_in_a_written_model(small_vocabulary: Vocabulary) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=small_vocabulary.sentencepiece_model())
    assert processor.encode("<start_of_turn>\n<bos>")[:2] == [106, 108]  # as in Google's file
    assert not {0, 1, 2, 3} & set(processor.encode("<pad><eos><bos><unk>"))


def test_the_renamed_tab_of_gemma_1_is_restored_and_written(small_vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert small_vocabulary.pieces[226] == "<0x09>"
    document = small_vocabulary.tokenizer_json()
    assert document["model"]["vocab"]["\t"] == 226
    assert "<0x09>" not in document["model"]["vocab"]
    assert through_json(small_vocabulary, tmp_path).pieces[226] == "<0x09>"


def test_added_tokens_beyond_the_vocabulary_are_read(small_vocabulary: Vocabulary, tmp_path: Path) -> None:
    document = small_vocabulary.tokenizer_json()
    size = small_vocabulary.size
    document["added_tokens"].append({"id": size, "content": "<image_soft_token>", "special": True})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    vocabulary = Vocabulary.from_tokenizer_json(path)
    assert vocabulary.pieces == (*small_vocabulary.pieces, "<image_soft_token>")
    assert vocabulary.kinds[size] == CONTROL
    np.testing.assert_array_equal(vocabulary.scores[:size], small_vocabulary.scores)


def test_tokenizer_json_without_added_tokens_is_read(small_vocabulary: Vocabulary, tmp_path: Path) -> None:
    document = small_vocabulary.tokenizer_json()
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["id"] < 4]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document, indent=1))
    assert_same(Vocabulary.from_tokenizer_json(path), small_vocabulary)


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("layout", [{"indent": 2}, {"indent": None}, {"separators": (",", ":")}])
@pytest.mark.parametrize("reverse", [True, False])
def test_every_layout_of_tokenizer_json_is_read(
    ensure_ascii: bool, layout: dict[str, Any], reverse: bool, tmp_path: Path
) -> None:
    texts = [
        '"',
        "\\",
        '\\"',
        "a\\",
        '\\\\"',
        "}",
        "{",
        ":",
        ",",
        '":',
        '":1}',
        '"vocab":{',
        '"merges":[',
        "é",
        "👍",
        "\x01",
    ]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *texts]
    ids = {text: index for index, text in enumerate(pieces)}
    merges = list_merges(ids, -np.arange(len(ids), dtype=np.float32))
    model = {"byte_fallback": True, "vocab": ids, "merges": merges}
    document = {"added_tokens": [{"id": 4, "content": '"'}, {"id": len(pieces), "content": "added"}], "model": model}
    if reverse:
        document["model"] = dict(reversed(model.items()))
        document = dict(reversed(document.items()))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document, ensure_ascii=ensure_ascii, **layout), encoding="utf-8")
    vocabulary = Vocabulary.from_tokenizer_json(path)
    assert vocabulary.pieces == (*pieces, "added")
    assert vocabulary.kinds[[4, -1]].tolist() == [CONTROL, CONTROL]


def test_symbols_that_a_converter_calls_normal_are_recognized(small_vocabulary: Vocabulary) -> None:
    metadata = small_vocabulary.gguf_metadata()
    kinds = metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.token_type"] = np.where(kinds == BYTE, kinds, NORMAL)
    assert_same(Vocabulary.from_gguf(metadata), small_vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.scores": None}, "no 'tokenizer.ggml.scores'"),
        ({"tokenizer.ggml.scores": [0.0]}, "differ in number"),
        ({"tokenizer.ggml.tokens": ["<s>", "</s>", "<bos>", "<unk>", "a"]}, "lacks <pad>, <eos>"),
        ({"tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", ""]}, "empty or a duplicate piece"),
        ({"tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "<unk>"]}, "duplicate piece"),
        ({"tokenizer.ggml.scores": [0, 0, 0, 0, float("nan")]}, "not a finite number"),
        ({"tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", 7]}, "not text"),
        ({"tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "\ud800"]}, "not text"),
        ({"tokenizer.ggml.tokens": 5}, "wrong type"),
        ({"tokenizer.ggml.scores": ["a", "b", "c", "d", "e"]}, "wrong type"),
        ({"tokenizer.ggml.token_type": [3, 3, 3, 2, 9]}, "from 1 to 6"),
        ({"tokenizer.ggml.token_type": [3, 3, 3, 2, -1]}, "from 1 to 6"),
    ],
)
def test_bad_gguf_metadata_is_one_sentence(change: dict[str, Any], message: str) -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, 1],
    }
    assert Vocabulary.from_gguf(metadata).size == 5
    metadata = {key: value for key, value in (metadata | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.from_gguf(metadata)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        '{"model": {"vocab": {"a": 0}}}',
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"<pad>": 0, "<eos>": 1, "a"',
        '{"added_tokens": [3], "model": {"byte_fallback": true, "vocab": {"a": 0}}}',
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"a": 0, "b": 7}}}',
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"a": 0, "b": "1"}}}',
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"a": [], "b": 1}}}',
        '{"added_tokens": [], "model": {"byte_fallback": false, "vocab": {"a": 0, "b": 1}}}',
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"a": 0, "b": 1}}}',
        "[" * 100_000,
        '{"model": {"vocab": {"a": ' + "[" * 100_000,
        '{"added_tokens": [], "model": {"byte_fallback": true, "vocab": {"<pad>": 0, "<eos>": 1, "<bos>": 2, '
        '"<unk>": 3, "\\ud800": 4}}}',
        '{"added_tokens": [{"id": 0, "content": 5}], "model": {"byte_fallback": true, "vocab": {"a": 0, "b": 1}}}',
    ],
)
def test_bad_tokenizer_json_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"\.$"):
        Vocabulary.from_tokenizer_json(path)


@pytest.mark.parametrize(
    ("vocab", "damaged"),
    [
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}', False),
        ('{"<pad>", 0, "<eos>", 1, "<bos>", 2, "<unk>", 3}', True),
        ('{"<pad>": 0: "<eos>": 1, "<bos>": 2, "<unk>": 3}', True),
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, }', True),
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a"}', True),
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3', True),
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a\n": 4}', True),
        ('{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a": {}}', True),
    ],
)
def test_vocab_of_tokenizer_json_is_an_object(vocab: str, damaged: bool, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"added_tokens": [], "model": {{"byte_fallback": true, "vocab": {vocab}')
    if damaged:
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
            Vocabulary.from_tokenizer_json(path)
    else:
        assert Vocabulary.from_tokenizer_json(path).pieces == ("<pad>", "<eos>", "<bos>", "<unk>")


@pytest.mark.skipif(not PUBLISHED, reason="GEMWRIGHT_TOKENIZER_JSON names no published tokenizer.json files")
@pytest.mark.parametrize("path", PUBLISHED, ids=str)
def test_published_tokenizer_json(path: Path, tmp_path: Path, torture_texts: list[str]) -> None:
    published = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = Vocabulary.from_tokenizer_json(path)
    written = vocabulary.tokenizer_json()
    for part in written.keys() - {"model", "added_tokens", "pre_tokenizer"}:
        assert written[part] == published[part]
    known = published["model"]["vocab"] | {entry["content"]: entry["id"] for entry in published["added_tokens"]}
    assert written["model"]["vocab"] == known
    pairs = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in published["model"]["merges"]
    ]
    assert set(written["model"]["merges"]) == set(pairs)
    assert_same(through_json(vocabulary, tmp_path), vocabulary)

    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer(vocabulary)
    symbols = [text for text in torture_texts if "<" in text or len(text) > 31]
    for text in torture_texts if len(published["added_tokens"]) > 4 else set(torture_texts) - set(symbols):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, repr(text)
