"""`gemwright inspect` on recurrent and vision models."""

import json
from pathlib import Path

import numpy as np

from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_safetensors
from gemwright.checkpoint.names.flax import map_big_vision
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.model.config import Config, Layer, Mlp, Recurrent, Vision, pattern
from gemwright.model.params import parameter_count
from gemwright.variants import RECURRENT_2B, VARIANTS, Variant


def written(folder: Path, config: Config) -> Path:
    """Write a checkpoint whose weights are zero."""
    tensors = [
        SafetensorsTensor(stored.name, stored.shape, np.dtype(np.float32), lambda s=stored: np.zeros(s.shape, "f4"))
        for stored in map_huggingface(config).values()
    ]
    write_safetensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(to_huggingface(config, "float32")))
    return folder


def inspect(run, *arguments) -> dict[str, str]:
    lines = run("inspect", *arguments).out.splitlines()
    return dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))


def griffin() -> Config:
    attention = RECURRENT_2B.layers[2].mixer
    mlp = Mlp(32, bias=True)
    layers = pattern(5, *[Layer(Recurrent(2560, 10), mlp)] * 2, Layer(attention, mlp))
    return Config(2560, 8, layers, 2**31 - 1, final_soft_cap=30.0, embed_scale=50.5)


def test_recurrentgemma(run, tmp_path: Path):
    printed = inspect(run, written(tmp_path, griffin()))
    assert printed["layers"] == (
        "5 layers: 2 recurrent (width 2560) + 1 sliding-window 2049, then 2 recurrent (width 2560)"
    )
    assert printed["context"] == "unlimited"
    assert printed["heads"] == "10 query, 1 key/value, dimension 256"
    assert printed["parameters"] == f"{parameter_count(griffin()):,}"
    assert "problem" not in printed
    record = json.loads(run("inspect", tmp_path, "--json").out)
    assert {need["tokens"] for need in record["memory"]} == {1024, 2**31 - 1}


def test_gemma3_vision(run, tmp_path: Path):
    text = VARIANTS["gemma-3-270m"].config
    text = Config(640, 8, tuple(Layer(x.mixer, Mlp(32), post_norms=True) for x in text.layers[:6]), 64)
    vision = Vision(56, 4, projector="normed", width=32, depth=3, heads=2, hidden=40)
    config = Config(640, 8, text.layers, 64, vision=vision)
    printed = inspect(run, written(tmp_path, config))
    assert printed["images"] == "56 x 56 pixels, 4 tokens each"
    assert printed["vision"] == "3 layers, width 32, MLP 40, 2 heads"
    assert "problem" not in printed


def test_npz_of_a_paligemma(run, tmp_path: Path, monkeypatch):
    mixer = VARIANTS["gemma-2b"].config.layers[0].mixer
    vision = Vision(28, 4, projector="affine", width=32, depth=2, heads=2, hidden=40)
    config = Config(16, 8, (Layer(mixer, Mlp(24)),) * 2, 64, vision=vision)
    monkeypatch.setitem(VARIANTS, "paligemma-tiny", Variant("PaliGemma", config, 0, ()))
    whole: dict[str, tuple[int, ...]] = {}
    for stored in map_big_vision(config, {}).values():
        before = whole.get(stored.name, (0,) * len(stored.index))
        leading = tuple(max(a, b + 1) for a, b in zip(before, stored.index, strict=False))
        whole[stored.name] = leading + stored.shape
    np.savez(tmp_path / "pt.npz", **{name: np.zeros(shape, np.float32) for name, shape in whole.items()})
    printed = inspect(run, tmp_path / "pt.npz", "--variant", "paligemma-tiny")
    assert printed["format"].startswith("npz, ")
    assert printed["variant"] == "paligemma-tiny"
    assert printed["images"] == "28 x 28 pixels, 4 tokens each"
    assert "problem" not in printed
    assert "--variant, one of paligemma-3b-224" in run("inspect", tmp_path / "pt.npz").err
