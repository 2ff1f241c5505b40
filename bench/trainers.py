"""Train some steps with gemwright or with transformers and PEFT, in this process; prints JSON. See `tune.py`."""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RANK, ALPHA, RATE = 16, 32, 2e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARMUP = 2


@dataclass(frozen=True)
class Task:
    """A measurement: `method` is lora or full, `base` is float32, bfloat16 or stored."""

    trainer: str
    method: str
    base: str
    sequences: int
    length: int
    steps: int
    path: str
    threads: int


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    rows = np.asarray(json.loads(Path(sys.argv[2]).read_text()), np.int32)
    begin = time.perf_counter()
    take_step = {"gemwright": start_gemwright, "peft": start_peft}[task.trainer](task)
    loading, standing = memory_mb("VmHWM"), memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    losses, seconds = [], []
    for index in range(WARMUP + task.steps):
        first = index * task.sequences % (len(rows) - task.sequences + 1)
        start = time.perf_counter()
        losses.append(take_step(rows[first : first + task.sequences, : task.length + 1]))
        seconds.append(time.perf_counter() - start)
    peak = memory_mb("VmHWM")
    rate = task.sequences * task.length / statistics.median(seconds[WARMUP:])
    print(json.dumps({
        "rate": rate, "peak": peak, "whole": max(peak, loading), "weights": standing,
        "first": seconds[0], "total": time.perf_counter() - begin, "losses": losses,
    }))  # fmt: skip


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def start_gemwright(task: Task) -> Callable[[np.ndarray], float]:
    import jax

    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.runtime import machine
    from gemwright.train import load, lora, optimizer, program, step
    from gemwright.train.objectives import objective
    from gemwright.train.recipe import Recipe

    machine.set_threads(task.threads)
    dtype = task.base if task.base != "stored" else "float32"
    recipe = Recipe(
        method=task.method, rank=RANK, alpha=ALPHA, learning_rate=RATE, schedule="constant", warmup=0.0,
        length=task.length, batch_size=task.sequences, dtype=dtype,
    )  # fmt: skip
    checkpoint = open_checkpoint(Path(task.path))
    if task.base == "stored":
        params = load.load_packed(checkpoint)
    else:
        params = load.load_stacked(checkpoint, dtype if task.method == "lora" else "float32")
    jax.block_until_ready(params)
    lora_run = task.method == "lora"
    frozen, trained = (params, lora.init(checkpoint.config, RANK, 0)) if lora_run else (None, params)
    adam = optimizer.make_optimizer(recipe, 1000)

    @functools.cache
    def compiled() -> list[Any]:
        nonlocal trained, params
        state = step.start(adam, trained, recipe)
        trained = params = None
        return [state, program.compile_step(checkpoint.config, recipe, adam, state, frozen)]

    def take_step(rows: np.ndarray) -> float:
        ones = np.ones((task.sequences, task.length), np.int32)
        batch = objective.Sequences(rows[:, :-1], rows[:, 1:], ones.astype(bool), ones)
        state, function = compiled()
        compiled()[0], measures = function(state, frozen, jax.device_put(batch))
        return float(jax.block_until_ready(measures).loss)

    return take_step


def start_peft(task: Task) -> Callable[[np.ndarray], float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(task.path, dtype=getattr(torch, task.base))
    model.config.use_cache = False
    if task.method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def take_step(rows: np.ndarray) -> float:
        tokens = torch.from_numpy(rows.astype(np.int64))
        output = model(input_ids=tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()
        return loss.item()

    return take_step


if __name__ == "__main__":
    main()
