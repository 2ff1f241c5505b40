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


def follow_ids(parts: Sequence[Sequence[tuple[str, str]]], pieces: Sequence[str], learned: NDArray[np.bool_]) -> bool:
    """Return whether merges form the learned pieces in the order of their ids, each piece from all its pairs.

    Args:
        parts: Runs of merges in order. One is all of them; else the first and last piece of each may be incomplete.
        pieces: Text of every id.
        learned: Whether each piece has to be formed in order.
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    last, whole = -1, len(parts) == 1
    for part in parts:
        groups = [(piece, len(list(pairs))) for piece, pairs in itertools.groupby(part, "".join)]
        for place, (piece, count) in enumerate(groups):
            index = ids.get(piece, -1)
            if index < 0:
                return False
            if not learned[index]:
                continue
            inside = 0 < place < len(groups) - 1
            left_out = range(last + 1, index if inside or whole else 0)
            if index < last or ((inside or whole) and count != _count_pairs(piece, ids)):
                return False
            if any(learned[between] and _count_pairs(pieces[between], ids) for between in left_out):
                return False
            last = index
    return not whole or not any(
        learned[index] and _count_pairs(pieces[index], ids) for index in range(last + 1, len(pieces))
    )


def _count_pairs(piece: str, ids: Mapping[str, int]) -> int:
    return sum(piece[:cut] in ids and piece[cut:] in ids for cut in range(1, len(piece)))


def _sample(formed: Sequence[str]) -> set[str]:
    """Return some of the pieces that merges form, and the last ones, which a fine-tune may have added."""
    last = max(0, len(formed) - _SAMPLES)
    return {*formed[: last : max(1, last // _SAMPLES)], *formed[last:]}


def _lists_all(piece: str, known: Set[str], listed: Set[str]) -> bool:
    """Return whether every pair of known pieces that forms a piece is listed."""
    pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return all(f"{left} {right}" in listed for left, right in pairs if left in known and right in known)
