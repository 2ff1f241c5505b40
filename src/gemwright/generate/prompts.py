"""Prompts, and how they are cut into chunks of the few sizes that programs are compiled for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright.generate import buckets
from gemwright.model.transformer import SoftTokens
from gemwright.text.image_format import SOFT_TOKEN
from gemwright.typing import Array

Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt of text and images.

    Attributes:
        ids: Token ids; `SOFT_TOKEN` takes the next of `soft_tokens`.
        soft_tokens: [n, D] embeddings from images, in order.
        groups: [len(ids)] Tokens of one group, numbered from 0, attend to each other both ways; tokens of group -1 are
            causal.
    """

    ids: Ids
    soft_tokens: NDArray[np.float32]
    groups: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Prompt":
        """Return the first tokens, with all soft tokens."""
        return Prompt(self.ids[part], self.soft_tokens, self.groups[part])

    def then(self, ids: Ids) -> "Prompt":
        """Return the prompt with causal text appended."""
        return Prompt([*self.ids, *ids], self.soft_tokens, np.append(self.groups, np.full(len(ids), -1, np.int32)))


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next tokens of every prompt of a batch.

    Attributes:
        starts: [B] index of each part in its prompt.
        tokens: [B, T].
        valid: [B, T] which of them are real.
        last: Some prompt ends here.
        soft_tokens: Embeddings and groups, if some prompt has images.
    """

    starts: list[int]
    tokens: Array
    valid: NDArray[np.bool_]
    last: bool
    soft_tokens: SoftTokens | None


def token_ids(prompt: Ids | Prompt) -> Ids:
    """Return the ids of a prompt, `SOFT_TOKEN` among them."""
    return prompt.ids if isinstance(prompt, Prompt) else prompt


def chunks(prompts: Sequence[Ids | Prompt], starts: Sequence[int] | None = None) -> Iterator[Chunk]:
    """Cut prompts of any lengths into chunks. Short parts are padded at the end, and groups are never split.

    Args:
        prompts: of a batch.
        starts: [B] how many tokens of each to leave out; 0 unless given.
    """
    starts = [0] * len(prompts) if starts is None else list(starts)
    while any(len(prompt) > start for prompt, start in zip(prompts, starts, strict=True)):
        yield (chunk := next_chunk(prompts, starts))
        starts = [start + int(part.sum()) for start, part in zip(starts, chunk.valid, strict=True)]


def next_chunk(prompts: Sequence[Ids | Prompt], starts: Sequence[int], most: int = buckets.CHUNKS[-1]) -> Chunk:
    """Return the chunk that begins at `starts`, of at most `most` tokens of each prompt unless a group is longer."""
    rest = max(len(prompt) - start for prompt, start in zip(prompts, starts, strict=True))
    size = buckets.chunk(min(rest, most), max(map(_group_length, prompts, starts)))
    stops = [_stop(prompt, start + size) for prompt, start in zip(prompts, starts, strict=True)]
    parts = list(zip(prompts, starts, stops, strict=True))
    tokens, valid = np.zeros((len(prompts), size), np.int32), np.zeros((len(prompts), size), bool)
    for index, (prompt, start, stop) in enumerate(parts):
        tokens[index, : stop - start] = token_ids(prompt)[start:stop]
        valid[index, : stop - start] = True
    last = any(start < stop == len(prompt) for prompt, start, stop in parts)
    return Chunk(list(starts), jax.device_put(tokens), valid, last, _soft_tokens(parts, size))


def windows(length: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text of `length` tokens into windows that begin `stride` tokens apart.

    Returns:
        The start of each window, the end of the one before it, and its own end, at most `size` after the start.
    """
    stop = 0
    for start in range(0, length, stride):
        first, stop = stop, min(start + size, length)
        yield start, first, stop
        if stop == length:
            return


def _group_length(prompt: Ids | Prompt, start: int) -> int:
    """Return the number of tokens of the group that begins at `start`, or 0."""
    if not isinstance(prompt, Prompt) or start >= len(prompt) or prompt.groups[start] < 0:
        return 0
    return int(np.sum(prompt.groups == prompt.groups[start]))


def _stop(prompt: Ids | Prompt, stop: int) -> int:
    """Return the end of a chunk that ends at `stop` or before a group that goes beyond."""
    if stop >= len(prompt):
        return len(prompt)
    if isinstance(prompt, Prompt) and prompt.groups[stop] >= 0:
        return int(np.argmax(prompt.groups == prompt.groups[stop]))
    return stop


def _soft_tokens(parts: Sequence[tuple[Ids | Prompt, int, int]], size: int) -> SoftTokens | None:
    width = next((prompt.soft_tokens.shape[1] for prompt, _, _ in parts if isinstance(prompt, Prompt)), None)
    if width is None:
        return None
    embeddings = np.zeros((len(parts), size, width), np.float32)
    groups = np.full((len(parts), size), -1, np.int32)
    for index, (prompt, start, stop) in enumerate(parts):
        if not isinstance(prompt, Prompt):
            continue
        places = np.flatnonzero(np.asarray(prompt.ids[start:stop]) == SOFT_TOKEN)
        first = int(np.sum(np.asarray(prompt.ids[:start]) == SOFT_TOKEN))
        embeddings[index, places] = prompt.soft_tokens[first : first + len(places)]
        groups[index, : stop - start] = prompt.groups[start:stop]
    return SoftTokens(jax.device_put(embeddings), jax.device_put(groups))
