"""Pieces that a model has and its tokenizer's file lacks."""

from collections.abc import Sequence

import numpy as np

from gemwright.families import PALIGEMMA
from gemwright.text.sentencepiece_model import CONTROL, USER_DEFINED
from gemwright.text.vocabulary import Vocabulary


def add_location_tokens(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Gemma's vocabulary with PaliGemma's 1024 places and 128 pieces of masks behind it, if so many rows are left."""
    pieces = PALIGEMMA.added_pieces
    return _with(vocabulary, pieces, USER_DEFINED) if vocabulary.size + len(pieces) == rows else vocabulary


def add_control_tokens(vocabulary: Vocabulary, *markers: str) -> Vocabulary:
    """The vocabulary and more pieces that stand for no text."""
    return _with(vocabulary, markers, CONTROL)


def _with(vocabulary: Vocabulary, pieces: Sequence[str], kind: int) -> Vocabulary:
    return Vocabulary(
        (*vocabulary.pieces, *pieces),
        np.append(vocabulary.scores, np.zeros(len(pieces), np.float32)),
        np.append(vocabulary.kinds, np.full(len(pieces), kind, np.uint8)),
    )
