"""The results of runs, as PEFT and transformers load them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

import gemwright
from gemwright import ops, weights
from gemwright.checkpoint.adapters import open_adapter
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.convert_adapter import convert_adapter
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.updates import LowRank, Updates, read_updates
from gemwright.errors import GemwrightError
from gemwright.model import stack
from gemwright.model.transformer import forward, logits
from gemwright.train import lora
from gemwright.train.export import adapter_updates, adapters_from_updates
from gemwright.train.load import load_stacked
from gemwright.train.recipe import Recipe
from gemwright.train.result import write_result
from gemwright.train.run import prepare, train
from tests.helpers import assert_close, random_ids
from tests.tiny.hf import make_model, write_model

# PEFT 0.21 with transformers 5.23.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:peft"),
]
KINDS = ["gemma", "gemma2", "gemma3_text", "recurrent_gemma", "paligemma", "gemma3"]
VISION = ("paligemma", "gemma3")
LORA, FULL = Recipe(rank=3, alpha=5.0), Recipe(method="full")
# Shorter than the window of RecurrentGemma, which spans one token less in transformers.
IDS = random_ids(60, (2, 7))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def make_base(bases: Path, kind: str) -> Path:
    folder = bases / kind
    return folder if folder.exists() else write_model(folder, kind)


def random_factors(config: Any, seed: int = 0) -> lora.Adapters:
    numbers = np.random.default_rng(seed)

    def fill(factors: lora.Factors) -> lora.Factors:
        return lora.Factors(factors.a, jnp.asarray(numbers.normal(0, 0.1, factors.b.shape), jnp.float32))

    return {path: fill(factors) for path, factors in lora.init(config, 3, seed).items()}


def trainer_logits(config: Any, params: stack.StackedWeights) -> np.ndarray:
    hidden = stack.forward(config, params, jnp.asarray(IDS), jnp.ones(IDS.shape, jnp.int32))
    head = params.embed if params.head is None else params.head
    return np.asarray(ops.soft_cap(weights.matmul(hidden, head, out=jnp.float32), config.final_soft_cap))


def loaded_logits(path: Path) -> np.ndarray:
    engine = gemwright.load(path, dtype="float32").engine
    hidden, _ = forward(engine.config, engine.params, jnp.asarray(IDS))
    return np.asarray(logits(engine.config, engine.params, hidden))


def their_logits(model: Any, kind: str) -> np.ndarray:
    # A token of type 1 attends to earlier ones only in PaliGemma, and one of type 0 in Gemma 3.
    types = {"token_type_ids": torch.full(IDS.shape, int(kind == "paligemma"))} if kind in VISION else {}
    with torch.no_grad():
        return model(torch.tensor(IDS), **types).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_the_logits_of_the_run(bases: Path, tmp_path: Path, kind: str) -> None:
    """In PEFT, in gemwright, and in a run that continues from it; within 1e-5 of the largest logit."""
    checkpoint = open_checkpoint(make_base(bases, kind))
    config, adapters = checkpoint.config, random_factors(checkpoint.config)
    scale = LORA.alpha / LORA.rank
    params = load_stacked(checkpoint, "float32")
    expected = trainer_logits(config, lora.attach(params, adapters, scale))
    assert np.abs(expected - trainer_logits(config, params)).max() > 0.05
    folder = write_result(tmp_path, str(checkpoint.path), checkpoint, None, LORA, adapters)
    theirs = peft.PeftModel.from_pretrained(make_model(kind), str(folder)).eval()
    assert_close(their_logits(theirs, kind), expected, 1e-5)
    assert_close(loaded_logits(folder), expected, 1e-5)
    again = adapters_from_updates(config, read_updates(open_adapter(folder), config), LORA.rank, scale)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_the_settings_of_an_adapter_are_short(bases: Path, tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(make_base(bases, kind))
    folder = write_result(tmp_path, "gemma-2-2b", checkpoint, None, LORA, random_factors(checkpoint.config))
    settings = json.loads((folder / "adapter_config.json").read_text())
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert settings["base_model_name_or_path"] == "google/gemma-2-2b"
    assert (settings["r"], settings["lora_alpha"]) == (3, 5.0)
    assert settings["rank_pattern"] == settings["alpha_pattern"] == {}
    found = settings["target_modules"]
    assert sorted(found if kind == "gemma2" else found.rpartition("(")[2][:-1].split("|")) == sorted(linear)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_model_gives_the_logits_of_the_run(bases: Path, tmp_path: Path, kind: str) -> None:
    """In transformers, and in gemwright from GGUF; the head of a tied model stays tied."""
    checkpoint = open_checkpoint(make_base(bases, kind))
    keys = iter(range(1000))
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(next(keys)), leaf.shape),
        load_stacked(checkpoint, "float32"),
    )
    expected = trainer_logits(checkpoint.config, params)
    folder = write_result(tmp_path, "any", checkpoint, None, FULL, params)
    auto = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    assert_close(their_logits(auto.from_pretrained(folder, dtype=torch.float32).eval(), kind), expected, 1e-5)
    assert open_checkpoint(folder).config == checkpoint.config
    if kind not in ("paligemma", "recurrent_gemma"):  # which GGUF cannot express
        convert(folder, tmp_path / "model.gguf", "gguf")
        assert_close(loaded_logits(tmp_path / "model.gguf"), expected, 1e-5)


def test_a_result_replaces_an_earlier_one_of_the_run_and_nothing_else(bases: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_base(bases, "gemma3_text"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(GemwrightError, match="is no result of a run"):
        write_result(tmp_path, "any", checkpoint, None, LORA, random_factors(checkpoint.config))
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "mine"
    out = tmp_path / "run"
    for seed in range(2):
        folder = write_result(out, "any", checkpoint, None, LORA, random_factors(checkpoint.config, seed))
    assert list(out.iterdir()) == [folder]
    found = read_updates(open_adapter(folder), checkpoint.config)
    expected = adapter_updates(checkpoint.config, random_factors(checkpoint.config, 1), 5 / 3)
    np.testing.assert_array_equal(found.low_rank["layers.1.mixer.q"].b, expected.low_rank["layers.1.mixer.q"].b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "has rank 3 for layers.0.mixer.q and the run has rank 4"),
        ({"path": "embed"}, "updates embed in a way that a run does not continue"),
        ({"magnitude": np.ones(64, np.float32)}, "updates layers.0.mixer.q in a way"),
    ],
)
def test_other_adapters_are_not_continued(bases: Path, change: dict[str, Any], message: str) -> None:
    config = open_checkpoint(make_base(bases, "gemma3_text")).config
    factors = np.ones((3, 64), np.float32), np.ones((64, 3), np.float32)
    updates = Updates(
        {change.get("path", "layers.0.mixer.q"): LowRank(*factors, 1.0, change.get("magnitude"))}, {}, config.vocab
    )
    with pytest.raises(GemwrightError, match=message):
        adapters_from_updates(config, updates, change.get("rank", 3), 1.0)


@pytest.mark.slow
def test_a_model_tuned_on_chats_stops(bases: Path, tmp_path: Path) -> None:
    """A base learns one answer and its end; in gemwright, in transformers, and in a GGUF file of it."""
    base = make_base(bases, "gemma3_text")
    talk = [{"role": "user", "content": "the man"}, {"role": "assistant", "content": "the ring"}]
    (tmp_path / "data.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 4)
    recipe = Recipe(rank=8, alpha=16.0, length=32, batch_size=2, steps=40, learning_rate=2e-2, schedule="constant")
    assert not open_checkpoint(base).chat_templates
    folder = train(prepare(base, tmp_path / "data.jsonl", tmp_path / "out", recipe))
    convert(base, tmp_path / "model.gguf", "gguf", adapters={folder: 1.0})
    for path in (folder, tmp_path / "model.gguf"):
        model = gemwright.load(path, dtype="float32")
        assert model.tuned
        assert model.tokenizer.id_of("<end_of_turn>") in model.stop_ids
        answer = model.chat(talk[:1], max_tokens=12, temperature=0.0)
        assert (answer.text.strip(), answer.finish_reason) == ("the ring", "stop")
    tokenizer, settings = AutoTokenizer.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert prompt[0].tolist() == model.encode_chat(talk[:1])
    theirs = peft.PeftModel.from_pretrained(make_model("gemma3_text"), str(folder)).eval()
    found = theirs.generate(input_ids=prompt, generation_config=settings, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(found[0, prompt.shape[1] :]) == "the ring<end_of_turn>"


@pytest.mark.peer
def test_llama_cpp_gives_the_logits_of_the_run(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2e-3 of the largest logit, as it keeps keys and values in float16."""
    llama_cpp = pytest.importorskip("llama_cpp")
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False  # its AMX kernels crash on some virtual machines
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: parameters)
    checkpoint = open_checkpoint(make_base(bases, "gemma3_text"))
    adapters = random_factors(checkpoint.config)
    folder = write_result(tmp_path, str(checkpoint.path), checkpoint, None, LORA, adapters)
    convert(checkpoint.path, model := tmp_path / "model.gguf", "gguf")
    convert_adapter(folder, adapter := tmp_path / "adapter.gguf", "gguf")
    peer = llama_cpp.Llama(str(model), lora_path=str(adapter), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    peer.eval(IDS[0].tolist())
    params = lora.attach(load_stacked(checkpoint, "float32"), adapters, LORA.alpha / LORA.rank)
    expected = trainer_logits(checkpoint.config, params)[0]
    assert_close(np.array(peer.scores[: IDS.shape[1]]), expected, 2e-3)
