"""Records with images: what is learned of them, their pixels, and files that are missing or damaged."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemwright.data import Dataset, batches, open_dataset
from gemwright.data.images import ImageReader
from gemwright.data.show import show
from gemwright.errors import DataError
from gemwright.images.preprocess import resize_square
from gemwright.text.chat import FORMATS, read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.image_format import SOFT_TOKEN, ImageFormat
from gemwright.text.tokenizer import Tokenizer
from tests.tiny.vocabulary import make_vocabulary

SIDE, SOFT = 12, 4
"""Pixels of a side of the tower's input, and soft tokens of an image."""
TOKENIZERS = {"prefix": Tokenizer(make_vocabulary()), "inline": Tokenizer(make_vocabulary("gemma3"))}
DETECT = {"image": "hen.png", "prefix": "detect hen", "suffix": "the hen"}


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


def _png(seed: int = 1) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels(seed)).save(file, "PNG")
    return file.getvalue()


def _write(folder: Path, *records: dict[str, Any]) -> Path:
    for seed, name in enumerate(("hen.png", "cat.png"), 1):
        (folder / name).write_bytes(_png(seed))
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "data.jsonl"


def _template(style: Any) -> ChatTemplate:
    source = FORMATS["gemma3" if style == "inline" else "gemma"].template
    return ChatTemplate(TOKENIZERS[style], {"default": source}, {"bos_token": "<bos>", "eos_token": "<eos>"})


def _read(path: Path, style: Any = "prefix", **options: Any) -> Dataset:
    reader = ImageReader(ImageFormat(style, SOFT, TOKENIZERS[style]), SIDE, "bilinear")
    options = {"max_length": 200, "images": reader, **options}
    return open_dataset(path, TOKENIZERS[style], _template(style), **options)


def _learned(dataset: Dataset, index: int = 0, style: str = "prefix") -> str:
    document = dataset.documents[index]
    return TOKENIZERS[style].decode(document.ids[document.learned].tolist(), keep_control=True)


def test_a_suffix_is_learned_after_the_prompt_of_inference(tmp_path: Path):
    dataset = _read(_write(tmp_path, DETECT))
    document = dataset.documents[0]
    expected = ImageFormat("prefix", SOFT, TOKENIZERS["prefix"]).encode("detect hen", [1])
    assert document.ids[~document.learned].tolist() == expected
    assert expected[:SOFT] == [SOFT_TOKEN] * SOFT
    assert not document.learned[: len(expected)].any()
    assert _learned(dataset) == "the hen<eos>"
    assert dataset.kind == "image, prefix and suffix"
    lines = list(show(dataset, TOKENIZERS["prefix"]))
    assert lines[2] == "  <4 soft tokens of images>"
    assert lines[-1].endswith("<eos>]")


