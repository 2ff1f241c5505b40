"""Continue the beginnings of documents greedily, and count the edits from the continuation to the document."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.eval.memorization_sample import Passage
from gemwright.generate.continuations import score_continuations
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling


class Extraction(NamedTuple):
    """What a model made of a prefix.

    Attributes:
        generated: Token ids that it generated; fewer than the continuation has if they cannot be within the edits that
            are allowed any more, or if only exact continuations are asked for.
        edits: Edit distance from the continuation, in tokens; None if it is more than allowed.
    """

    generated: list[int]
    edits: int | None


class EditDistances:
    """The edit distances between texts of the same length and others that arrive token by token.

    Insertions, deletions and substitutions count one each (Levenshtein 1966). One row of the usual matrix is kept.

    Args:
        texts: [B, N] token ids.
    """

    def __init__(self, texts: NDArray[np.int32]):
        self._texts, self._columns = texts, np.arange(texts.shape[1] + 1)
        self._row = np.tile(self._columns, (len(texts), 1))
        self._arrived = 0

    def push(self, tokens: NDArray[np.int32]) -> None:
        """Add the next token, [B], of each other text."""
        self._arrived += 1
        substituted = self._row[:, :-1] + (self._texts != tokens[:, None])
        row = np.minimum(self._row + 1, np.insert(substituted, 0, self._arrived, axis=1))
        self._row = np.minimum.accumulate(row - self._columns, axis=1) + self._columns  # insertions

    @property
    def least(self) -> NDArray[np.int64]:
        """[B] the least distance that is possible once N tokens have arrived; then the distance."""
        return (self._row + abs(self._columns - self._arrived)).min(axis=1)


def extract(engine: Engine, passages: Sequence[Passage], most_edits: int) -> list[Extraction]:
    """Continue prefixes greedily as one batch, until all are complete or have more than `most_edits` edits.

    No token ends a continuation, so that it is as long as that of the document.

    Args:
        engine: The model.
        passages: The prefixes, and the continuations to compare with, all of one length.
        most_edits: Largest edit distance to be found.
    """
    texts = np.stack([passage.ids[passage.start :] for passage in passages])
    distances, steps = EditDistances(texts), list[NDArray[np.int32]]()
    prompts = [passage.prompt for passage in passages]
    for step in engine.generate(prompts, [Sampling()] * len(passages), texts.shape[1]):
        steps.append(step.tokens)
        distances.push(step.tokens)
        if (distances.least > most_edits).all():
            break
    generated, edits = np.stack(steps, axis=1).tolist(), distances.least.tolist()
    return [Extraction(g, e if e <= most_edits else None) for g, e in zip(generated, edits, strict=True)]


def extract_exact(engine: Engine, passages: Sequence[Passage]) -> list[Extraction]:
    """Find the exact continuations without generating any.

    A greedy continuation equals that of the document if and only if each token of the document is the likeliest after
    those before it, which one pass over the document tells.
    """
    found = score_continuations(engine, [(passage.prompt, passage.continuation) for passage in passages])
    return [
        Extraction(passage.continuation, 0) if likelihood.is_greedy else Extraction([], None)
        for passage, likelihood in zip(passages, found, strict=True)
    ]
