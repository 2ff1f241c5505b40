"""Read chat templates, the special tokens that they use, and the ids that end a text.

Sources: huggingface/transformers `tokenization_utils_base.py` and `processing_utils.py` (5.23); ggml-org/llama.cpp
`gguf-py/gguf/constants.py` and `src/llama-vocab.cpp`; ollama/ollama `convert/tokenizer.go`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.json_file import read_json

DEFAULT = "default"
"""Name of the usual template."""
MAX_TEMPLATES = 64
"""Maximum number of templates of a checkpoint."""
MAX_BYTES = 1 << 20
"""Maximum size of a file of a template in bytes."""
SPECIAL_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
"""Special tokens of a Gemma tokenizer that names no others."""

_ADDITIONAL = "additional_chat_templates"
_PREFIX = "tokenizer.chat_template"
GGUF_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""Keys of the same in a GGUF file, after `tokenizer.ggml.`."""
_GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids")


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Read the chat templates of a Hugging Face folder by name; the usual one is "default".

    They come from `chat_template.jinja` and `additional_chat_templates/*.jinja`, else from `chat_template.json`, else
    from `tokenizer_config.json`.

    Raises:
        CheckpointError: A file is damaged or too large.
    """
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted(folder.glob(f"{_ADDITIONAL}/*.jinja"))[:MAX_TEMPLATES]}
    templates = {name: _read_text(file) for name, file in files.items() if file.is_file()}
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not templates and (folder / name).is_file():
            templates = dict(_named(read_json(folder / name).get("chat_template")))
    return templates


def write_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write chat templates as files of a Hugging Face folder."""
    for name, text in _in_order(templates):
        file = folder / ("chat_template.jinja" if name == DEFAULT else f"{_ADDITIONAL}/{_plain(name)}.jinja")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _in_order(templates: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return templates by names that stay different when they are written: the usual one first."""
    plain = {_plain(name): (name, text) for name, text in templates.items() if name != DEFAULT and _plain(name)}
    usual = templates.get(DEFAULT)
    return [*([] if usual is None else [(DEFAULT, usual)]), *plain.values()]


def _plain(name: str) -> str:
    """Return the name of a template as in GGUF: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)[:64]


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the templates of a JSON file: one, a list of named ones, or a mapping."""
    match value:
        case str():
            yield DEFAULT, value
        case list():
            for row in value[:MAX_TEMPLATES]:
                match row:
                    case {"name": str(name), "template": str(template)}:
                        yield name, template
                    case _:
                        pass
        case dict():
            yield from ((name, row) for name, row in list(value.items())[:MAX_TEMPLATES] if isinstance(row, str))
        case _:
            pass


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise file_error(file, f"is larger than {MAX_BYTES:,} bytes", "fetch it again")
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise file_error(file, f"cannot be read ({error.strerror})", "check the path") from error


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Read the names of the special tokens of a Hugging Face folder, by their variables such as `bos_token`.

    Raises:
        CheckpointError: A file is damaged or too large.
    """
    tokens: dict[str, str] = dict(SPECIAL_TOKENS)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        for variable in (*SPECIAL_TOKENS, "sep_token", "cls_token"):
            match settings.get(variable):
                case str(token) | {"content": str(token)}:
                    tokens[variable] = token
                case None if variable in settings:
                    tokens.pop(variable, None)
                case _:
                    pass
    return tokens


def gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates of a GGUF file by name; the usual one is "default"."""
    named = {key: value for key, value in metadata.items() if key.startswith(f"{_PREFIX}.") and isinstance(value, str)}
    templates = {key.removeprefix(f"{_PREFIX}."): value for key, value in list(named.items())[:MAX_TEMPLATES]}
    usual = metadata.get(_PREFIX)
    return {DEFAULT: usual, **templates} if isinstance(usual, str) else templates


def to_gguf_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of chat templates."""
    named = {_plain(name): text for name, text in _in_order(templates) if name != DEFAULT}
    keys: dict[str, Any] = {f"{_PREFIX}.{name}": text for name, text in named.items()}
    keys |= {f"{_PREFIX}s": list(named)} if named else {}
    return keys | ({_PREFIX: templates[DEFAULT]} if DEFAULT in templates else {})


def gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the special tokens of a GGUF file, by their variables such as `bos_token`."""
    pieces = metadata.get("tokenizer.ggml.tokens", ())
    tokens = dict(SPECIAL_TOKENS)
    for variable, key in GGUF_IDS.items():
        token = metadata.get(f"tokenizer.ggml.{key}")
        if _is_id(token) and isinstance(pieces, Sequence) and token < len(pieces):
            tokens[variable] = str(pieces[token])
    return tokens


def gguf_generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ids that end a text, as in a `generation_config.json`.

    They are those of the end of the text, of a turn and of a message, and the list that Ollama writes.
    """
    ends: set[int] = set()
    for key in _GGUF_ENDS:
        value = metadata.get(f"tokenizer.ggml.{key}")
        listed = value[:256].tolist() if isinstance(value, np.ndarray) else [value]
        ends |= {token for token in listed if _is_id(token)}
    return {"eos_token_id": sorted(ends)} if ends else {}


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
