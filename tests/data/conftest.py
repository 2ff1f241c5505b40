"""Data of a tiny vocabulary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemwright.data import Dataset, open_dataset
from gemwright.text.chat import FORMATS
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer
from tests.tiny.vocabulary import make_vocabulary


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(make_vocabulary())


@pytest.fixture(scope="session")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer, {"default": FORMATS["gemma"].template}, {"bos_token": "<bos>", "eos_token": "<eos>"})


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes records, or lines as they are, to a file."""

    def write_records(*records: Any, name: str = "data.jsonl") -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / name

    return write_records


@pytest.fixture
def read(tokenizer: Tokenizer, template: ChatTemplate) -> Callable[..., Dataset]:
    def read_dataset(paths: Any, max_length: int = 512, **options: Any) -> Dataset:
        return open_dataset(paths, tokenizer, template, max_length=max_length, **options)

    return read_dataset
