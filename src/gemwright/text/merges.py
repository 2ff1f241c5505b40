"""BPE merges: the form in which files without scores give the order of merging."""

import itertools
from collections.abc import Mapping, Sequence, Set

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
    known, listed = set(pieces), set(merges)
    # Symbols share a score, and their merges are not in runs.
    in_runs = sum(left != right for left, right in itertools.pairwise(formed)) < 1.01 * len(ranks) + 2000
    if not (in_runs and ranks.keys() <= known and all(_lists_all(piece, known, listed) for piece in _sample(formed))):
        raise CheckpointError("The merges are not those of a SentencePiece vocabulary, as every Gemma has: use one.")
    return np.array([ranks.get(piece, np.inf) for piece in pieces])


def _sample(formed: Sequence[str]) -> set[str]:
    """Return some of the pieces that merges form, and the last ones, which a fine-tune may have added."""
    last = max(0, len(formed) - _SAMPLES)
    return {*formed[: last : max(1, last // _SAMPLES)], *formed[last:]}


def _lists_all(piece: str, known: Set[str], listed: Set[str]) -> bool:
    """Return whether every pair of known pieces that forms a piece is listed."""
    pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return all(f"{left} {right}" in listed for left, right in pairs if left in known and right in known)
