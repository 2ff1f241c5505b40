"""`attention` against its definition in float64, in every instruction set, over shapes, windows, padding and caches."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native

TOLERANCE = 3e-6
"""Absolute, for results of the order of one and scores below 16: a few float32 roundings."""
EPS = 1e-6


HALF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to each cache dtype."""


def rounded(x: Any, dtype: str) -> Any:
    """Return float32 values rounded to a cache dtype, in float64."""
    return x.astype(np.float64) if dtype == "float32" else x.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)


@dataclass
class Heads:
    """The sizes and parameters of one attention."""

    heads: int = 4
    kv_heads: int = 2
    width: int = 32
    slots: int = 24
    window: int | None = None
    rotated: int = 32
    cap: float | None = None
    gains: bool = True
    scale: float = 0.25
    stored: str = "float32"
    random: Any = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.gain = [self.random.standard_normal(self.width).astype(np.float32) for _ in "qk"] if self.gains else None

    def rotation(self, positions: Any) -> Any:
        half = self.rotated // 2
        angles = np.maximum(positions, 0)[..., None] * 10_000.0 ** -(np.arange(half) / max(half, 1))
        return np.stack([np.cos(angles), np.sin(angles)], axis=-2).astype(np.float32)

    def prepared(self, x: Any, gain: Any, rotation: Any) -> Any:
        """Return x [B, T, heads, H] normalized and rotated, in float64."""
        x, half = x.astype(np.float64), self.rotated // 2
        if gain is not None:
            x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPS) * (1 + gain.astype(np.float64))
        cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


