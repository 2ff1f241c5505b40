"""The prefix cache: decode states of earlier prompts and answers, so that a new prompt prefills only what is new.

A prefix is the state of one sequence after its tokens, on the host and cut to its length. Any shorter length of it can
be used as well, unless a rotating cache has dropped tokens or a layer is recurrent: then it is used as a whole.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gemwright.generate.prompts import Ids, Prompt, token_ids
from gemwright.model.config import Attention, Config, Recurrent
from gemwright.model.state import DecodeState, KVCache, MixerState, abstract_state
from gemwright.text.image_format import SOFT_TOKEN
from gemwright.typing import Array

MIN_TOKENS = 16
"""Length in tokens of the shortest prefix that is cached: a shorter one is prefilled as fast as copied."""

Key = NDArray[np.int64]
"""A number for each token of a prompt, which also depends on the images of a group."""


def prompt_key(prompt: Ids | Prompt) -> Key:
    """Return the key of a prompt: two prompts have the same state after n tokens if their first n numbers are equal.

    Tokens of a group attend to each other both ways, so that each one's number is a hash of the whole group.
    """
    key = np.asarray(token_ids(prompt), np.int64)
    if not isinstance(prompt, Prompt):
        return key
    bounds = [0, *(np.flatnonzero(np.diff(prompt.groups)) + 1).tolist(), len(key)]
    soft = np.cumsum(np.append(0, key == SOFT_TOKEN))
    key = key.copy()
    for start, stop in pairwise(bounds):
        embeddings = prompt.soft_tokens[soft[start] : soft[stop]]
        if prompt.groups[start] < 0 and not len(embeddings):
            continue
        digest = hashlib.blake2b(key[start:stop].tobytes() + embeddings.tobytes(), digest_size=8).digest()
        key[start:stop] = -1 - (int.from_bytes(digest, "little") >> 1)
    return key


@dataclass(frozen=True, eq=False)
class Prefix:
    """The state after a prefix.

    Attributes:
        key: The key of its tokens.
        salt: Only prompts with the same salt use it.
        layers: The state of every layer, on the host; KV caches hold the cells in use.
        whole: It cannot be used for fewer tokens.
    """

    key: Key
    salt: str
    layers: tuple[MixerState, ...]
    whole: bool

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.layers)) + self.key.nbytes


class PrefixCache:
    """Prefixes by their keys, at most so many bytes of them; the one that was not used for longest goes first.

    Args:
        config: The model.
        max_bytes: Maximum total size in bytes; 0 caches nothing.
    """

    def __init__(self, config: Config, max_bytes: int):
        self._config = config
        self._max_bytes = max_bytes
        self._prefixes: list[Prefix] = []  # least recently used first
        mixers = [layer.mixer for layer in config.layers]
        windows = [mixer.window for mixer in mixers if isinstance(mixer, Attention) and mixer.window is not None]
        recurrent = any(isinstance(mixer, Recurrent) for mixer in mixers)
        self._divisible = 0 if recurrent else min(windows, default=config.max_length)
        """Longest prefix in tokens that can be used for fewer tokens."""
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def find(self, key: Key, salt: str = "") -> tuple[Prefix, int] | None:
        """Return the prefix that covers most of a prompt, and for how many tokens; None if there is none."""
        lengths = [(self._usable(prefix, key), prefix) for prefix in self._of(salt)]
        length, prefix = max(lengths, key=lambda pair: pair[0], default=(0, None))
        if prefix is None or length < MIN_TOKENS:
            return None
        self._prefixes.remove(prefix)
        self._prefixes.append(prefix)
        return prefix, length

    def shared_length(self, key: Key, salt: str = "") -> int:
        """Return how many tokens a prompt shares with an earlier one, whether or not its state can be used for them."""
        return max((_common(prefix.key, key) for prefix in self._of(salt)), default=0)

    def put(self, key: Key, state: DecodeState, salt: str = "") -> None:
        """Add the state of a single sequence after the tokens of `key`; the state is copied."""
        if not self._max_bytes or len(key) < MIN_TOKENS:
            return
        prefix = Prefix(key.copy(), salt, _cut(state.layers, len(key)), len(key) > self._divisible)
        covered = [old for old in self._of(salt) if self._covers(prefix, old)]
        if prefix.nbytes > self._max_bytes or any(self._covers(old, prefix) for old in self._of(salt)):
            return
        for old in covered:
            self._drop(old)
        self._prefixes.append(prefix)
        self.nbytes += prefix.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(self._prefixes[0])

    def clear(self) -> None:
        """Drop all prefixes."""
        self._prefixes, self.nbytes = [], 0

    def _of(self, salt: str) -> Iterator[Prefix]:
        return (prefix for prefix in self._prefixes if prefix.salt == salt)

    def _usable(self, prefix: Prefix, key: Key) -> int:
        """Return for how many tokens of a prompt a prefix can be used; the last token of the prompt is never cached."""
        common = _common(prefix.key, key[:-1])
        return common if not prefix.whole or common == len(prefix.key) else 0

    def _covers(self, one: Prefix, other: Prefix) -> bool:
        """Return whether one prefix serves all prompts that the other does."""
        common = _common(one.key, other.key)
        return common == len(other.key) and (not one.whole or common == len(one.key))

    def _drop(self, prefix: Prefix) -> None:
        self._prefixes.remove(prefix)
        self.nbytes -= prefix.nbytes


def load_prefix(prefix: Prefix, length: int, config: Config, capacity: int, dtype: DTypeLike) -> DecodeState:
    """Return the state of a single sequence after the first `length` tokens of a prefix, on the device.

    Args:
        prefix: The prefix.
        length: Its length, or less unless it is `whole`.
        config: The model.
        capacity: Capacity of the state in tokens.
        dtype: Dtype of its caches.
    """
    shapes = abstract_state(config, 1, capacity, dtype)

    def padded(saved: NDArray[np.generic], shape: jax.ShapeDtypeStruct) -> Array:
        whole = np.zeros(shape.shape, saved.dtype)
        whole[tuple(map(slice, saved.shape))] = saved
        return jax.device_put(whole)

    layers = jax.tree.map(padded, prefix.layers, shapes.layers)
    return DecodeState(jnp.asarray(np.array([length], np.int32)), layers)


def _cut(layers: tuple[MixerState, ...], length: int) -> tuple[MixerState, ...]:
    def cut(layer: MixerState) -> MixerState:
        if isinstance(layer, KVCache):
            cells = min(length, layer.cells)
            keys, values = (np.array(np.asarray(part)[:, :, :cells]) for part in (layer.keys, layer.values))
            return replace(layer, keys=keys, values=values)
        return jax.tree.map(np.array, layer)

    return tuple(map(cut, layers))


def _common(one: Key, other: Key) -> int:
    """Return the number of equal entries at the front."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(np.argmax(differs)) if differs.any() else length
