"""Chat templates, special tokens and end ids of folders and GGUF files, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemwright.checkpoint.chat_templates import (
    SPECIAL_TOKENS,
    gguf_chat_templates,
    gguf_generation,
    gguf_special_tokens,
    read_chat_templates,
    read_special_tokens,
)
from gemwright.errors import CheckpointError
from tests.tiny.vocabulary import make_vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "tokenizer.json", make_vocabulary().tokenizer_json())
    write(tmp_path, "tokenizer_config.json", make_vocabulary().tokenizer_config())
    return tmp_path


def write(folder: Path, name: str, document: Any) -> None:
    (folder / name).write_text(json.dumps(document))


def change(folder: Path, **keys: Any) -> None:
    write(folder, "tokenizer_config.json", json.loads((folder / "tokenizer_config.json").read_text()) | keys)


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def test_a_folder_without_a_template(folder: Path) -> None:
    assert read_chat_templates(folder) == {}
    assert theirs(folder).chat_template is None


def test_named_templates(folder: Path) -> None:
    rows = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    change(folder, chat_template=rows)
    assert read_chat_templates(folder) == theirs(folder).chat_template == {"default": "a", "tool_use": "b"}
    write(folder, "chat_template.json", {"chat_template": "c"})
    assert read_chat_templates(folder) == {"default": "c"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("d")
    (folder / "chat_template.jinja").write_text("e")
    assert read_chat_templates(folder) == theirs(folder).chat_template == {"default": "e", "tool_use": "d"}


@pytest.mark.parametrize("value", [3, None, [3], [{"name": 1}], {"a": 1}, [{"name": "a", "template": None}]])
def test_templates_of_another_type_are_ignored(folder: Path, value: Any) -> None:
    change(folder, chat_template=value)
    assert read_chat_templates(folder) == {}


def test_a_large_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * (1 << 21))
    with pytest.raises(CheckpointError, match="is larger than"):
        read_chat_templates(folder)


def test_special_tokens_are_those_of_transformers(folder: Path) -> None:
    assert read_special_tokens(folder) == theirs(folder).special_tokens_map == SPECIAL_TOKENS
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = {"__type": "AddedToken", "content": "<end_of_turn>", "special": True, **flags}
    change(folder, eos_token=added, bos_token="<start_of_turn>")
    found = read_special_tokens(folder)
    assert found == theirs(folder).special_tokens_map
    assert (found["bos_token"], found["eos_token"]) == ("<start_of_turn>", "<end_of_turn>")


def test_gguf() -> None:
    metadata = {
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.tool_use": "b",
        "tokenizer.chat_template.broken": 3,
        "tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", "x"],
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.eot_token_id": -1,
        "tokenizer.ggml.eom_token_id": 5,
        "tokenizer.ggml.eos_token_ids": np.asarray([1, 4], np.int32),
        "tokenizer.ggml.padding_token_id": 99,
    }
    assert gguf_chat_templates(metadata) == {"default": "a", "tool_use": "b"}
    assert gguf_special_tokens(metadata) == SPECIAL_TOKENS | {"eos_token": "<end_of_turn>"}
    assert gguf_generation(metadata) == {"eos_token_id": [1, 4, 5]}
    assert gguf_chat_templates({}) == gguf_generation({}) == {}
    assert gguf_special_tokens({}) == SPECIAL_TOKENS