class Run:
    """Run the kernel chunk by chunk and keep all keys and values for the reference."""

    def __init__(self, heads: Heads, batch: int):
        self.h, self.batch = heads, batch
        shape = (batch, heads.kv_heads, heads.slots, heads.width)
        never = jnp.full(shape, jnp.nan, heads.stored)  # slots that were never written must never be read
        self.cache = (never, never)
        self.lengths = np.zeros(batch, np.int32)
        self.past: list[list[tuple[Any, Any]]] = [[] for _ in range(batch)]

    def attend(self, valid: Any) -> None:
        h, tokens = self.h, valid.shape[1]
        q, k, v = (
            h.random.standard_normal((self.batch, tokens, n, h.width)).astype(np.float32)
            for n in (h.heads, h.kv_heads, h.kv_heads)
        )
        positions = np.where(valid, self.lengths[:, None] + np.cumsum(valid, 1) - 1, -1).astype(np.int32)
        rotation = h.rotation(positions)
        y, self.cache = native.attention(
            jnp.asarray(q),
            jnp.asarray(k),
            jnp.asarray(v),
            self.cache,
            jnp.asarray(positions),
            jnp.asarray(self.lengths),
            jnp.asarray(rotation),
            None if h.gain is None else (jnp.asarray(h.gain[0]), jnp.asarray(h.gain[1])),
            window=h.window,
            scale=h.scale,
            cap=h.cap,
            eps=EPS,
        )
        self.check(np.asarray(y), q, k, v, positions, rotation)

    def check(self, y: Any, q: Any, k: Any, v: Any, positions: Any, rotation: Any) -> None:
        h = self.h
        q = h.prepared(q, h.gain and h.gain[0], rotation) * h.scale
        k = h.prepared(k, h.gain and h.gain[1], rotation)
        cache = [np.asarray(part, np.float64) for part in self.cache]
        for sequence in range(self.batch):
            oldest = max(self.lengths[sequence] - h.slots, 0)
            newest = positions[sequence].max()
            for t in np.flatnonzero(positions[sequence] >= 0):
                key, value = (rounded(x, h.stored) for x in (k[sequence, t], v[sequence, t]))
                if positions[sequence, t] > newest - h.slots:
                    stored, values = (part[sequence, :, positions[sequence, t] % h.slots] for part in cache)
                    np.testing.assert_array_equal(values, value)
                    np.testing.assert_allclose(stored, k[sequence, t], rtol=HALF[h.stored], atol=TOLERANCE)
                    key = stored if h.stored == "bfloat16" else key  # a key near a rounding boundary may go either way
                self.past[sequence].append((key, value))
            for t, position in enumerate(positions[sequence]):
                if position < 0:
                    np.testing.assert_array_equal(y[sequence, t], 0.0)
                    continue
                first = max(oldest, 0 if h.window is None else position - h.window + 1)
                if positions.shape[1] == 1:  # it takes one of the slots
                    first = max(first, position - h.slots + 1)
                keys, values = (np.stack(part) for part in zip(*self.past[sequence][first : position + 1], strict=True))
                for n in range(h.heads):
                    scores = keys[:, n // (h.heads // h.kv_heads)] @ q[sequence, t, n]
                    scores = h.cap * np.tanh(scores / h.cap) if h.cap else scores
                    weights = np.exp(scores - scores.max())
                    expected = weights / weights.sum() @ values[:, n // (h.heads // h.kv_heads)]
                    np.testing.assert_allclose(y[sequence, t, n], expected, rtol=0, atol=TOLERANCE)
        self.lengths = (self.lengths + (positions >= 0).sum(1)).astype(np.int32)


HEADS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-query": {"heads": 5, "kv_heads": 1},
    "full": {"heads": 3, "kv_heads": 3, "gains": False},
    "window": {"window": 7, "slots": 7},
    "window of one": {"window": 1, "slots": 1},
    "cache longer than the window": {"window": 5, "slots": 9},
    "capped": {"cap": 2.0, "scale": 3.0},
    "half rotated": {"rotated": 16, "heads": 8, "kv_heads": 1},
    "not rotated, wide": {"rotated": 0, "width": 80, "scale": 0.1},
}


cache_dtypes = pytest.mark.parametrize("stored", HALF)


@cache_dtypes
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_and_single_tokens(isa: str, kind: str, stored: str) -> None:
    """The longest chunk has enough queries for the kernel with panels of keys."""
    run = Run(Heads(**HEADS[kind], stored=stored), batch=2)
    for tokens in (1, 6, 1, 1, 3, 11, 33, 1, 1):
        run.attend(np.ones((2, tokens), bool))


@cache_dtypes
def test_padding_on_either_side_is_neither_attended_to_nor_stored(isa: str, stored: str) -> None:
    run = Run(Heads(window=9, slots=9, stored=stored), batch=3)
    for counts in ((4, 0, 7), (1, 7, 3)):
        run.attend(np.arange(7) < np.array(counts)[:, None])  # on the right
        run.attend(np.arange(7) >= 7 - np.array(counts)[:, None])  # on the left
    run.attend(np.array([[True], [False], [True]]))
    run.attend(np.array([[True, False, True, True], [False] * 4, [True] * 4]))


@cache_dtypes
def test_chunk_longer_than_the_cache(isa: str, stored: str) -> None:
    run = Run(Heads(window=5, slots=5, rotated=0, gains=False, stored=stored), batch=1)
    for tokens in (23, 1, 17, 1, 61):
        run.attend(np.ones((1, tokens), bool))


@cache_dtypes
def test_many_tokens_are_shared_among_threads(isa: str, stored: str) -> None:
    run = Run(Heads(heads=4, kv_heads=1, width=256, slots=700, rotated=256, scale=1 / 32, stored=stored), batch=1)
    for tokens in (600, 1, 9):
        run.attend(np.ones((1, tokens), bool))


def test_rounding_to_bfloat16_follows_ieee(isa: str) -> None:
    """Ties go to even, overflow gives infinity, and NaN stays NaN."""
    bits = np.arange(0x3F7F7FFE, 0x3F7F7FFE + 16, dtype=np.uint32)
    bits = np.concatenate([bits, bits + 0x10000, [0x7F7FFFFF, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 1, 0x80018000]])
    values = bits.astype(np.uint32).view(np.float32)
    values = np.resize(values, (1, 1, 2, 32))
    cache = jnp.zeros((1, 2, 8, 32), jnp.bfloat16)
    changes = {"positions": jnp.zeros((1, 1), jnp.int32), "rotation": jnp.zeros((1, 1, 2, 0)), "cache": (cache, cache)}
    small = {"q": jnp.zeros((1, 1, 4, 32)), "k": jnp.asarray(values), "v": jnp.asarray(values)}
    _, after = native.attention(**_arguments(**changes, **small))
    with np.errstate(invalid="ignore"):
        expected = values[0, 0].astype(jnp.bfloat16).astype(np.float32)
    for part in after:
        np.testing.assert_array_equal(np.asarray(part, np.float32)[0, :, 0], expected)


def test_nan_stays_in_its_query_and_head(isa: str) -> None:
    h = Heads(gains=False)
    q, k = np.ones((1, 2, 4, 32), np.float32), np.ones((1, 2, 2, 32), np.float32)
    k[0, 1, 0, 0] = np.nan
    cache = (jnp.zeros((1, 2, 24, 32)), jnp.zeros((1, 2, 24, 32)))
    positions = np.arange(2, dtype=np.int32)[None]
    y, _ = native.attention(
        jnp.asarray(q),
        jnp.asarray(k),
        jnp.ones(k.shape),
        cache,
        jnp.asarray(positions),
        jnp.zeros(1, jnp.int32),
        jnp.asarray(h.rotation(positions)),
        None,
        window=None,
        scale=1.0,
        cap=None,
        eps=EPS,
    )
    assert np.isnan(np.asarray(y)[0, 1, :2]).all()
    assert np.isfinite(np.asarray(y)[0, 0]).all()
    assert np.isfinite(np.asarray(y)[0, 1, 2:]).all()


def _arguments(**changes: Any) -> dict[str, Any]:
    cache = jnp.zeros((1, 2, 8, 32))
    given: dict[str, Any] = {
        "q": jnp.zeros((1, 3, 4, 32)),
        "k": jnp.zeros((1, 3, 2, 32)),
        "v": jnp.zeros((1, 3, 2, 32)),
        "cache": (cache, cache),
        "positions": jnp.arange(3, dtype=jnp.int32)[None],
        "lengths": jnp.zeros(1, jnp.int32),
        "rotation": jnp.zeros((1, 3, 2, 16)),
        "gains": None,
        "window": None,
        "scale": 1.0,
        "cap": None,
        "eps": EPS,
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": jnp.zeros((1, 3, 4, 32), jnp.bfloat16)}, "q must be float32"),
        ({"k": jnp.zeros((1, 3, 3, 32))}, "k must be"),
        ({"v": jnp.zeros((1, 2, 2, 32))}, "v must be"),
        ({"cache": (jnp.zeros((1, 2, 8, 32)), jnp.zeros((1, 2, 7, 32)))}, "values must be"),
        ({"cache": (jnp.zeros((1, 2, 8, 32), jnp.float16),) * 2}, "keys must be float32"),
        ({"cache": (jnp.zeros((1, 2, 8, 32), jnp.bfloat16), jnp.zeros((1, 2, 8, 32)))}, "values must be bfloat16"),
        ({"positions": jnp.zeros((1, 3))}, "positions must be int32"),
        ({"lengths": jnp.zeros(2, jnp.int32)}, "lengths must be"),
        ({"rotation": jnp.zeros((1, 3, 2, 17))}, "sizes are inconsistent"),
        ({"gains": (jnp.zeros(3), jnp.zeros(32))}, "gain must be"),
        ({"window": 0}, "sizes are inconsistent"),
        ({"cache": (jnp.zeros((1, 2, 0, 32)),) * 2}, "sizes are inconsistent"),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.attention(**_arguments(**changes))


@pytest.mark.parametrize(
    "changes", [{"positions": jnp.asarray([[0, 2, 3]], jnp.int32)}, {"lengths": jnp.asarray([-1], jnp.int32)}]
)
def test_wrong_positions_raise_at_run_time(changes: dict[str, Any]) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"without gaps|negative"):
        jax.block_until_ready(native.attention(**_arguments(**changes)))


def test_empty_batch(isa: str) -> None:
    nothing = {name: jnp.zeros((0, *_arguments()[name].shape[1:])) for name in ("q", "k", "v", "rotation")}
    cache = (jnp.zeros((0, 2, 8, 32)),) * 2
    integers = {"positions": jnp.zeros((0, 3), jnp.int32), "lengths": jnp.zeros(0, jnp.int32)}
    y, _ = native.attention(**_arguments(**nothing, **integers, cache=cache))
    assert y.shape == (0, 3, 4, 32)
