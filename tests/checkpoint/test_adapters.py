"""LoRA adapters against PEFT."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import gemwright
from gemwright.checkpoint.adapters import find_model, is_adapter, open_adapter
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.convert_adapter import convert_adapter
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.updates import read_updates
from gemwright.errors import GemwrightError
from gemwright.loading.model import load_model
from gemwright.model.transformer import forward, logits
from tests.helpers import assert_close, random_ids
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.hf import make_model, write_model
from tests.tiny.vocabulary import make_vocabulary

# PEFT 0.21 with transformers 5.23.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:peft"),
]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.1.mlp.down_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "dora": {"use_dora": True},
    "head": {"target_modules": [*LINEAR, "lm_head"]},
    "table": {"target_modules": [*LINEAR, "embed_tokens"]},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


def make_adapter(folder: Path, kind: str = "plain", seed: int = 0, model: str = "gemma3_text") -> peft.PeftModel:
    """Save a random adapter and return PEFT's model."""
    base = make_model(model)
    base.name_or_path = str(folder.parent / "base")
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 7, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | KINDS[kind]
    wrapped = peft.get_peft_model(base, peft.LoraConfig(**options, init_lora_weights=False)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name or "magnitude" in name:
                parameter *= 1 + 0.3 * torch.rand_like(parameter)
            elif "lora_" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def make(base: Path) -> Callable[..., tuple[Path, peft.PeftModel]]:
    def make(kind: str = "plain", seed: int = 0) -> tuple[Path, peft.PeftModel]:
        folder = base.parent / f"{kind}-{seed}"
        return folder, make_adapter(folder, kind, seed)

    return make


def their_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def our_logits(model: gemwright.Model, ids: np.ndarray) -> np.ndarray:
    engine = model.engine
    hidden, _ = forward(engine.config, engine.params, jnp.asarray(ids))
    return np.asarray(logits(engine.config, engine.params, hidden))


@pytest.fixture(scope="module")
def sound(base: Path) -> Path:
    return write_tiny_adapter(base.parent / "sound", open_checkpoint(base).config, str(base))


IDS = random_ids(60, (2, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(make: Callable[..., Any], base: Path, kind: str) -> None:
    folder, theirs = make(kind)
    model = load_model(base, "float32", adapters={folder: 1.0})
    expected = their_logits(theirs, IDS)
    assert np.abs(expected - their_logits(make_model("gemma3_text"), IDS)).max() > 0.1
    assert_close(our_logits(model, IDS), expected, 1e-5)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "dora", "saved"])
def test_merging_gives_the_weights_that_peft_merges(
    make: Callable[..., Any], base: Path, tmp_path: Path, kind: str
) -> None:
    folder, theirs = make(kind)
    convert(base, tmp_path / "merged", "huggingface", adapters={folder: 1.0})
    merged = theirs.merge_and_unload().state_dict()
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in ours) == (kind == "saved")
    for name, values in ours.items():
        assert_close(values, merged[name].numpy(), 1e-6)


@pytest.mark.parametrize("kind", ["table", "head"])
def test_merging_into_one_of_two_tied_weights_unties_them(
    make: Callable[..., Any], base: Path, tmp_path: Path, kind: str
) -> None:
    folder, theirs = make(kind)
    convert(base, tmp_path / "merged", "huggingface", adapters={folder: 1.0})
    assert_close(our_logits(gemwright.load(tmp_path / "merged", dtype="float32"), IDS), their_logits(theirs, IDS), 1e-5)


def test_several_adapters_are_summed_with_their_weights(make: Callable[..., Any], base: Path) -> None:
    (first, theirs), (second, _) = make("plain", 1), make("patterns", 2)
    model = gemwright.load(base, dtype="float32", adapter={first: 0.5, second: 1.0})
    for layer in theirs.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.set_scale("default", 0.5)
    theirs.load_adapter(str(second), "second")
    theirs.base_model.set_adapter(["default", "second"])
    for layer in theirs.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.set_scale("default", 0.5)
    assert_close(our_logits(model, IDS), their_logits(theirs, IDS), 1e-5)


def test_an_adapter_finds_its_base(make: Callable[..., Any], base: Path) -> None:
    folder, theirs = make()
    assert find_model(folder) == (base, {folder: 1.0})
    model = gemwright.load(folder, dtype="float32")
    assert model.name == str(folder)
    assert_close(our_logits(model, IDS), their_logits(theirs, IDS), 1e-5)


