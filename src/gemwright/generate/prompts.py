"""What rows begin with, and how it is cut into the few shapes that programs are compiled for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright.generate import buckets
from gemwright.model.transformer import SoftTokens
from gemwright.typing import Array

Ids = Sequence[int]
SOFT_TOKEN = -1
"""The id that stands for a row of a picture."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Text and pictures.

    Attributes:
        ids: Tokens; `SOFT_TOKEN` stands for the next of `soft_tokens`.
        soft_tokens: [n, D] what pictures put in place of embeddings, in order.
        groups: [len(ids)] Tokens with the same number, from 0, see each other both ways; -1 only backwards.
    """

    ids: Ids
    soft_tokens: NDArray[np.float32]
    groups: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Prompt":
        """The front of it, with all rows."""
        return Prompt(self.ids[part], self.soft_tokens, self.groups[part])

    def then(self, ids: Ids) -> "Prompt":
        """With text behind it, which sees backwards only."""
        return Prompt([*self.ids, *ids], self.soft_tokens, np.append(self.groups, np.full(len(ids), -1, np.int32)))


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next part of every row.

    Attributes:
        starts: [B] where in its row each part begins.
        tokens: [B, T].
        valid: [B, T] which of them are real.
        last: Some row ends here.
        soft_tokens: What comes from pictures.
    """

    starts: list[int]
    tokens: Array
    valid: NDArray[np.bool_]
    last: bool
    soft_tokens: SoftTokens | None


def chunks(prompts: Sequence[Ids | Prompt]) -> Iterator[Chunk]:
    """Cut rows of any lengths into the scheduled sizes. Short parts are padded at the end; no block is parted."""
    starts = [0] * len(prompts)
    while rest := max(len(prompt) - start for prompt, start in zip(prompts, starts, strict=True)):
        size = buckets.chunk(rest, max(map(_group_length, prompts, starts)))
        stops = [_stop(prompt, start + size) for prompt, start in zip(prompts, starts, strict=True)]
        parts = list(zip(prompts, starts, stops, strict=True))
        tokens, valid = np.zeros((len(prompts), size), np.int32), np.zeros((len(prompts), size), bool)
        for row, (prompt, start, stop) in enumerate(parts):
            tokens[row, : stop - start] = (prompt.ids if isinstance(prompt, Prompt) else prompt)[start:stop]
            valid[row, : stop - start] = True
        last = any(start < stop == len(prompt) for prompt, start, stop in parts)
        yield Chunk(starts, jax.device_put(tokens), valid, last, _pictured(parts, size))
        starts = stops


def _group_length(prompt: Ids | Prompt, start: int) -> int:
    """Tokens of the block that begins at `start`, if one does."""
    if not isinstance(prompt, Prompt) or start >= len(prompt) or prompt.groups[start] < 0:
        return 0
    return int(np.sum(prompt.groups == prompt.groups[start]))


def _stop(prompt: Ids | Prompt, stop: int) -> int:
    """Where a chunk ends that would end at `stop`: before a block that goes beyond."""
    if stop >= len(prompt):
        return len(prompt)
    if isinstance(prompt, Prompt) and prompt.groups[stop] >= 0:
        return int(np.argmax(prompt.groups == prompt.groups[stop]))
    return stop


def _pictured(parts: Sequence[tuple[Ids | Prompt, int, int]], size: int) -> SoftTokens | None:
    soft_tokens = [prompt for prompt, _, _ in parts if isinstance(prompt, Prompt)]
    if not soft_tokens:
        return None
    rows = np.zeros((len(parts), size, soft_tokens[0].soft_tokens.shape[1]), np.float32)
    groups = np.full((len(parts), size), -1, np.int32)
    for index, (prompt, start, stop) in enumerate(parts):
        if not isinstance(prompt, Prompt):
            continue
        places = np.flatnonzero(np.asarray(prompt.ids[start:stop]) == SOFT_TOKEN)
        first = int(np.sum(np.asarray(prompt.ids[:start]) == SOFT_TOKEN))
        rows[index, places] = prompt.soft_tokens[first : first + len(places)]
        groups[index, : stop - start] = prompt.groups[start:stop]
    return SoftTokens(jax.device_put(rows), jax.device_put(groups))
