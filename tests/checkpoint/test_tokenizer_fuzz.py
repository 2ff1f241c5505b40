"""Damaged tokenizer files: a vocabulary or one sentence, in bounded time.

For more cases: make fuzz
"""

import functools
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gemwright.checkpoint.added_tokens import add_folder_tokens
from gemwright.errors import GemwrightError
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import Vocabulary
from tests.tiny.vocabulary import make_vocabulary

CASES = int(os.environ.get("FUZZ", "400"))
SECONDS = 2.0
"""Maximum processor time of a case."""
MEGABYTES = 300
"""Maximum growth of the process."""
SIZE = make_vocabulary().size
ADDED = ["<think>", "</think>", "<|im_end|>", "covidish"]
VALUES: list[Any] = [
    *(None, True, 0, -1, 3, SIZE, SIZE + 2, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf")),
    *("", "a", "<think>", "<bos>", "\u2581", " ", "\0", "\ud800", "\t", "x" * 5000, "<0x00>", "<loc0000>"),
    *([], {}, [[]], {"a": 1}, {"content": 7}, ["<think>", 3, None, {"content": "<eos>"}]),
]
KEYS = ["added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "eos_token", "content", "special"]


def entries() -> list[dict[str, Any]]:
    flags = {"special": False, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return [{"id": SIZE + index, "content": content} | flags for index, content in enumerate(ADDED)]


def damage(draw: random.Random, value: Any) -> Any:
    """Change, remove or repeat one part of a JSON document."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    if isinstance(value, list):
        index = draw.randrange(len(value))
        edited = [damage(draw, value[index])] if draw.random() < 0.7 else draw.choice([[], [value[index]] * 2])
        return [*value[:index], *edited, *value[index + 1 :]]
    key = draw.choice(list(value))
    match draw.randrange(6):
        case 0:
            return {other: value[other] for other in value if other != key}
        case 1:
            return value | {draw.choice(KEYS): draw.choice(VALUES)}
        case 2:
            return {draw.choice([*KEYS, "7", "-1", "x"]) if other == key else other: value[other] for other in value}
        case _:
            return value | {key: damage(draw, value[key])}


def damage_bytes(draw: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 3])):
        start = draw.randrange(len(data) + 1)
        data[start : start + draw.choice([0, 1, 40])] = draw.choice([b"", b"\xff", b'"', b"}", b"[" * 3000, b","])
    return bytes(data)


@functools.cache
def sound() -> dict[str, Any]:
    """Return the content of each file of a fine-tune."""
    vocabulary = make_vocabulary()
    document = vocabulary.tokenizer_json()
    document["added_tokens"] += entries()
    return {
        "tokenizer.json": document,
        "tokenizer_config.json": vocabulary.tokenizer_config() | {"extra_special_tokens": ADDED[:2]},
        "added_tokens.json": {entry["content"]: entry["id"] for entry in entries()},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}, "extra_special_tokens": ADDED[:1]},
        "tokenizer.model": vocabulary.sentencepiece_model(),
    }


def damaged_folder(draw: random.Random, folder: Path) -> Vocabulary:
    documents = {name: content for name, content in sound().items() if name.endswith(".json")}
    if draw.random() < 0.5:
        decoder = {str(entry["id"]): {key: entry[key] for key in entry if key != "id"} for entry in entries()}
        documents["tokenizer_config.json"] = documents["tokenizer_config.json"] | {"added_tokens_decoder": decoder}
    for name in draw.sample(list(documents), draw.choice([1, 1, 2])):
        documents[name] = damage(draw, documents[name])
    for name, content in documents.items():
        text = json.dumps(content, ensure_ascii=draw.random() < 0.5)
        encoded = text.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(damage_bytes(draw, encoded) if draw.random() < 0.3 else encoded)
    base = Vocabulary.from_tokenizer_json(folder / "tokenizer.json") if draw.random() < 0.7 else None
    return add_folder_tokens(base or Vocabulary.from_sentencepiece(sound()["tokenizer.model"]), folder)


@functools.cache
def sound_gguf() -> dict[str, Any]:
    return make_vocabulary().gguf_metadata()


def damaged_gguf(draw: random.Random, _: Path) -> Vocabulary:
    metadata = sound_gguf().copy()
    if draw.random() < 0.6:
        merges = sound()["tokenizer.json"]["model"]["merges"]
        metadata["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
        del metadata["tokenizer.ggml.scores"]
    for key in draw.sample(sorted(key for key in metadata if isinstance(metadata[key], (list, np.ndarray))), 1):
        damaged = damage(draw, list(metadata[key]))
        numeric = isinstance(metadata[key], np.ndarray) and draw.random() < 0.5
        try:
            metadata[key] = np.asarray(damaged, metadata[key].dtype) if numeric else damaged
        except (TypeError, ValueError, OverflowError):
            metadata[key] = damaged
    return Vocabulary.from_gguf(metadata)


SOURCES: list[Callable[[random.Random, Path], Vocabulary]] = [damaged_folder, damaged_gguf]


def test_damaged_tokenizers_give_a_vocabulary_or_one_sentence(tmp_path: Path) -> None:
    before, accepted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    sentences: set[str] = set()
    for seed in range(CASES):
        draw, start = random.Random(seed), time.process_time()
        try:
            tokenizer = Tokenizer(SOURCES[seed % 2](draw, tmp_path))
            ids = tokenizer.encode("a <think>\n covidish<bos><eos><start_of_turn>")
            assert not any(map(tokenizer.is_control, ids)), seed
            tokenizer.decode(range(tokenizer.size))
            accepted += 1
        except GemwrightError as error:
            sentences.add(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        assert time.process_time() - start < SECONDS, seed
    assert accepted > CASES // 20
    assert not [sentence for sentence in sentences if "\n" in sentence or not sentence.endswith(".")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1000
