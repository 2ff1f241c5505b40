"""MLX folders: the packed integers beside MLX's own, and whole models loaded by mlx-lm."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gemwright
from gemwright.errors import GemwrightError
from gemwright.model import transformer
from gemwright.release.mlx import GROUP, export_mlx, quantize
from gemwright.release.targets import ExportOptions
from tests.helpers import assert_close
from tests.release.models import write_small_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def unpack(numbers: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """Return the values of packed groups, by the definition of the format."""
    words = numbers[:, :, None] >> (np.arange(32 // bits, dtype=np.uint32) * bits)
    integers = (words & (2**bits - 1)).reshape(len(numbers), -1, GROUP).astype(np.float32)
    values = integers * scales.astype(np.float32)[:, :, None] + biases.astype(np.float32)[:, :, None]
    return values.reshape(len(numbers), -1)


@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_rounded_to_the_nearest_step(bits: int) -> None:
    """A step is the range of a group divided by the largest integer; scale and bias have 8 significant bits.

    Where the farther end is exact, the other may be half a step outside.
    """
    values = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    values[0, :GROUP] = 0
    values[1, :GROUP] = 3.0
    found = unpack(*quantize(values, bits), bits)
    groups = values.reshape(16, -1, GROUP)
    spread = groups.max(axis=2) - np.minimum(groups.min(axis=2), 0)
    tolerance = spread / (2**bits - 1) + 2.0**-7 * np.abs(groups).max(axis=2)
    error = np.abs(found - values).reshape(16, -1, GROUP).max(axis=2)
    assert np.all(error <= tolerance)
    assert not found[0, :GROUP].any()


@pytest.mark.parametrize("verify", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_spellings_of_the_config_are_written(tmp_path: Path, verify: bool) -> None:
    source = write_small_gguf(tmp_path / "small.gguf")
    export_mlx(source, tmp_path / "mlx", ExportOptions(verify=verify), lambda line: None)
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config["sliding_window_pattern"] == 2
    assert config["layer_types"] == ["sliding_attention", "full_attention"]


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "small.gguf")
    with pytest.raises(GemwrightError, match="choose one of int4, int8"):
        export_mlx(source, tmp_path / "mlx", ExportOptions("int5"), lambda line: None)


LOGITS = """
import sys
import numpy as np, mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model

model, _ = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
np.save(sys.argv[3], np.array(model(mx.array(np.load(sys.argv[2]))[None]))[0])
"""


@pytest.mark.peer
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("weights", ["f32", "int8", "int4"])
def test_mlx_lm_gives_the_same_logits(tmp_path: Path, family: str, weights: str) -> None:
    """In float32, with the same rounded weights. Its Gemma 2 has no window, so the text is shorter than ours."""
    pytest.importorskip("mlx_lm")
    source = write_small_gguf(tmp_path / "small.gguf", family)
    export_mlx(source, tmp_path / "mlx", ExportOptions(weights, verify=False), lambda line: None)
    model = gemwright.load(tmp_path / "mlx", dtype="float32")
    config, params = model.engine.config, model.engine.params
    ids = np.random.default_rng(0).integers(0, config.vocab, 15 if family == "gemma2" else 40)
    np.save(tmp_path / "ids.npy", ids)
    command = [sys.executable, "-c", LOGITS, *(str(tmp_path / name) for name in ("mlx", "ids.npy", "logits.npy"))]
    subprocess.run(command, check=True)
    hidden, _ = transformer.forward(config, params, ids[None])
    expected = np.asarray(transformer.logits(config, params, hidden))[0]
    assert_close(np.load(tmp_path / "logits.npy"), expected, 1e-5)
