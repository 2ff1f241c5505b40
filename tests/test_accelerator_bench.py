import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"
CHECKS = {"forward", "prefill, decode", "greedy tokens"}


@pytest.fixture
def definition(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    from device import definition

    return definition


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "accelerator.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_tiny_run_passes_parity_and_measures_every_task(tmp_path: Path):
    out = tmp_path / "results.jsonl"
    done = run("--tiny", "--minutes", "14", "--out", str(out))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    records = [json.loads(line) for line in out.read_text().splitlines()]

    parity = [record for record in records if record["kind"] == "parity"]
    assert all(record["result"] == "PASS" for record in parity)
    assert len({record["case"] for record in parity}) == 6
    for case in {record["case"] for record in parity}:
        for dtype in ("float32", "bfloat16"):
            checks = {record["check"] for record in parity if (record["case"], record["dtype"]) == (case, dtype)}
            assert checks >= CHECKS
            assert ("tower" in checks) == (case in ("PaliGemma", "Gemma 3, images"))
            assert ("loss, gradients" in checks) == (dtype == "float32" and "tower" not in checks)
    # The reference is another computation, so errors of exactly nothing would mean that it was compared with itself.
    assert all(record["error"] > 0 for record in parity if record["check"] == "prefill, decode")

    figures = {(r["engine"], r["task"], r["batch"]): r for r in records if r["kind"] == "figure"}
    expected = {(task, batch) for task in ("decode", "prefill") for batch in (1, 8)} | {("train", 2)}
    assert set(figures) == {(engine, *key) for engine in ("gemwright", "transformers") for key in expected}
    assert all(math.isfinite(figure["share"]) and figure["share"] > 0 for figure in figures.values())
    losses = next(record for record in records if record["kind"] == "loss")
    assert losses["after"] < losses["before"]
    assert not [record for record in records if record["kind"] == "skipped"]
    assert done.stdout.count("| PASS |") == len(parity)
    assert "share of the measured peak" in done.stdout


def test_without_an_accelerator_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = run("--out", str(tmp_path / "results.jsonl"))
    assert done.returncode == 2
    assert "JAX finds no accelerator" in done.stdout


def test_what_there_is_no_time_for_is_skipped(tmp_path: Path):
    done = run("--tiny", "--minutes", "0", "--out", str(tmp_path / "results.jsonl"))
    assert done.returncode == 0
    assert done.stdout.count("no time left") >= 4
    assert "| PASS |" not in done.stdout


@pytest.mark.parametrize("name", ["Gemma 1", "Gemma 2", "Gemma 3"])
def test_bytes_of_a_step_are_those_of_weights_and_full_caches(definition: Any, name: str):
    config, batch, length = definition.shape(name), 3, 20
    weights = jax.tree.leaves(definition.random_host_weights(config, "bfloat16"))
    state = definition.empty_state(config, batch, length, "bfloat16")
    stored = sum(leaf.nbytes for leaf in [*weights, *jax.tree.leaves(state.layers)])
    assert definition.count_bytes_per_step(config, batch, length) == stored


@pytest.mark.parametrize("name", ["Gemma 1", "Gemma 2"])
def test_operations_of_prefill_are_those_of_its_products(definition: Any, name: str):
    config, batch, length = definition.shape(name), 3, 20
    products = 0
    for path, leaf in definition.tree.flatten(definition.random_host_weights(config, "bfloat16")).items():
        if leaf.ndim > 1:
            products += 2 * batch * leaf.size * (1 if path == "embed" else length)
    queries, keys = np.arange(length)[:, None], np.arange(length)
    for layer in config.layers:
        visible = (keys <= queries) & (queries - keys < (layer.mixer.window or length))
        products += 4 * batch * int(visible.sum()) * layer.mixer.heads * layer.mixer.head_dim
    # Norms' gains are counted as if they were matrices: a thousandth of a real model, more of a small one.
    assert products == pytest.approx(definition.count_prefill_flops(config, batch, length), rel=0.02)
