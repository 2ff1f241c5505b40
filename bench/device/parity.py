"""Compare the accelerator's results with the CPU's, for small random models of every architecture.

The reference is one pass over all tokens by XLA on the CPU in float32, on the same (rounded) weights; the accelerator
computes in float32 and in bfloat16.
"""

import functools
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from device.journal import Journal

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.125}
"""Maximum absolute error of logits and soft tokens, which have a standard deviation of about 1."""
GRADIENT_TOLERANCE = 1e-3
"""Maximum error of a float32 loss, and of a weight's gradient relative to its largest entry."""
PROMPT, DECODED, CHUNK, PADDING = 24, 8, 8, 3


def run(journal: Journal) -> None:
    """Check every architecture in both dtypes, concurrently, as compilation takes most of the time."""
    sys.modules["gemwright_native"] = None  # type: ignore[assignment]  # the reference is XLA, even without an accelerator
    from device import definition

    def check(name: str) -> None:
        for dtype in TOLERANCES:
            if journal.has_time(f"parity of {name} in {dtype}"):
                _check(journal.extend(case=name, dtype=dtype), name, dtype)

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, definition.ARCHITECTURES))
    if journal.has_time("parity of long attention"):
        _check_attention(journal.extend(case=f"attention, {definition.describe_attention()}", dtype="float32"))


def _check(journal: Journal, name: str, dtype: str) -> None:
    from device import definition

    tolerance = TOLERANCES[dtype]
    report = functools.partial(_report, journal)
    config, device, cpu = definition.shape(name), jax.devices()[0], jax.devices("cpu")[0]
    weights = definition.random_host_weights(config, dtype)
    params = jax.device_put(weights, device)
    exact = jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), weights), cpu)

    soft = None
    valid = np.ones((2, PROMPT + DECODED), bool)
    if config.vision is None:
        tokens = np.random.default_rng(0).integers(3, config.vocab, valid.shape, dtype=np.int32)
        valid[1, :PADDING] = False
    else:
        size = config.vision.image_size
        pixels = np.random.default_rng(2).uniform(-1.0, 1.0, (2, size, size, 3)).astype(np.float32)
        rows = np.asarray(definition.encode(config, exact, jax.device_put(pixels, cpu)))
        found = definition.encode(config, params, jax.device_put(pixels, device))
        report("tower", _error(found, rows), tolerance)
        tokens, groups = definition.vision_groups(config, rows, *valid.shape)
        groups[:, PROMPT:] = -1
        embeddings = np.zeros((*tokens.shape, config.width), np.float32)
        embeddings[tokens == definition.SOFT] = rows.reshape(-1, config.width)
        soft = embeddings, groups

    @functools.cache
    def reference() -> np.ndarray:
        inputs = jax.device_put((tokens, valid, soft), cpu)
        return np.asarray(definition.forward(config, exact, *inputs, None)[0])

    logits, _ = definition.forward(config, params, tokens, valid, soft, None)
    report("forward", _error(logits[valid], reference()[valid]), tolerance)
    logits = _cached(config, params, tokens, valid, soft)
    report("prefill, decode", _error(logits[valid], reference()[valid]), tolerance)

    prompts = [_prompt(sequence, tokens, valid, soft) for sequence in range(2)]
    chosen = np.stack(list(definition.generate(config, params, prompts, DECODED)), axis=1)
    tokens[:, PROMPT:] = chosen
    reference.cache_clear()
    before = reference()[:, PROMPT - 1 : -1]
    regret = before.max(axis=-1) - np.take_along_axis(before, chosen[..., None], axis=-1)[..., 0]
    report("greedy tokens", float(regret.max()), 2 * tolerance)
    if dtype == "float32" and config.vision is None:
        report("loss, gradients", _gradient_error(config, params, exact, tokens), GRADIENT_TOLERANCE)


def _check_attention(journal: Journal) -> None:
    """Check attention without a cache, and its gradients, at sizes that a flash kernel takes."""
    from device import definition

    def both(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        mixed, pull = jax.vjp(definition.attend, q, k, v)
        return mixed, pull(cotangent)

    random = np.random.default_rng(0)
    arrays = [random.normal(size=(2, 512, heads, 128)).astype(np.float32) for heads in (4, 2, 2, 4)]
    (mixed, gradients), (expected, exact) = (
        jax.jit(both)(*jax.device_put(arrays, device)) for device in (jax.devices()[0], jax.devices("cpu")[0])
    )
    _report(journal, "forward", _error(mixed, expected), TOLERANCES["float32"])
    shares = [_error(found, right) / np.abs(right).max() for found, right in zip(gradients, exact, strict=True)]
    _report(journal, "gradients", max(map(float, shares)), GRADIENT_TOLERANCE)


def _cached(config: Any, params: Any, tokens: np.ndarray, valid: np.ndarray, soft: Any) -> np.ndarray:
    """Return the logits of a prompt in chunks, or in one with soft tokens, and of tokens one at a time."""
    from device import definition

    state, parts = definition.empty(config, 2, params.final_norm.dtype), []
    chunk = CHUNK if soft is None else PROMPT
    ends = [*range(chunk, PROMPT + 1, chunk), *range(PROMPT + 1, tokens.shape[1] + 1)]
    for start, end in itertools.pairwise([0, *ends]):
        part = np.s_[:, start:end]
        part_soft = None if soft is None or start >= PROMPT else (soft[0][part], soft[1][part])
        logits, state = definition.forward(config, params, tokens[part], valid[part], part_soft, state)
        parts.append(np.asarray(logits))
    return np.concatenate(parts, axis=1)


def _prompt(sequence: int, tokens: np.ndarray, valid: np.ndarray, soft: Any) -> Any:
    """Return the prompt of one sequence for the engine, without padding."""
    from device import definition

    ids = tokens[sequence, :PROMPT][valid[sequence, :PROMPT]].tolist()
    if soft is None:
        return ids
    embeddings = soft[0][sequence][tokens[sequence] == definition.SOFT]
    return definition.Prompt(ids, embeddings, soft[1][sequence, :PROMPT])


def _gradient_error(config: Any, params: Any, exact: Any, tokens: np.ndarray) -> float:
    """Return the largest error of the scanned loss and its gradients, against those without a scan on the CPU."""
    from device import definition

    one, repeats = definition.period(config)
    kinds = len(one.layers)
    layers = [jax.tree.map(lambda *x: jnp.stack(x), *params.layers[kind::kinds]) for kind in range(kinds)]
    stacked = replace(params, layers=tuple(layers))
    found, gradients = jax.jit(jax.value_and_grad(functools.partial(definition.scanned_loss, one)))(stacked, tokens)
    expected, exact = jax.jit(jax.value_and_grad(functools.partial(definition.loss, config)))(exact, tokens)
    layers = [
        jax.tree.map(lambda x, at=at: x[at], gradients.layers[kind]) for at in range(repeats) for kind in range(kinds)
    ]
    pairs = zip(jax.tree.leaves(replace(gradients, layers=tuple(layers))), jax.tree.leaves(exact), strict=True)
    shares = [_error(gradient, right) / np.abs(right).max() for gradient, right in pairs]
    return max(_error(found, expected), *map(float, shares))


def _error(found: Any, expected: Any) -> float:
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(expected, np.float32))
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _report(journal: Journal, check: str, error: float, tolerance: float) -> None:
    result = "PASS" if error <= tolerance else "FAIL"
    journal.write("parity", check=check, error=error, tolerance=tolerance, result=result)
