"""Added tokens in the files beside a Hugging Face tokenizer: `tokenizer_config.json` and two older files."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.json_file import read_json
from gemwright.errors import CheckpointError
from gemwright.text.added_tokens import AddedToken, parse_added_token
from gemwright.text.sentencepiece_model import NORMAL
from gemwright.text.vocabulary import Vocabulary, spell

_LISTS = ("additional_special_tokens", "extra_special_tokens")


def add_folder_tokens(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    """Return a vocabulary with the added tokens in the other files of its folder.

    As in transformers, a table `added_tokens_decoder` in `tokenizer_config.json` replaces the older files, and a token
    that is named as BOS, EOS and so on is special whatever its entry says.

    Raises:
        CheckpointError: A file is damaged, ids have a gap, or two ids have the same token.
    """
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    config = _read(folder / "tokenizer_config.json")
    named, listed = _find_special(config)
    added = _parse_decoder(config, folder / "tokenizer_config.json")
    if not added:
        more_named, more_listed = _find_special(_read(folder / "special_tokens_map.json"))
        named, listed = named | more_named, listed | more_listed
        older = _parse_older(folder / "added_tokens.json")
        new = {index: content for index, content in older.items() if ids.get(spell(content)) != index}
        added = {index: AddedToken(content, content in named | listed) for index, content in new.items()}
    ids |= {spell(token.content): index for index, token in added.items()}
    for content in named | listed:
        index = ids.get(spell(content))
        if index is not None and (content in named or (index not in added and vocabulary.kinds[index] == NORMAL)):
            token = added.get(index) or vocabulary.contextual.get(index) or AddedToken(content, special=True)
            added[index] = replace(token, special=True)
    return vocabulary.with_added_tokens(added)


def _read(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


def _parse_decoder(config: Mapping[str, Any], file: Path) -> dict[int, AddedToken]:
    """Return the tokens of `added_tokens_decoder` by id."""
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or not all(re.fullmatch(r"[0-9]{1,9}", index) for index in entries):
        raise file_error(file, "has an 'added_tokens_decoder' that is no object of tokens by id", "fetch it again")
    try:
        return {int(index): parse_added_token(entry) for index, entry in entries.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _parse_older(file: Path) -> dict[int, str]:
    """Return the tokens of `added_tokens.json` by id."""
    contents = _read(file)
    if not all(type(index) is int and index >= 0 for index in contents.values()):
        raise file_error(file, "does not give an id for each token", "fetch it again")
    return {index: content for content, index in contents.items() if content}


def _find_special(settings: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Return the special tokens that a file names one by one, as in `eos_token`, and those in its lists."""
    named = {_content(value) for key, value in settings.items() if key.endswith("_token")}
    values = [value for key in _LISTS for value in _values(settings.get(key))]
    return named - {""}, {_content(value) for value in values} - {""}


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _values(many: Any) -> list[Any]:
    return list(many.values()) if isinstance(many, dict) else many if isinstance(many, list) else []
