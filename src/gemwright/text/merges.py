"""BPE merges: the form in which files without scores give the order of merging."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import CheckpointError

_SAMPLES = 1000
"""Number of pieces whose merges are checked, besides as many of the last ones."""


def list_merges(ids: Mapping[str, int], scores: NDArray[np.float32]) -> list[tuple[str, str]]:
    """Return every pair of pieces that forms a piece, best first; ties are ordered as in the published files."""
    pairs = [
        (score, cut, len(piece) - cut, piece)
        for piece, score in zip(ids, scores.tolist(), strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(piece[:cut], piece[cut:]) for _, cut, _, piece in pairs]


def rank_pieces(pieces: Sequence[str], merges: Sequence[str]) -> NDArray[np.float64]:
    """Return the rank of the first merge that forms each piece; infinite for a piece that none forms.

    SentencePiece orders merges by the piece that they form, and so do all published merges: every pair that forms a
    piece is listed, one after another.

    Args:
        pieces: Text of every id.
        merges: Pairs of pieces with a space between, best first.

    Raises:
        CheckpointError: A merge is damaged or forms no piece, or the merges have another order.
    """
    if not all(merge.count(" ") == 1 for merge in merges):
        raise CheckpointError("A merge of the vocabulary is not a pair of pieces: convert the model again.")
    formed = [merge.replace(" ", "") for merge in merges]
    ranks = dict(zip(reversed(formed), range(len(formed) - 1, -1, -1), strict=True))
    known = set(pieces)
    # Symbols share a score, and their merges are not in runs.
    runs = sum(left != right for left, right in itertools.pairwise(formed))
    last = len(formed) - _SAMPLES
    sampled = {piece for index, piece in enumerate(formed) if index % max(1, last // _SAMPLES) == 0 or index >= last}
    listed = set(merges)
    complete = all(
        f"{piece[:cut]} {piece[cut:]}" in listed
        for piece in sampled
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    )
    if not ranks.keys() <= known or not complete or runs > 1.01 * len(ranks) + 2000:
        raise CheckpointError("The merges are not those of a SentencePiece vocabulary, as every Gemma has: use one.")
    return np.array([ranks.get(piece, np.inf) for piece in pieces])
