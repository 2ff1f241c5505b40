"""The same measurements of transformers; torch must support the device."""

import statistics
import time
from typing import Any

import numpy as np

from device import definition, plan
from device.journal import Journal
from device.plan import Work


def run(journal: Journal, model: str, tiny: bool) -> None:
    """Measure one model, relative to the peaks last measured in gemwright's process."""
    journal = journal.extend(engine="transformers", model=model)
    try:
        import torch
        import transformers
        from engines.huggingface import Transformers
    except ImportError as error:
        journal.write("skipped", what="transformers", why=str(error))
        return
    if not (tiny or torch.cuda.is_available()):
        journal.write("skipped", what="transformers", why="torch has no CUDA device")
        return
    measured = journal.read("peaks")
    if not measured:
        journal.write("skipped", what="transformers", why="the device's peaks were not measured")
        return
    bandwidth = max(measured[-1]["copy_bytes_per_s"], measured[-1]["read_bytes_per_s"])
    flops = measured[-1]["bfloat16_flops_per_s"]
    torch.set_default_device("cpu" if tiny else "cuda")
    work, config = plan.work(model), definition.shape(model)
    data = definition.to_huggingface(config, "bfloat16")
    with journal.skip_if_too_large("transformers", torch.OutOfMemoryError):
        theirs = transformers.AutoConfig.for_model(data.pop("model_type"), **data)
        module = transformers.AutoModelForCausalLM.from_config(theirs, dtype=torch.bfloat16)
        module.generation_config.eos_token_id = None
        attention = module.config._attn_implementation
        journal.write("peer", torch=torch.__version__, transformers=transformers.__version__, attention=attention)
        _write(journal, work, config, Transformers(module.eval(), None), bandwidth, flops)
        if journal.has_time("training step", seconds=10):
            _train(journal, work, config, module.train(), flops)


def _write(journal: Journal, work: Work, config: Any, engine: Any, bandwidth: float, flops: float) -> None:
    from engines import Task

    from device.speed import record_figure

    ids = np.random.default_rng(0).integers(3, config.vocab, (max(work.batches), work.prompt)).tolist()

    def times(batch: int, decoded: int) -> list[float]:
        known: list[float] = []
        start = time.perf_counter()
        engine.write(ids[:batch], Task(work.prompt, decoded + 1), lambda _: known.append(time.perf_counter() - start))
        return known

    for batch in work.batches:
        if not journal.has_time(f"decode and prefill, batch {batch}", seconds=10):
            return
        times(batch, 2)
        runs = [times(batch, work.decoded) for _ in range(plan.ROUNDS)]
        first = statistics.median(run[0] for run in runs)
        step = statistics.median((run[-1] - run[0]) / work.decoded for run in runs)
        moved = definition.count_bytes_per_step(config, batch, work.prompt + work.decoded // 2)
        needed = definition.count_prefill_flops(config, batch, work.prompt)
        record_figure(journal, "decode", batch, 1, step, moved / step / bandwidth, "bandwidth")
        record_figure(journal, "prefill", batch, work.prompt, first, needed / first / flops, "FLOP/s")


def _train(journal: Journal, work: Work, config: Any, module: Any, flops: float) -> None:
    import torch

    from device.speed import record_figure

    batch, length = work.train_batch, work.train_length
    # transformers is renaming it.
    getattr(module, "activation_checkpointing_enable", module.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    numbers = np.random.default_rng(0).integers(3, config.vocab, (batch, length))
    tokens = torch.tensor(numbers)
    seconds: list[float] = []
    for _ in range(1 + plan.ROUNDS):
        start = time.perf_counter()
        loss = module(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    took = statistics.median(seconds[1:])
    needed = 6 * definition.parameter_count(config) * batch * length
    record_figure(journal, "train", batch, length, took, needed / took / flops, "FLOP/s")
