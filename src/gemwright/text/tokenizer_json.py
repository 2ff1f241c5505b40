"""The Hugging Face `tokenizer.json` of Gemma models: pieces, merges and added tokens."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError
from gemwright.text.added_tokens import AddedToken, parse_added_token
from gemwright.text.merges import list_merges
from gemwright.text.sentencepiece_model import CONTROL, UNKNOWN, USER_DEFINED

SPACE = "\u2581"
"""Character that SentencePiece writes for a space."""

Merges: TypeAlias = list[tuple[str, str]]
"""Pairs of pieces, best first."""

_TAB_BYTE = "<0x09>"
_PARTS, _PART_BYTES = 64, 1 << 12
"""Number of the parts of the merges that are read, and the size of each."""
_CHARACTER = r'(?:[^"\\]|\\.)'
_MERGE = re.compile(rf'\[\s*"({_CHARACTER}+)"\s*,\s*"({_CHARACTER}+)"\s*\]|"([^"\s]+) ([^"\s]+)"')


def parse(data: bytes) -> tuple[list[str], dict[int, AddedToken]]:
    """Parse the pieces of a `tokenizer.json`.

    The merges, most of the file, are skipped; see `sample_merges`.

    Returns:
        Pieces by id, and the added tokens by id.

    Raises:
        CheckpointError: Damaged, or not a BPE with byte fallback and dense ids.
    """
    try:
        sections = _find_sections(data)
        entries = json.JSONDecoder().raw_decode(sections["added_tokens"].decode())[0]
        added = {int(entry["id"]): parse_added_token(entry) for entry in entries}
        by_id = _parse_vocab(sections["vocab"])
        by_id |= {index: token.content for index, token in added.items()}
        pieces = [by_id[index] for index in range(len(by_id))]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            "The tokenizer.json is damaged or has gaps in its ids: download the file again."
        ) from error
    if not re.search(rb'"byte_fallback"\s*:\s*true', data):
        raise CheckpointError(
            "The tokenizer.json is not a BPE with byte fallback, as every Gemma tokenizer is: use one."
        )
    if "\t" in pieces and _TAB_BYTE not in pieces:
        pieces[pieces.index("\t")] = _TAB_BYTE  # renamed in the files of Gemma 1 and 2, so that runs of tabs can merge
    return pieces, added


def sample_merges(data: bytes) -> list[Merges]:
    """Return runs of the merges of a `tokenizer.json` in order: all of a small file, else parts of it.

    A part that begins inside of a piece may start with merges that are none.
    """
    section = _find_sections(data).get("merges", b"")
    if len(section) <= _PARTS * _PART_BYTES:
        return [read_merges(data)] if section else []
    starts = np.linspace(0, len(section) - _PART_BYTES, _PARTS, dtype=np.int64).tolist()
    parts = [section[start : start + _PART_BYTES].decode(errors="ignore") for start in starts]
    try:
        return [[_parse_merge(match) for match in _MERGE.finditer(part)] for part in parts]
    except ValueError:
        return [read_merges(data)]


def read_merges(data: bytes) -> Merges:
    """Return the merges of a `tokenizer.json`.

    Raises:
        CheckpointError: They are damaged.
    """
    try:
        merges = json.JSONDecoder().raw_decode(_find_sections(data)["merges"].decode())[0]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        return [(str(left), str(right)) for left, right in pairs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("The merges of the tokenizer.json are damaged: download the file again.") from error


def _parse_merge(match: re.Match[str]) -> tuple[str, str]:
    left, right = (json.loads(f'"{part}"') for part in match.groups() if part is not None)
    return left, right


def make_document(
    pieces: Sequence[str],
    scores: NDArray[np.float32],
    kinds: NDArray[np.uint8],
    contextual: Mapping[int, AddedToken] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the document as published with Gemma models; arguments as for `Vocabulary`."""
    pieces = list(pieces)
    if "\t" not in pieces and _TAB_BYTE in pieces:
        pieces[pieces.index(_TAB_BYTE)] = "\t"
    ids = {piece: index for index, piece in enumerate(pieces)}
    whole = np.flatnonzero(np.isin(kinds, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    bos, second_bos = ({"SpecialToken": {"id": "<bos>", "type_id": n}} for n in (0, 1))
    space = {"String": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _make_added_token(index, pieces[index], kinds[index] != USER_DEFINED, contextual.get(index))
            for index in whole
        ],
        "normalizer": {"type": "Replace", "pattern": space, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, second_bos, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [ids["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": list_merges(ids, scores),
        },
    }


def _find_sections(data: bytes) -> dict[str, bytes]:
    """Return the JSON text from the value of each long member to the value of the next."""
    begins: dict[str, int] = {}
    for name, opening in (("added_tokens", "["), ("vocab", "{"), ("merges", "[")):
        # Inside a piece, a quote follows a backslash. The lookbehind after the name keeps the search fast.
        found = re.search(rf'"{name}"(?<!\\"{name}")\s*:\s*(?={re.escape(opening)})'.encode(), data)
        if found is not None:
            begins[name] = found.end()
    ends = [*begins.values(), len(data)]
    return {name: data[begin : min(end for end in ends if end > begin)] for name, begin in begins.items()}


def _parse_vocab(data: bytes) -> dict[int, str]:
    """Return the pieces by id of the object `{"a": 0, "b": 1}` at the start of a JSON text.

    It is parsed as the list `["a", 0, "b", 1]`, which takes the json module a third of the time.
    """
    unescaped = data.replace(rb"\\", b"__").replace(rb"\"", b"__")  # the remaining quotes delimit pieces
    content = np.frombuffer(unescaped, np.uint8)
    outside = ~np.logical_xor.accumulate(content == ord('"'))
    end = int(np.argmax(outside & (content == ord("}"))))  # 0 if there is none: the text begins with "{"
    content, outside = content[:end], outside[:end]
    colons = outside & (content == ord(":"))
    separators = content[colons | outside & (content == ord(","))].tobytes()
    if end == 0 or separators != (b":," * len(separators))[: len(separators)]:
        raise ValueError("no object of pieces and ids")
    flat = np.frombuffer(data[: end + 1], np.uint8).copy()
    flat[0], flat[end] = b"[]"
    flat[:end][colons] = ord(",")
    pieces_and_ids = json.loads(flat.tobytes().decode())
    return dict(zip(pieces_and_ids[1::2], pieces_and_ids[0::2], strict=True))


def _make_added_token(index: int, piece: str, special: Any, contextual: AddedToken | None) -> dict[str, Any]:
    if contextual is not None:
        return {"id": index, **asdict(contextual), "special": bool(special)}
    # As spelled, a piece with spaces is only found in normalized text. Runs of spaces are as published.
    normalized = SPACE in piece and bool(piece.strip(SPACE))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized}
    return {"id": index, "content": piece, **flags, "special": bool(special)}
