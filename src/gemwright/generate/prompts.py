"""What rows begin with, and how it is cut into the few shapes that programs are compiled for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright.generate import schedule
from gemwright.model.transformer import Pictured
from gemwright.typing import Array

Ids = Sequence[int]
ROW = -1
"""The id that stands for a row of a picture."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Text and pictures.

    Attributes:
        ids: Tokens; `ROW` stands for the next of `rows`.
        rows: [n, D] what pictures put in place of embeddings, in order.
        blocks: [len(ids)] Tokens with the same number, from 0, see each other both ways; -1 only backwards.
    """

    ids: Ids
    rows: NDArray[np.float32]
    blocks: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Prompt":
        """The front of it, with all rows."""
        return Prompt(self.ids[part], self.rows, self.blocks[part])

    def then(self, ids: Ids) -> "Prompt":
        """With text behind it, which sees backwards only."""
        return Prompt([*self.ids, *ids], self.rows, np.append(self.blocks, np.full(len(ids), -1, np.int32)))


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next part of every row.

    Attributes:
        starts: [B] where in its row each part begins.
        tokens: [B, T].
        valid: [B, T] which of them are real.
        last: Some row ends here.
        pictured: What comes from pictures.
    """

    starts: list[int]
    tokens: Array
    valid: NDArray[np.bool_]
    last: bool
    pictured: Pictured | None


def chunks(prompts: Sequence[Ids | Prompt]) -> Iterator[Chunk]:
    """Cut rows of any lengths into the scheduled sizes. Short parts are padded at the end; no block is parted."""
    starts = [0] * len(prompts)
    while rest := max(len(prompt) - start for prompt, start in zip(prompts, starts, strict=True)):
        size = schedule.chunk(rest, max(map(_block_length, prompts, starts)))
        stops = [_stop(prompt, start + size) for prompt, start in zip(prompts, starts, strict=True)]
        parts = list(zip(prompts, starts, stops, strict=True))
        tokens, valid = np.zeros((len(prompts), size), np.int32), np.zeros((len(prompts), size), bool)
        for row, (prompt, start, stop) in enumerate(parts):
            tokens[row, : stop - start] = (prompt.ids if isinstance(prompt, Prompt) else prompt)[start:stop]
            valid[row, : stop - start] = True
        last = any(start < stop == len(prompt) for prompt, start, stop in parts)
        yield Chunk(starts, jax.device_put(tokens), valid, last, _pictured(parts, size))
        starts = stops


def _block_length(prompt: Ids | Prompt, start: int) -> int:
    """Tokens of the block that begins at `start`, if one does."""
    if not isinstance(prompt, Prompt) or start >= len(prompt) or prompt.blocks[start] < 0:
        return 0
    return int(np.sum(prompt.blocks == prompt.blocks[start]))


def _stop(prompt: Ids | Prompt, stop: int) -> int:
    """Where a chunk ends that would end at `stop`: before a block that goes beyond."""
    if stop >= len(prompt):
        return len(prompt)
    if isinstance(prompt, Prompt) and prompt.blocks[stop] >= 0:
        return int(np.argmax(prompt.blocks == prompt.blocks[stop]))
    return stop


def _pictured(parts: Sequence[tuple[Ids | Prompt, int, int]], size: int) -> Pictured | None:
    pictured = [prompt for prompt, _, _ in parts if isinstance(prompt, Prompt)]
    if not pictured:
        return None
    rows = np.zeros((len(parts), size, pictured[0].rows.shape[1]), np.float32)
    blocks = np.full((len(parts), size), -1, np.int32)
    for index, (prompt, start, stop) in enumerate(parts):
        if not isinstance(prompt, Prompt):
            continue
        places = np.flatnonzero(np.asarray(prompt.ids[start:stop]) == ROW)
        first = int(np.sum(np.asarray(prompt.ids[:start]) == ROW))
        rows[index, places] = prompt.rows[first : first + len(places)]
        blocks[index, : stop - start] = prompt.blocks[start:stop]
    return Pictured(jax.device_put(rows), jax.device_put(blocks))
