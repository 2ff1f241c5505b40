"""Attention from queries to keys and values, with a rotating KV cache.

The reference is jax.numpy, for every platform and with gradients. With a cache, float32 queries on a CPU have a C++
kernel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import choice, native
from gemwright.typing import Array, Bool, Float, Int

MASKED = -2.3819763e38
"""Score of a masked key: finite in bfloat16, so that a query that attends to nothing has no NaN."""

SCORES = 1 << 25
"""Maximum number of scores in memory, 128 MB: a long chunk with a long cache is computed some queries at a time."""

LANES = 16
"""The kernel's head width is a multiple of this."""
CACHE_DTYPES = (jnp.float32, jnp.bfloat16)
"""Dtypes of a cache that the kernel supports. It computes in float32."""

Gains = tuple[Float[Array, " H"], Float[Array, " H"]]
"""Gains of the RMS norms of queries and keys."""
Cache = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]
"""Keys and values; position p is in cell p % S."""

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
_HEAD_FIRST = (0, 2, 1, 3)


def attend_cached(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    cache: Cache,
    positions: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    rotation: Float[Array, "B T 2 half"],
    gains: Gains | None,
    groups: Int[Array, "B T"] | None = None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Float[Array, "B T N H"], Cache]:
    """Normalize and rotate queries and keys, store keys and values, and attend to all cached ones.

    Args:
        q: Queries, as projected.
        k: Keys, as projected.
        v: Values.
        cache: Keys and values of the tokens before these.
        positions: -1 for padding.
        lengths: Number of tokens of each sequence before these.
        rotation: See `ops.rotation`.
        gains: None for no norms.
        groups: Tokens of one group attend to each other both ways; -1 for causal tokens.
        window: Positions that a query attends to, itself included; None for all earlier ones.
        scale: Factor of the scores.
        cap: Soft cap of the scores.
        eps: Epsilon of the norms.

    Raises:
        GemwrightError: The native kernel is requested and cannot run.
    """
    impl = choice.resolve("attention with a cache", _obstacle(q, cache, groups))
    operation = _reference if impl == "reference" else functools.partial(_cached, impl=impl)
    arguments = (q, k, v, *cache, positions, lengths, rotation, gains, groups)
    mixed, keys, values = operation(*arguments, window=window, scale=scale, cap=cap, eps=eps)
    return mixed, (keys, values)


def _obstacle(q: Array, cache: Cache, groups: Array | None) -> str | None:
    """Return the reason why the kernel does not take these inputs, or None."""
    if q.dtype != jnp.float32:
        return f"queries are {q.dtype}, not float32"
    if cache[0].dtype not in CACHE_DTYPES:
        return f"the cache is {cache[0].dtype}, not float32 or bfloat16"
    if q.shape[-1] % LANES:
        return f"the head width {q.shape[-1]} is not a multiple of {LANES}"
    return None if groups is None else "soft tokens attend to each other both ways"


def _native(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    positions: Array,
    lengths: Array,
    rotation: Array,
    gains: Gains | None,
    groups: None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Array, Array, Array]:
    run = native.library().attention
    options = {"window": window, "scale": scale, "cap": cap, "eps": eps}
    mixed, cache = run(q, k, v, (keys, values), positions, lengths, rotation, gains, **options)
    return mixed, *cache


def _reference(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    positions: Array,
    lengths: Array,
    rotation: Array,
    gains: Gains | None,
    groups: Array | None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    eps: float,
) -> tuple[Array, Array, Array]:
    q, k = prepare(q, k, rotation, gains, eps)
    cells = keys.shape[2]
    stored = _store(keys, k, positions), _store(values, v, positions)
    full = window is not None and cells >= window
    if groups is None and (k.shape[1] == 1 or not full):
        # After the new tokens are stored, the cache still has all that any query attends to.
        length = lengths + jnp.sum(positions >= 0, axis=1)
        mask = visible(positions, cell_positions(cells, length), window)
        return attend(q * scale, *stored, mask, cap), *stored

    # The chunk overwrites keys that its first queries attend to: attend to the old cache, then the chunk. A group lies
    # within the chunk; it may be longer than the window, which does not divide it.
    k, v = (new.transpose(_HEAD_FIRST).astype(old.dtype) for old, new in ((keys, k), (values, v)))
    mask = visible(positions, jnp.concatenate([cell_positions(cells, lengths), positions], axis=1), window)
    if groups is not None:
        mask |= same_group(groups, jnp.pad(groups, ((0, 0), (cells, 0)), constant_values=-1))
    everything = jnp.concatenate([keys, k], axis=2), jnp.concatenate([values, v], axis=2)
    return attend(q * scale, *everything, mask, cap), *stored


