"""Speed of gemwright in decoding, prefill and training, as shares of the device's measured peaks."""

import functools
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from device import definition, plan
from device.journal import Journal, time_calls
from device.plan import Work

TOO_LARGE = (jax.errors.JaxRuntimeError,)


def describe(journal: Journal) -> None:
    """Record the device and versions."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    journal.write(
        "device",
        name=device.device_kind,
        platform=device.platform,
        memory_gb=None if limit is None else limit / 1e9,
        jax=jax.__version__,
        runtime=" ".join(device.client.platform_version.split()),
        attention=definition.describe_attention(),
        driver=_read_driver() if device.platform == "gpu" else None,
    )


def run(journal: Journal, model: str, tiny: bool) -> None:
    """Measure the device, then one model."""
    work = plan.work(model)
    config = definition.shape(model)
    journal = journal.extend(engine="gemwright", model=model)
    bandwidth, flops = measure_peaks(journal, tiny)
    with journal.skip_if_too_large("decode and prefill", *TOO_LARGE):
        _write(journal, work, config, bandwidth, flops)
    if journal.has_time("training step", seconds=5 if tiny else 30):
        with journal.skip_if_too_large("training step", *TOO_LARGE):
            _train(journal, work, config, flops)


def measure_peaks(journal: Journal, tiny: bool) -> tuple[float, float]:
    """Measure bytes/s of a copy or a sum, the higher of both, and FLOP/s of a bfloat16 matrix product."""
    size, width = (plan.TINY_PEAK_BYTES, plan.TINY_PEAK_WIDTH) if tiny else (plan.PEAK_BYTES, plan.PEAK_WIDTH)
    numbers = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    copy, total = jax.jit(lambda x: x + 1), jax.jit(jnp.sum)
    wait = jax.block_until_ready
    copied = 2 * size / time_calls(lambda: copy(numbers), wait, calls=10)
    read = size / time_calls(lambda: total(numbers), wait, calls=10)
    a, b = (jax.random.normal(key, (width, width), jnp.bfloat16) for key in jax.random.split(jax.random.key(1)))
    product = jax.jit(jnp.matmul)
    flops = 2 * width**3 / time_calls(lambda: product(a, b), wait, calls=10)
    journal.write("peaks", copy_bytes_per_s=copied, read_bytes_per_s=read, bfloat16_flops_per_s=flops)
    return max(copied, read), flops


def _write(journal: Journal, work: Work, config: Any, bandwidth: float, flops: float) -> None:
    """Time the engine from prompts to the first tokens (prefill), and from there to the last ones (decode)."""
    params = jax.block_until_ready(definition.random_weights(config, "bfloat16"))
    ids = np.random.default_rng(0).integers(3, config.vocab, (max(work.batches), work.prompt)).tolist()

    def times(batch: int) -> list[float]:
        start = time.perf_counter()
        steps = definition.generate(config, params, ids[:batch], work.decoded + 1)
        return [time.perf_counter() - start for _ in steps]

    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        list(pool.map(times, work.batches))
    seconds = time.perf_counter() - start
    journal.write("compiled", what="prefill and decode, including the first run", seconds=seconds)
    for batch in work.batches:
        if not journal.has_time(f"decode and prefill, batch {batch}", seconds=5):
            return
        runs = [times(batch) for _ in range(plan.ROUNDS)]
        first = statistics.median(run[0] for run in runs)
        step = statistics.median((run[-1] - run[0]) / work.decoded for run in runs)
        moved = definition.count_bytes_per_step(config, batch, work.prompt + work.decoded // 2)
        needed = definition.count_prefill_flops(config, batch, work.prompt)
        record_figure(journal, "decode", batch, 1, step, moved / step / bandwidth, "bandwidth")
        record_figure(journal, "prefill", batch, work.prompt, first, needed / first / flops, "FLOP/s")


def record_figure(journal: Journal, task: str, batch: int, tokens: int, seconds: float, share: float, of: str) -> None:
    """Record the time of `tokens` per sequence, and the share of a measured peak."""
    rate = batch * tokens / seconds
    journal.write("figure", task=task, batch=batch, seconds=seconds, tokens_per_s=rate, share=share, of=of)


def _train(journal: Journal, work: Work, config: Any, flops: float) -> None:
    """Time AdamW steps with weights, gradients and moments in bfloat16, and with rematerialization."""
    one, repeats = definition.period(config)
    batch, length = work.train_batch, work.train_length
    tokens = np.random.default_rng(0).integers(3, config.vocab, (batch, length + 1), dtype=np.int32)
    params = definition.random_weights(one, "bfloat16", repeats)
    moments = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    start = time.perf_counter()
    step = jax.jit(functools.partial(_step, one), donate_argnums=0).lower((params, *moments), tokens).compile()
    journal.write("compiled", what="training step", seconds=time.perf_counter() - start)
    state, before = step((params, *moments), tokens)
    del params, moments
    seconds: list[float] = []
    for _ in range(plan.ROUNDS):
        start = time.perf_counter()
        state, after = step(state, tokens)
        after = float(after)
        seconds.append(time.perf_counter() - start)
    took = statistics.median(seconds)
    journal.write("loss", before=float(before), after=after)
    needed = 6 * definition.parameter_count(config) * batch * length
    record_figure(journal, "train", batch, length, took, needed / took / flops, "FLOP/s")


def _step(one: Any, state: tuple[Any, Any, Any], tokens: Any) -> tuple[tuple[Any, Any, Any], Any]:
    params, first, second = state
    loss, gradients = jax.value_and_grad(functools.partial(definition.scanned_loss, one))(params, tokens)

    def update(p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        wide = g.astype(jnp.float32)
        m_new = 0.9 * m.astype(jnp.float32) + 0.1 * wide
        v_new = 0.95 * v.astype(jnp.float32) + 0.05 * jnp.square(wide)
        p_new = p.astype(jnp.float32) * (1.0 - 1e-5) - 1e-4 * m_new / (jnp.sqrt(v_new) + 1e-8)
        return p_new.astype(p.dtype), m_new.astype(m.dtype), v_new.astype(v.dtype)

    leaves, structure = jax.tree.flatten(params)
    others = (structure.flatten_up_to(part) for part in (gradients, first, second))
    updated = zip(*(update(*parts) for parts in zip(leaves, *others, strict=True)), strict=True)
    params, first, second = (structure.unflatten(part) for part in updated)
    return (params, first, second), loss


def _read_driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
