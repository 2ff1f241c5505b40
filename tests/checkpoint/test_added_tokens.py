"""Tokenizers of fine-tunes against transformers: added tokens in every file that may hold them."""

import functools
import itertools
import json
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.text import tokenizer_json
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.sentencepiece_model import CONTROL, NORMAL, UNUSED, USER_DEFINED
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import MARKERS, Vocabulary
from tests.tiny.hf import write_model
from tests.tiny.vocabulary import make_vocabulary

SIZE = make_vocabulary().size
ADDED = ["<think>", "</think>", "<|im_start|>", "<|im_end|>", "covidish", "the man"]
SPECIAL = {"<|im_start|>", "<|im_end|>"}
ROWS = SIZE + 64 + -SIZE % 64
"""Rows of an embedding table padded to a multiple of 64, as trainers do."""
TEXTS = [
    "a<think>why</think>b covidish",
    "<unused20>thought the man",
    "the manthe <think>\n  covidish</think>",
    "(<b>)",
]


def entry(content: str, **flags: Any) -> dict[str, Any]:
    matching = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": content not in SPECIAL}
    return {"content": content, "special": content in SPECIAL} | matching | flags


def published() -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Return the tokenizer files of a model before fine-tuning; in them `<unused20>` is not special."""
    vocabulary = make_vocabulary()
    kinds = vocabulary.kinds.copy()
    kinds[[piece.startswith("<unused") for piece in vocabulary.pieces]] = USER_DEFINED
    vocabulary = replace(vocabulary, kinds=kinds)
    return vocabulary.sentencepiece_model(), vocabulary.tokenizer_json(), vocabulary.tokenizer_config()


def write_tokenizer(folder: Path, kind: str) -> None:
    """Write the tokenizer of a fine-tune as different tools do."""
    model, document, config = published()
    ids = {content: SIZE + index for index, content in enumerate(ADDED)}
    if "json" in kind:
        added = [entry(content, id=index) for content, index in ids.items()]
        document["added_tokens"] += added if "decoder" not in kind else []
        (folder / "tokenizer.json").write_text(json.dumps(document))
    if "model" in kind:
        (folder / "tokenizer.model").write_bytes(model)
    if "decoder" in kind:
        whole = {str(token["id"]): token for token in document["added_tokens"]}
        whole = {index: {key: value for key, value in token.items() if key != "id"} for index, token in whole.items()}
        config["added_tokens_decoder"] = whole | {str(index): entry(content) for content, index in ids.items()}
    if "older" in kind:
        (folder / "added_tokens.json").write_text(json.dumps(ids))
        config |= {"eos_token": "<|im_end|>", "sep_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a padded table and no tokenizer."""
    folder = write_model(tmp_path_factory.mktemp("base"))
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    table = tensors["model.embed_tokens.weight"]
    padding = np.zeros((ROWS - len(table), table.shape[1]), table.dtype)
    save_file(tensors | {"model.embed_tokens.weight": np.concatenate([table, padding])}, weights, {"format": "pt"})
    for file in folder.glob("*token*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": ROWS}))
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "folder")


def assert_as_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True) == text
    for token in range(SIZE, SIZE + len(ADDED)):
        assert tokenizer.decode([token]) == reference.decode([token], skip_special_tokens=True)
    for content in SPECIAL:
        assert tokenizer.is_control(tokenizer.encode(content)[0]) is False
        assert tokenizer.decode(tokenizer.encode(content)) == content
        assert tokenizer.id_of(content) == reference.convert_tokens_to_ids(content)


KINDS = ["json", "json, stale model", "stale model, decoder", "json, decoder", "stale model, older", "json, older"]


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_of_every_file_equal_transformers(kind: str, folder: Path) -> None:
    write_tokenizer(folder, kind)
    tokenizer = Tokenizer(open_checkpoint(folder).vocabulary())
    assert tokenizer.size == SIZE + len(ADDED)
    assert_as_transformers(tokenizer, AutoTokenizer.from_pretrained(folder))


