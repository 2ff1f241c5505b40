"""The Hugging Face `tokenizer.json` of the Gemma models: pieces, the pairs that merge, and tokens matched whole."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError
from gemwright.text.sentencepiece_model import CONTROL, UNKNOWN, USER_DEFINED

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_TAB_BYTE = "<0x09>"
# As published; the `special` flag decides what `skip_special_tokens` leaves out.
_SPECIAL = re.compile(r"<(?:pad|eos|bos|unk|image_soft_token|(?:start|end)_of_(?:turn|image))>")


def parse(text: str) -> tuple[list[str], set[str]]:
    """Reads the pieces of a `tokenizer.json`.

    The merges, most of the file, are not parsed: they are all pairs of pieces that make up a learned piece, in the
    order of that piece's id.

    Returns:
        The pieces by id, and which of them are matched whole before any merging.

    Raises:
        CheckpointError: damaged, or not a byte-fallback BPE with dense ids.
    """
    try:
        by_id = {index: piece for piece, index in _member(text, "vocab", "{").items()}
        added = {entry["content"]: entry["id"] for entry in _member(text, "added_tokens", "[")}
        by_id |= {index: piece for piece, index in added.items()}
        pieces = [by_id[index] for index in range(len(by_id))]
        "".join(pieces).encode()  # raises where a piece is no text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("The tokenizer.json is damaged or has gaps in its ids: fetch the file again.") from error
    if not re.search(r'"byte_fallback"\s*:\s*true', text):
        raise CheckpointError(
            "The tokenizer.json is not a BPE with byte fallback as every Gemma's is: give Gemma's own."
        )
    if "\t" not in pieces or _TAB_BYTE in pieces:
        return pieces, set(added)
    pieces[pieces.index("\t")] = _TAB_BYTE  # renamed in the files of Gemma 1 and 2, so that runs of tabs can merge
    return pieces, set(added)


def document(pieces: Sequence[str], scores: NDArray[np.float32], kinds: NDArray[np.uint8]) -> dict[str, Any]:
    """The file's content, as published with the Gemma models; arguments as for `sentencepiece_model.serialize`."""
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
        "added_tokens": [_added_token(index, pieces[index]) for index in whole],
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
            "merges": _merges(ids, scores),
        },
    }


def _member(text: str, name: str, opening: str) -> Any:
    """The array or object that stands in a JSON text as the value of `name`."""
    found = re.search(rf'(?<!\\)"{name}"\s*:\s*(?={re.escape(opening)})', text)
    if found is None:
        raise ValueError(f"no {name}")
    return json.JSONDecoder().raw_decode(text, found.end())[0]


def _added_token(index: int, piece: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": piece, **flags, "special": _SPECIAL.fullmatch(piece) is not None}


def _merges(ids: Mapping[str, int], scores: NDArray[np.float32]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes up a piece, best first; ties in the order of the published files."""
    pairs = [
        (score, cut, len(piece) - cut, piece)
        for piece, score in zip(ids, scores.tolist(), strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(piece[:cut], piece[cut:]) for _, cut, _, piece in pairs]
