import json
import re
from pathlib import Path

import pytest

import gemwright
from gemwright import memory
from gemwright.checkpoint.open import open_checkpoint
from gemwright.cli.inspect import variants_of
from gemwright.kernels.native import native_enabled
from gemwright.model.params import parameter_count
from gemwright.variants import VARIANTS
from tests.tiny.config import make_config


def test_models(run):
    records = {record["name"]: record for record in map(json.loads, run("models", "--json").out.splitlines())}
    assert records.keys() == VARIANTS.keys()
    assert records["gemma-2-9b"]["parameters"] == 9_241_705_984
    assert records["gemma-2-9b"]["bfloat16_bytes"] == 18_483_411_968
    assert "google/gemma-2-9b-it" in records["gemma-2-9b"]["checkpoints"]
    table = run("models").out.splitlines()
    assert table[0].split() == ["name", "family", "params", "bfloat16", "context"]
    assert [line.split()[0] for line in table[1:]] == [name for v in VARIANTS.values() for name in v.checkpoints]


def test_inspect_json(run, tiny):
    record = json.loads(run("inspect", tiny, "--tensors", "--json").out)
    config = make_config()
    assert record["format"] == "gguf"
    assert record["variants"] == []
    assert record["parameters"] == parameter_count(config)
    assert record["bytes"] == 4 * parameter_count(config)  # all of it in float32
    assert record["encodings"] == {"F32": {"tensors": 29, "nbytes": record["bytes"]}}
    assert record["chat_template"] is True
    assert record["sampling"]["source"] == "published defaults"
    assert record["problem"] is None
    assert record["tensors"]["token_embd.weight"]["shape"] == [config.vocab, config.width]
    needs = {(need["dtype"], need["tokens"]): need["total"] for need in record["memory"]}
    assert needs[("bfloat16", 4096)] == memory.forecast(config, "bfloat16", capacity=4096).total
    dtypes = ("stored", "float32", "bfloat16") if native_enabled() else ("float32", "bfloat16")
    assert needs.keys() == {(dtype, tokens) for dtype in dtypes for tokens in (1024, 4096)}


def test_inspect_text(run, tiny):
    lines = run("inspect", tiny, "--tensors").out.splitlines()
    printed = dict(line.split(maxsplit=1) for line in lines[:16] if not line.startswith(" "))
    assert printed["parameters"] == f"{parameter_count(make_config()):,}"
    assert printed["layers"] == "2 layers: 1 sliding-window 16 + 1 full attention"
    assert printed["context"] == "4,096 tokens"
    assert sum(line.startswith("blk.1.") for line in lines) == 13


def test_every_variant_is_recognized():
    for name, variant in VARIANTS.items():
        assert name in variants_of(variant.config)
    assert variants_of(make_config()) == []


def test_convert_and_inspect_and_generate(run, tiny, tmp_path: Path):
    target = tmp_path / "folder"
    result = run("convert", tiny, target, "--to", "huggingface")
    assert (result.code, result.out) == (0, f"{target}\n")
    assert json.loads(run("inspect", target, "--json").out)["format"] == "safetensors"
    options = ("--temperature", 0, "--max-tokens", 8)
    assert run("generate", "hen", "-m", target, *options).out == run("generate", "hen", "-m", tiny, *options).out


def test_quantize_and_inspect_and_generate(run, tiny, tmp_path: Path):
    target = tmp_path / "folder"
    result = run("quantize", tiny, target, "--bits", 4, "--no-check")
    assert (result.code, result.out) == (0, f"{target}\n")
    record = json.loads(run("inspect", target, "--json").out)
    assert record["problem"] is None
    assert record["encodings"]["Q4_0"]["tensors"] == 2 + 2 * 7  # the table, the head, and the matrices of two layers
    assert record["memory"][0]["weights"] == record["bytes"] < 4 * parameter_count(make_config()) / 5
    generated = run("generate", "hen", "-m", target, "--temperature", 0, "--max-tokens", 8)
    assert generated.code == 0
    assert len(generated.out) > len("hen")


def test_inspect_gives_the_source_of_the_sampling_parameters(run, tiny, tmp_path: Path):
    run("convert", tiny, tmp_path / "folder", "--to", "huggingface")
    (tmp_path / "folder" / "generation_config.json").write_text('{"do_sample": true, "top_k": 7}')
    record = json.loads(run("inspect", tmp_path / "folder", "--json").out)
    assert record["sampling"]["source"] == "generation_config.json"
    assert record["sampling"]["top_k"] == 7


def test_inspect_gives_the_error_of_load(run, tiny, tmp_path: Path):
    run("convert", tiny, tmp_path / "folder", "--to", "huggingface")
    settings = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps(settings | {"intermediate_size": 65}))
    record = json.loads(run("inspect", tmp_path / "folder", "--json").out)
    with pytest.raises(gemwright.CheckpointError) as refused:
        gemwright.load(tmp_path / "folder")
    assert record["problem"] == str(refused.value)


def test_pull_of_a_path_is_the_path(run, tiny):
    assert run("pull", tiny).out == f"{tiny}\n"
    assert open_checkpoint(tiny).format == "gguf"


def test_doctor(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_thisisverysecret")
    result = run("doctor")
    assert result.code == 0
    assert "hf_thisisverysecret" not in result.out + result.err
    assert f"gemwright          {gemwright.__version__}\n" in result.out
    report = json.loads(run("doctor", "--json").out)
    assert report["hub"]["token"] is True
    assert report["backend"] == "cpu"
    assert report["dtype"] == ("stored" if native_enabled() else "float32")
    assert all(isinstance(name, str) and choice for name, choice in report["kernels"].items())
    assert report["kernels"]
    assert report["packages"]["jax"].startswith("0.10")


def test_doctor_suggests_a_fix(run, monkeypatch, tmp_path: Path):
    # JAX keeps a cache folder once it has one.
    import jax

    folder = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    try:
        report = json.loads(run("doctor", "--json").out)
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
    assert report["compilation cache"] is None
    assert any("set XDG_CACHE_HOME" in warning for warning in report["warnings"])


def test_inspect_shows_the_memory_as_stored(run, tiny):
    if not native_enabled():
        pytest.skip("needs the native kernels")
    record = json.loads(run("inspect", tiny, "--json").out)
    assert [need["dtype"] for need in record["memory"]][::2] == ["stored", "float32", "bfloat16"]
    assert record["memory"][0]["weights"] == record["bytes"]
    assert re.search(r"memory +as stored +[\d.]+ [MG]B for 1,024 tokens \(default\)\n", run("inspect", tiny).out)