FLAGS = [
    {"lstrip": True},
    {"rstrip": True},
    {"single_word": True},
    {"lstrip": True, "rstrip": True},
    {"single_word": True, "lstrip": True, "rstrip": True},
]


@functools.cache
def contextual_tokenizers(which: int, normalized: bool) -> tuple[Tokenizer, tokenizers.Tokenizer, Any]:
    """Return tokenizers with an added token with flags, ours and the reference."""
    _, document, _ = published()
    tokens = [entry("<x>", normalized=normalized, **FLAGS[which]), entry("\n\n", normalized=False), entry("the man")]
    document["added_tokens"] += [token | {"id": SIZE + index} for index, token in enumerate(tokens)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(json.dumps(document))
        vocabulary = Vocabulary.from_tokenizer_json(file)
    reference = tokenizers.Tokenizer.from_str(json.dumps(document))
    reference.encode_special_tokens = True  # no text becomes a control token
    return Tokenizer(vocabulary), reference, document


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("which", range(len(FLAGS)))
@given(
    st.lists(
        st.sampled_from(["<x>", " ", "\n", "\n\n", "\t", "\xa0", "a", "é", "_", "\u0301", "<b>", "the man", "<bos>"])
    )
)
@settings(max_examples=60)
def test_matches_that_depend_on_the_text_around_equal_tokenizers(
    which: int, normalized: bool, parts: list[str]
) -> None:
    ours, theirs, _ = contextual_tokenizers(which, normalized)
    text = "".join(parts)
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids)
    assert not any(map(ours.is_control, ids))


def test_contextual_tokens_are_written() -> None:
    tokenizer, _, document = contextual_tokenizers(3, normalized=True)
    written = {token["content"]: token for token in tokenizer.vocabulary.tokenizer_json()["added_tokens"]}
    assert written["<x>"] == next(token for token in document["added_tokens"] if token["content"] == "<x>")


@pytest.mark.parametrize("content", ["hello", " hello", "\n\nhello", " \n\n hello ", "<x>  hello"])
def test_control_tokens_of_a_template_take_whitespace(content: str, folder: Path) -> None:
    _, document, config = published()
    flags = {"lstrip": True, "rstrip": True, "normalized": False}
    tokens = [entry("<|im_start|>", **flags), entry("\n\n", normalized=False), entry("<x>", **flags)]
    document["added_tokens"] += [token | {"id": SIZE + index} for index, token in enumerate(tokens)]
    config["chat_template"] = (
        "{% for m in messages %}\n <|im_start|> \n{{ m.role }}\n{{ m.content }}{% endfor %}<|im_start|>"
    )
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    template = ChatTemplate(Tokenizer(checkpoint.vocabulary()), checkpoint.chat_templates, checkpoint.special_tokens)
    messages = [{"role": "user", "content": content}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, return_dict=False)
    assert template.encode(messages) == expected


def test_conversion_keeps_added_tokens(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(folder, "json, stale model")
    convert(folder, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "huggingface")
    types = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert types[SIZE : SIZE + len(ADDED)] == [CONTROL if content in SPECIAL else USER_DEFINED for content in ADDED]
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "back")
    for path in (tmp_path / "model.gguf", tmp_path / "back"):
        assert_as_transformers(Tokenizer(open_checkpoint(path).vocabulary()), before)
    assert_as_transformers(Tokenizer(open_checkpoint(folder).vocabulary()), after)
    markers = [index for index, piece in enumerate(make_vocabulary().pieces) if piece in MARKERS]
    for token in set(range(SIZE + len(ADDED))).difference(markers):
        assert after.convert_ids_to_tokens(token) == before.convert_ids_to_tokens(token)
        shown = [reference.decode([token], skip_special_tokens=True) for reference in (before, after)]
        assert shown[0] == shown[1], token


