"""The memory forecast equals the memory used, and a model too large is refused before it is loaded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gemwright import memory
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.memory import RUNTIME, Forecast, forecast
from gemwright.model.params import init
from gemwright.model.state import empty_state
from gemwright.precision import Precision
from gemwright.variants import VARIANTS
from tests.tiny.config import make_config
from tests.tiny.gguf import write_tiny_gguf


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("batch", "capacity"), [(1, 8), (3, 100), (2, 4096)])
def test_a_tiny_model_is_forecast_to_the_byte(dtype: Any, batch: int, capacity: int) -> None:
    config = make_config()
    need = forecast(config, dtype, batch, capacity)
    assert need.weights == nbytes(init(config, jax.random.key(0), jnp.dtype(dtype)))
    assert need.state == nbytes(empty_state(config, batch, capacity, jnp.dtype(dtype)))
    assert need.copies == (0 if dtype == "float32" else 2 * need.weights)
    assert need.total == need.weights + need.state + need.copies + RUNTIME


def test_stored_weights_have_a_bfloat16_cache() -> None:
    config = make_config()
    need = forecast(config, "stored", batch=3, capacity=100, stored=12345)
    assert (need.weights, need.copies) == (12345, 0)
    assert need.state == nbytes(empty_state(config, 3, 100, jnp.bfloat16))


def test_no_more_state_than_the_context_is_forecast() -> None:
    config = replace(make_config(), max_length=64)
    assert forecast(config, "float32", capacity=10**9) == forecast(config, "float32", capacity=64)


def test_the_state_of_the_demo_is_forecast_to_the_byte(demo_gguf: Path) -> None:
    config = open_checkpoint(demo_gguf).config
    need = forecast(config, "float32", batch=2, capacity=2048)
    assert need.weights == 1_072_392_704
    assert need.state == nbytes(empty_state(config, 2, 2048, jnp.float32))


MEASURE = """
import sys

import gemwright

model = gemwright.load(sys.argv[1], dtype=sys.argv[2])
model.generate("Once upon a time", max_tokens=3, temperature=0.0)
model.engine.score([list(range(1000, 1513))])  # a whole chunk of 512
status = dict(line.split(":") for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forecast_of_the_demo_is_the_memory_it_uses(demo_gguf: Path, dtype: Precision) -> None:
    """The peak of a process that loads, generates and scores."""
    command = [sys.executable, "-c", MEASURE, str(demo_gguf), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    peak = int(done.stdout)
    need = forecast(open_checkpoint(demo_gguf).config, dtype)
    assert 0.8 * need.total < peak < need.total


def test_free_memory_is_that_of_the_kernel() -> None:
    free = memory.available()
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert free is not None
    assert 0 < free < int(meminfo["MemTotal"].split()[0]) * 1024


def test_too_little_memory_is_an_error_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda devices: 3_000_000_000)
    memory.require(Forecast(1_600_000_000, 600_000_000), "small")
    message = (
        r"^big needs 3\.1 GB \(1\.7 GB of weights, 0\.6 GB of state, 0\.8 GB to compute with\) "
        r"and 3\.0 GB are free; "
        r"free some memory or use a smaller model\.$"
    )
    with pytest.raises(GemwrightError, match=message):
        memory.require(Forecast(1_700_000_000, 600_000_000), "big")
    monkeypatch.setattr(memory, "available", lambda devices: None)  # unknown memory permits an attempt
    memory.require(Forecast(10**15, 0), "huge")


def test_a_model_too_large_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 billion weights, of whose file only the header exists."""
    from gemwright.checkpoint.configs.gguf import to_gguf
    from gemwright.checkpoint.files.gguf import GgufFile
    from gemwright.loading import model as loading

    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    huge = replace(VARIANTS["gemma-3-27b"].config, vocab=262_144, vision=None)
    opened = open_checkpoint(path)
    assert to_gguf(huge)
    monkeypatch.setattr(loading, "open_checkpoint", lambda *_: replace(opened, config=huge))
    monkeypatch.delattr(GgufFile, "read_rows")
    with pytest.raises(GemwrightError, match=r"tiny\.gguf needs 10\d\.\d GB \(10\d\.\d GB of weights, .* are free"):
        loading.load_model(path, "float32")


def test_an_image_needs_more_memory_than_the_text() -> None:
    """At 896 pixels PaliGemma's tower took 0.33 GB more, and its prompt of 4,608 tokens is three times 302 MB wide."""
    paligemma = VARIANTS["paligemma-3b-896"].config
    assert 1.2e9 < forecast(paligemma, "bfloat16").images < 1.5e9
    assert 0.3e9 < forecast(VARIANTS["gemma-3-4b"].config, "bfloat16").images < 0.4e9
    assert forecast(VARIANTS["gemma-2-2b"].config, "bfloat16").images == 0