def test_weights_as_stored_take_adapters(make: Callable[..., Any], base: Path) -> None:
    folder, theirs = make()
    model = gemwright.load(base, adapter=folder)
    assert_close(our_logits(model, IDS), their_logits(theirs, IDS), 2e-4)
    assert model.generate("a", max_tokens=4).tokens


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "table"])
def test_gguf_holds_the_same_updates(make: Callable[..., Any], base: Path, tmp_path: Path, kind: str) -> None:
    folder, theirs = make(kind)
    convert_adapter(folder, tmp_path / "adapter.gguf", "gguf")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "adapter.gguf").tensors}
    a = load_file(folder / "adapter_model.safetensors")[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ]
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.lora_a"], a)
    model = load_model(base, "float32", adapters={tmp_path / "adapter.gguf": 1.0})
    assert_close(our_logits(model, IDS), their_logits(theirs, IDS), 1e-5)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_peft_reads_what_was_gguf(make: Callable[..., Any], base: Path, tmp_path: Path, kind: str) -> None:
    folder, theirs = make(kind)
    convert_adapter(folder, tmp_path / "adapter.gguf", "gguf")
    convert_adapter(tmp_path / "adapter.gguf", tmp_path / "again", "huggingface", str(base))
    again = peft.PeftModel.from_pretrained(make_model("gemma3_text"), str(tmp_path / "again")).eval()
    assert_close(their_logits(again, IDS), their_logits(theirs, IDS), 1e-6)


def test_adapters_are_recognized(make: Callable[..., Any], base: Path, tmp_path: Path) -> None:
    folder, _ = make()
    convert_adapter(folder, tmp_path / "adapter.gguf", "gguf")
    assert is_adapter(folder)
    assert is_adapter(tmp_path / "adapter.gguf")
    assert is_adapter(folder / "adapter_model.safetensors")
    assert not is_adapter(base)
    with pytest.raises(GemwrightError, match="does not name its base model"):
        find_model(tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "adapter of type 'IA3', which is not supported"),
        ({"bias": "all"}, "has trained biases"),
        ({"lora_alpha": "7"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": "x"}}, "that is not a number"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
    ],
)
def test_settings_are_checked(
    make: Callable[..., Any], base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder, _ = make()
    contents = json.loads((folder / "adapter_config.json").read_text()) | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(contents))
    (tmp_path / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")
    with pytest.raises(GemwrightError, match=message):
        read_updates(open_adapter(tmp_path), open_checkpoint(base).config)


@given(data=st.data())
@settings(max_examples=int(os.environ.get("FUZZ", "60")), deadline=None)
def test_damaged_tensors_are_refused_with_a_sentence(data: st.DataObject, base: Path, sound: Path) -> None:
    source, folder = sound, base.parent / "damaged"
    folder.mkdir(exist_ok=True)
    tensors = load_file(source / "adapter_model.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    values = tensors.pop(name)
    change = data.draw(st.sampled_from(["drop", "rename", "transpose", "flatten", "nan", "cut", "empty"]))
    match change:
        case "rename":
            tensors[data.draw(st.text("abc._lora", min_size=1, max_size=30))] = values
        case "transpose":
            tensors[name] = np.ascontiguousarray(values.T)
        case "flatten":
            tensors[name] = values.reshape(-1)
        case "nan":
            tensors[name] = values * np.nan
        case "cut":
            tensors[name] = np.ascontiguousarray(values[:, :-1])
        case "empty":
            tensors[name] = values[:0]
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    with pytest.raises(GemwrightError):
        read_updates(open_adapter(folder), open_checkpoint(base).config)


def test_a_folder_may_bring_tokens_and_a_chat_template(base: Path, tmp_path: Path) -> None:
    """The tables of an adapter have a row for a token that only its own tokenizer has."""
    theirs = make_model("gemma3_text")
    vocabulary = make_vocabulary()
    theirs.resize_token_embeddings(vocabulary.size + 1, mean_resizing=False)
    options = {"r": 4, "target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]}
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(**options, init_lora_weights=False)).eval()
    wrapped.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary.tokenizer_json()))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": vocabulary.size}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>")
    model = gemwright.load(base, dtype="float32", adapter=tmp_path)
    ids = np.concatenate([IDS, np.full((2, 1), vocabulary.size)], axis=1)
    assert_close(our_logits(model, ids), their_logits(wrapped, ids), 1e-5)
    assert model.encode_chat([{"role": "user", "content": "a"}]) == [*model.tokenizer.encode("a"), vocabulary.size]
    convert(base, tmp_path / "merged", "huggingface", adapters={tmp_path: 1.0})
    merged = gemwright.load(tmp_path / "merged", dtype="float32")
    assert_close(our_logits(merged, ids), their_logits(wrapped, ids), 1e-5)
    assert merged.tokenizer.id_of("<|im_end|>") == vocabulary.size
