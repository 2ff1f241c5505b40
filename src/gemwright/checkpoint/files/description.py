"""Copy a file of weights with a sentence about it in its metadata.

That is `general.description` of GGUF, and an entry of `__metadata__` of safetensors.

Sources: ggml-org/ggml docs/gguf.md; huggingface/safetensors README.md ("Format").
"""

import json
import shutil
import struct
from pathlib import Path

from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.files.gguf import DEFAULT_ALIGNMENT, MIN_SIZE, open_gguf
from gemwright.checkpoint.files.safetensors import ALIGNMENT, open_safetensors
from gemwright.errors import CheckpointError

KEY = "general.description"
"""Key of the sentence in GGUF files."""
ENTRY = "description"
"""Entry of the sentence in safetensors files."""
_STRING = 8
_COUNTS = struct.Struct("<4sIQQ")


def copy_described(source: Path, target: Path, sentence: str) -> None:
    """Copy a GGUF or safetensors file, whose tensors keep their bytes, with a sentence in its metadata.

    Args:
        source: The file.
        target: The file to make.
        sentence: The sentence, which replaces an earlier one.

    Raises:
        CheckpointError: The source is damaged.
    """
    head, start = (_describe_gguf if source.suffix == ".gguf" else _describe_safetensors)(source, sentence)
    with source.open("rb") as read, target.open("xb") as write:
        write.write(head)
        read.seek(start)
        shutil.copyfileobj(read, write, 1 << 20)


def read_description(path: Path) -> str | None:
    """Return the sentence in the metadata of a GGUF or safetensors file, or None.

    Raises:
        CheckpointError: The file is damaged.
    """
    if path.suffix == ".gguf":
        text = open_gguf(path).text(KEY)
        return None if text is None else text.rstrip()
    return _read_header(path)[0].get("__metadata__", {}).get(ENTRY)


def _read_header(path: Path) -> tuple[dict[str, dict[str, str]], int]:
    """Return the header of a safetensors file, which is checked, and the start of its data."""
    open_safetensors(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def _describe_safetensors(path: Path, sentence: str) -> tuple[bytes, int]:
    """Return the new header, padded as ours are, and the start of the data in the file."""
    header, start = _read_header(path)
    if ENTRY in header:
        raise file_error(path, f"has a tensor called {ENTRY!r}", "rename it")
    metadata = {**header.pop("__metadata__", {}), ENTRY: sentence}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, start


def _describe_gguf(path: Path, sentence: str) -> tuple[bytes, int]:
    """Return the new beginning and what it replaces.

    The key is the first, in place of an earlier one. Spaces after the sentence move what follows by a multiple of the
    alignment.
    """
    file = open_gguf(path)
    alignment = file.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    with path.open("rb") as opened:
        magic, version, tensors, keys = _COUNTS.unpack(opened.read(MIN_SIZE))
        if KEY not in file.metadata:
            return _COUNTS.pack(magic, version, tensors, keys + 1) + _pack(sentence, alignment, 0), MIN_SIZE
        earlier = file.text(KEY)
        if earlier is None:
            raise CheckpointError(f"{path}: {KEY} is no text; convert the model again.")
        opened.seek(0)
        known, old = b"", _pack(earlier, 1, 0)
        while (place := known.find(old)) < 0:
            known += opened.read(1 << 20)
    between = known[MIN_SIZE:place]
    return _COUNTS.pack(magic, version, tensors, keys) + _pack(sentence, alignment, len(old)) + between, place + len(
        old
    )


def _pack(sentence: str, alignment: int, removed: int) -> bytes:
    """Return the key with its value, whose length differs from the bytes removed by a multiple of the alignment."""
    key, text = KEY.encode(), sentence.encode()
    fixed = struct.pack("<Q", len(key)) + key + struct.pack("<I", _STRING)
    text += b" " * ((removed - len(fixed) - 8 - len(text)) % alignment)
    return fixed + struct.pack("<Q", len(text)) + text