@pytest.mark.peer
def test_llama_cpp_reads_added_tokens(folder: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    write_tokenizer(folder, "json")
    convert(folder, tmp_path / "model.gguf", "gguf")
    peer = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    tokenizer = Tokenizer(open_checkpoint(tmp_path / "model.gguf").vocabulary())
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert peer.tokenize(text.encode(), add_bos=False, special=False) == ids
        assert peer.detokenize(ids).decode() == text
    control = [tokenizer.id_of(content) for content in SPECIAL]
    assert peer.tokenize("".join(SPECIAL).encode(), add_bos=False, special=True) == control
    assert peer.detokenize(control) == b""


@pytest.mark.parametrize("type_of_all", [None, NORMAL])
@pytest.mark.parametrize("scores", [None, -1000.0])
def test_merges_of_a_gguf_give_the_order(scores: float | None, type_of_all: int | None, tmp_path: Path) -> None:
    _, document, _ = published()
    document["added_tokens"] += [entry(content, id=SIZE + index) for index, content in enumerate(ADDED)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    expected = Vocabulary.from_tokenizer_json(tmp_path / "tokenizer.json")
    metadata = expected.gguf_metadata()
    metadata["tokenizer.ggml.merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    del metadata["tokenizer.ggml.scores"]
    if scores is not None:
        metadata["tokenizer.ggml.scores"] = np.full(expected.size, scores, np.float32)
    if type_of_all is not None:
        types = metadata["tokenizer.ggml.token_type"]
        metadata["tokenizer.ggml.token_type"] = np.where(types == CONTROL, types, type_of_all)
    read = Vocabulary.from_gguf(metadata)
    assert read.pieces == expected.pieces
    np.testing.assert_array_equal(read.kinds, expected.kinds)
    ours, theirs = Tokenizer(read), Tokenizer(expected)
    for text in (*TEXTS, "the thing and the thinner one, in there"):
        assert ours.encode(text) == theirs.encode(text)


def reordered(pairs: list[list[str]], how: str) -> list[list[str]]:
    """Return merges in another order, with all pairs of a piece together."""
    groups = [list(group) for _, group in itertools.groupby(pairs, "".join)]
    match how:
        case "reversed":
            groups.reverse()
        case "two swapped":
            groups[0], groups[1] = groups[1], groups[0]
        case _:
            pass
    return [pair for group in groups for pair in group]


@pytest.mark.parametrize("parts", [64, 4])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("how", ["same", "reversed", "two swapped"])
def test_merges_in_another_order_are_followed(
    how: str, text: bool, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a small file is read whole or, as a large one, in parts."""
    monkeypatch.setattr(tokenizer_json, "_PARTS", parts)
    monkeypatch.setattr(tokenizer_json, "_PART_BYTES", 200 if parts == 4 else 1 << 12)
    _, document, _ = published()
    pairs = reordered([list(pair) for pair in document["model"]["merges"]], how)
    document["model"]["merges"] = [" ".join(pair) for pair in pairs] if text else pairs
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(document, indent=2, ensure_ascii=text))
    ours, theirs = Tokenizer(Vocabulary.from_tokenizer_json(file)), tokenizers.Tokenizer.from_file(str(file))
    for sample in ("the thing and the thinner one, in there", "theand ing on the", "whether then or here", *TEXTS[-1:]):
        assert ours.encode(sample) == theirs.encode(sample, add_special_tokens=False).ids, sample


@pytest.mark.parametrize(
    ("left_out", "message"), [("th e", "not those of a SentencePiece"), ("i n", "forms 1 pieces, such as 'in'")]
)
def test_merges_that_no_order_of_pieces_gives_are_refused(left_out: str, message: str, tmp_path: Path) -> None:
    _, document, _ = published()
    document["model"]["merges"] = [pair for pair in document["model"]["merges"] if " ".join(pair) != left_out]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.from_tokenizer_json(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (["a b c"], "not a pair"),
        (["t h", "z q"], "not those of a SentencePiece"),
        (["t h", "h e", "th e"], "not those of a SentencePiece"),
    ],
)
def test_merges_of_another_tokenizer_are_refused(merges: list[str], message: str) -> None:
    metadata = make_vocabulary().gguf_metadata() | {"tokenizer.ggml.merges": merges}
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.from_gguf(metadata)


def test_padding_of_a_gguf_is_no_text() -> None:
    metadata = make_vocabulary().gguf_metadata()
    metadata["tokenizer.ggml.tokens"] += [f"[PAD{SIZE + n}]" for n in range(10)]
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.full(10, -1000, np.float32))
    types = metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.token_type"] = np.append(types, np.full(10, UNUSED, np.int32))
    tokenizer = Tokenizer(Vocabulary.from_gguf(metadata))
    assert tokenizer.decode(range(SIZE, SIZE + 10)) == ""
    assert max(tokenizer.encode(f"[PAD{SIZE}]")) < SIZE


def test_markers_are_control_whatever_the_files_say(folder: Path) -> None:
    _, document, config = published()
    document["added_tokens"] = [token | {"special": False} for token in document["added_tokens"]]
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in document["added_tokens"]
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(open_checkpoint(folder).vocabulary())
    for marker in MARKERS & set(tokenizer.pieces):
        ids = tokenizer.encode(f"a{marker}b")
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == f"a{marker}b"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "tokens", [["<|im_start|>", {"content": "<|im_end|>"}], {"a": "<|im_start|>", "b": "<|im_end|>"}]
)
def test_listed_tokens_are_special(name: str, tokens: Any, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(published()[0])
    (folder / "added_tokens.json").write_text(json.dumps({text: SIZE + index for index, text in enumerate(ADDED)}))
    (folder / name).write_text(json.dumps({"extra_special_tokens": tokens}))
    kinds = open_checkpoint(folder).vocabulary().kinds[SIZE:].tolist()
    assert kinds == [CONTROL if content in SPECIAL else USER_DEFINED for content in ADDED]


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "gap": ("added_tokens.json", {"<x>": SIZE + 1}, "have a gap at"),
    "huge id": ("added_tokens.json", {"<x>": 10**30}, "have a gap at"),
    "negative id": ("added_tokens.json", {"<x>": -1}, "does not give an id for each token"),
    "no id": ("added_tokens.json", {"<x>": "7"}, "does not give an id for each token"),
    "two names": ("added_tokens.json", {"<pad>": SIZE}, "duplicate piece"),
    "long": ("added_tokens.json", {"x" * 10**6: SIZE}, "piece of more than 256 characters"),
    "a list": ("added_tokens.json", [], "does not hold a JSON object"),
    "decoder a list": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "no object of tokens by id"),
    "decoder without ids": ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "no object of tokens by id"),
    "no content": ("tokenizer_config.json", {"added_tokens_decoder": {str(SIZE): {}}}, "is not valid"),
    "a flag that is none": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {str(SIZE): entry("covidish", lstrip="yes")}},
        "is not valid",
    ),
    "special map": ("special_tokens_map.json", 7, "does not hold a JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_added_tokens_are_one_sentence(damage: str, folder: Path) -> None:
    name, content, message = DAMAGE[damage]
    (folder / "tokenizer.model").write_bytes(published()[0])
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder).vocabulary()
    sentence = str(raised.value)
    assert message in sentence
    assert str(folder) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("rows", "fits"),
    [(SIZE + 256, True), (SIZE + 300, False), (SIZE - 1, False), (2048, False), (SIZE // 1024 * 1024 + 1024, True)],
)
def test_a_table_may_be_padded_to_a_multiple(rows: int, fits: bool, folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, vocab=rows))
    (folder / "tokenizer.model").write_bytes(published()[0])
    if fits:
        assert checkpoint.vocabulary().size == SIZE
    else:
        with pytest.raises(CheckpointError, match=f"has {SIZE} tokens and the model has {rows}"):
            checkpoint.vocabulary()


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_differs_from_the_embedding_is_kept(
    same: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in transformers, which unties a head that was trained beside the embedding."""
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    head = tensors["model.embed_tokens.weight"] + np.float32(0 if same else 1)
    save_file(tensors | {"lm_head.weight": head}, weights, {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tied is same
    assert ("lm_head.weight differs from embed_tokens.weight" in caplog.text) is not same
    loaded = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    if same:
        assert loaded.head is None
    else:
        np.testing.assert_array_equal(np.asarray(loaded.head), head)