RECORDS: dict[str, dict[str, Any]] = {
    "prompt": {"image": "hen.png", "prompt": "detect hen", "completion": "the hen"},
    "images": {"images": ["hen.png"], "prompt": "detect hen", "completion": "the hen"},
    "base64": DETECT | {"image": base64.b64encode(_png()).decode()},
    "data URI": DETECT | {"image": f"data:image/png;base64,{base64.b64encode(_png()).decode()}"},
    "path of datasets": DETECT | {"image": {"bytes": None, "path": "hen.png"}},
    "folder of datasets": {"file_name": "hen.png", "prefix": "detect hen", "suffix": "the hen"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_images_are_given_in_many_ways(tmp_path: Path, name: str):
    dataset, expected = _read(_write(tmp_path, RECORDS[name])), _read(_write(tmp_path, DETECT))
    for found, other in zip(dataset.documents[0], expected.documents[0], strict=True):
        np.testing.assert_array_equal(found, other)
    assert dataset.images is not None
    np.testing.assert_array_equal(dataset.images.read(0, 1), [resize_square(_pixels(1), SIDE, "bilinear")])


def test_a_table_with_the_bytes_of_images(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    row = {"image": {"bytes": _png(2), "path": None}, "text": "the hen"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "data.parquet")
    dataset = _read(tmp_path / "data.parquet")
    assert _learned(dataset) == "the hen<eos>"
    assert dataset.images is not None
    np.testing.assert_array_equal(dataset.images.read(0, 1), [resize_square(_pixels(2), SIDE, "bilinear")])


TALK = [
    {"role": "user", "content": [{"type": "image", "image": "hen.png"}, {"type": "text", "text": "the"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "hen"}]},
    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image", "image": "cat.png"}]},
    {"role": "assistant", "content": "the cat"},
]
BESIDE = json.loads(json.dumps(TALK).replace(', "image": "hen.png"', "").replace(', "image": "cat.png"', ""))
OPENAI = json.loads(
    json.dumps(TALK)
    .replace('"image", "image": "hen.png"', '"image_url", "image_url": {"url": "hen.png"}')
    .replace('"image", "image": "cat.png"', '"image_url", "image_url": {"url": "cat.png"}')
)


@pytest.mark.parametrize("record", [{"messages": TALK}, {"messages": BESIDE, "images": ["hen.png", "cat.png"]},
                                    {"messages": OPENAI}])  # fmt: skip
def test_conversations_have_the_ids_of_inference(tmp_path: Path, record: Any):
    dataset = _read(_write(tmp_path, record), "inline")
    document = dataset.documents[0]
    insertion = ImageFormat("inline", SOFT, TOKENIZERS["inline"]).insertion(1)
    asked = _template("inline").encode(read_messages(TALK[:3])[0], images=[insertion, insertion])
    assert document.ids[: len(asked)].tolist() == asked
    assert _learned(dataset, 0, "inline") == "hen<end_of_turn>the cat<end_of_turn>"
    batch = batches(dataset, batch_size=2, length=199)[0]
    pixels = batch.extras["pixels"]
    assert pixels.shape == (2, 2, SIDE, SIDE, 3)
    expected = [resize_square(_pixels(seed), SIDE, "bilinear") for seed in (1, 2)]
    np.testing.assert_array_equal(pixels[0], expected)
    assert not pixels[1].any()  # a row of padding


def test_a_prompt_with_an_image_is_a_conversation_of_a_tuned_model(tmp_path: Path):
    dataset = _read(_write(tmp_path, RECORDS["prompt"]), "inline", tuned=True)
    talk = [{"role": "user", "content": "detect hen", "images": ["hen.png"]}]
    insertion = ImageFormat("inline", SOFT, TOKENIZERS["inline"]).insertion(1)
    asked = _template("inline").encode(read_messages(talk)[0], images=[insertion])
    assert dataset.documents[0].ids[: len(asked)].tolist() == asked


def test_another_image_changes_the_data(tmp_path: Path):
    path = _write(tmp_path, DETECT)
    before = _read(path).fingerprint
    assert _read(path).fingerprint == before
    (tmp_path / "hen.png").write_bytes(_png(9))
    assert _read(path).fingerprint != before


def _bomb() -> bytes:
    """Return a PNG whose header says 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + _png()[33:]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (DETECT | {"image": "dog.png"}, "does not exist"),
    "folder": (DETECT | {"image": "."}, "is not a file"),
    "URL": (DETECT | {"image": "https://example.com/hen.png"}, "nothing is downloaded"),
    "number": (DETECT | {"image": 3}, "an image is int"),
    "empty": (DETECT | {"image": ""}, "an image is str"),
    "base64": (DETECT | {"image": "data:image/png;base64,%%%"}, "the base64 of an image is damaged"),
    "nothing": (DETECT | {"image": {"bytes": None}}, 'neither "bytes" nor "path"'),
    "text": (DETECT | {"image": "data.jsonl"}, "damaged or of another format"),
    "talk": ({"messages": TALK}, "not in conversations"),
    "markers": (DETECT | {"prefix": "<image><image>detect"}, "2 of <image> for 1 images"),
    "long": (DETECT | {"suffix": "the hen " * 100}, "tokens, and 201 fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_images_are_refused_with_their_line(tmp_path: Path, name: str):
    record, problem = REFUSED[name]
    path = _write(tmp_path, DETECT, record) if name != "talk" else _write(tmp_path, record)
    with pytest.raises(DataError, match=rf"data.jsonl, line {1 + (name != 'talk')}: .*{problem}"):
        _read(path)


@pytest.mark.parametrize(
    ("content", "problem"), [(_png()[:200], "truncated or damaged"), (b"", "empty"), (_bomb(), "100 megapixels")]
)
def test_damaged_files_are_refused_before_the_run(tmp_path: Path, content: bytes, problem: str):
    path = _write(tmp_path, DETECT, DETECT | {"image": "bad.png"})
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=f"data.jsonl, line 2: .*{problem}"):
        _read(path)


def test_a_text_model_has_no_images(tmp_path: Path):
    with pytest.raises(DataError, match="line 1: the record has an image, and the model"):
        _read(_write(tmp_path, DETECT), images=None)
    with pytest.raises(DataError, match="line 1: the record has an image, and the model"):
        _read(_write(tmp_path, {"messages": TALK}), "inline", images=None)
    plain = {"text": "the hen", "file_name": "hen.py"}
    assert _read(_write(tmp_path, plain), images=None).images is None


def test_an_image_that_vanishes_is_named(tmp_path: Path):
    dataset = _read(_write(tmp_path, DETECT))
    (tmp_path / "hen.png").unlink()
    with pytest.raises(DataError, match=r"data.jsonl, line 1: .*does not exist"):
        batches(dataset, batch_size=1, length=100)[0]