_cached = choice.PlatformOperation(
    "attention with a cache",
    reference=_reference,
    cpu=_native,
    like=(0, 3, 4),  # q, keys and values
)


def attend(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """Return softmax(cap(q k)) v in float32, with the cap before the mask. Query head n uses key head n // (N / K)."""
    B, _, N, _ = q.shape

    def some(q: Array, mask: Array) -> Array:
        return attend_at_once(q, keys, values, mask, cap)

    return map_queries(some, (q, mask), B * N * keys.shape[2])


def map_queries(function: Callable[..., Array], arrays: tuple[Array, ...], scores: int) -> Float[Array, "B T N H"]:
    """Return the function's results for arrays [B, T, ...], some queries at a time.

    So neither it nor its gradient, which computes the scores again, holds more than `SCORES` of them.

    Args:
        function: It mixes values for as many queries as it is given.
        arrays: Its arguments.
        scores: Number of scores of one query of each sequence.
    """
    at_once = max(1, SCORES // scores)
    if at_once >= arrays[0].shape[1]:
        return function(*arrays)

    def one(query: tuple[Array, ...]) -> Float[Array, "B N H"]:
        return function(*(array[:, None] for array in query))[:, 0]

    swapped = tuple(array.swapaxes(0, 1) for array in arrays)
    return jax.lax.map(jax.checkpoint(one), swapped, batch_size=at_once).swapaxes(0, 1)


def attend_at_once(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """Return the results of `attend` with all scores in memory."""
    B, T, N, H = q.shape
    K = keys.shape[1]
    grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # B K G T H
    scores = _product("bkgth,bksh->bkgts", grouped, keys)
    scores = jnp.where(mask[:, None, None], ops.soft_cap(scores, cap), MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    mixed = _product("bkgts,bksh->bkgth", probabilities, values)
    return mixed.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def visible(queries: Int[Array, "B T"], keys: Int[Array, "B S"], window: int | None) -> Bool[Array, "B T S"]:
    """Return the causal mask by position: a query attends to itself and earlier keys, at most `window` in all."""
    distance = queries[:, :, None] - keys[:, None, :]
    mask = (distance >= 0) & (keys >= 0)[:, None, :]
    return mask if window is None else mask & (distance < window)


def same_group(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
    """Return which queries and keys belong to the same group of soft tokens; -1 is no group."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries >= 0)[:, :, None]


def cell_positions(cells: int, lengths: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Return the position of the token in each cell of a cache after `lengths` tokens; negative if a cell is empty."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(cells)) % cells


def _store(cache: Float[Array, "B K S H"], new: Float[Array, "B T K H"], positions: Int[Array, "B T"]) -> Array:
    """Store new keys or values. Of a chunk longer than the cache only the last `S` are kept; padding is dropped."""
    cells = cache.shape[2]
    newest = jnp.max(positions, axis=1, keepdims=True)
    kept = (positions >= 0) & (positions > newest - cells)
    cell = jnp.where(kept, positions % cells, cells)  # one past the end: dropped
    sequence = jnp.arange(cell.shape[0])[:, None]
    return cache.at[sequence, :, cell].set(new.astype(cache.dtype), mode="drop")


def prepare(q: Array, k: Array, rotation: Array, gains: Gains | None, eps: float) -> tuple[Array, Array]:
    """Normalize, if there are gains, and rotate."""
    if gains is not None:
        q, k = ops.rms_norm(q, gains[0], eps), ops.rms_norm(k, gains[1], eps)
    return ops.rotate(q, rotation), ops.rotate(k, rotation)
