"""Exported files run by LiteRT's interpreter and LiteRT-LM's engine, against transformers and the source."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright.errors import GemwrightError
from gemwright.loading.model import load_model
from gemwright.model import vision
from gemwright.model.transformer import SoftTokens, forward, logits
from gemwright.release.litert.export import export
from gemwright.release.litert.recipes import RECIPES, Recipe, expected_bytes
from gemwright.release.targets import ExportOptions
from gemwright.release.verify.source import verify_against
from tests.helpers import assert_close, random_ids
from tests.tiny.hf import make_model, write_model

pytestmark = pytest.mark.peer
KINDS = ("gemma", "gemma2", "vaultgemma", "gemma3_text")
CONTEXT, PROMPT, LENGTH = 128, 9, 20
LOGITS = 1e-4
"""Tolerance of float32 logits, relative to the largest."""


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    for name in ("litert_converter", "ai_edge_litert", "litert_lm", "litert_lm_builder"):
        pytest.importorskip(name)


class Interpreted:
    """A file run by the interpreter, which is other code than the runtime that the export itself uses."""

    def __init__(self, path: Path):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        self.run = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        details = self.run["decode"].get_input_details()
        fixed = ("tokens", "input_pos", "mask")
        self.states = {n: np.zeros(d["shape"], np.float32) for n, d in details.items() if n not in fixed}

    def __call__(self, name: str, ids: np.ndarray, start: int) -> np.ndarray | None:
        size = self.run[name].get_input_details()["tokens"]["shape"][1]
        tokens, positions = np.zeros((1, size), np.int32), np.full(size, -1, np.int32)
        tokens[0, : len(ids)], positions[: len(ids)] = ids, start + np.arange(len(ids))
        mask = np.full((1, 1, size, CONTEXT), -1e9, np.float32)
        for row in range(len(ids)):
            mask[0, 0, row, : start + row + 1] = 0
        given = {"tokens": tokens, "input_pos": positions, "mask": mask, **self.states}
        results = self.run[name](**{k: v for k, v in given.items() if k in self.run[name].get_input_details()})
        self.states = {key: results.get(key, value) for key, value in self.states.items()}
        return results.get("logits")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path):
    source, target = write_model(tmp_path / "source", kind), tmp_path / "model.tflite"
    export(source, target, ExportOptions("f32", CONTEXT), lambda line: None)
    model = make_model(kind)
    ids = random_ids(300, LENGTH)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None]).logits[0].numpy()
    found = Interpreted(target)
    found("prefill_128", ids[:PROMPT], 0)
    rows = [found("decode", ids[place : place + 1], place) for place in range(PROMPT, LENGTH)]
    assert_close(np.concatenate([row[0] for row in rows if row is not None]), expected[PROMPT:], LOGITS)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_encoded_weights_have_the_size_and_the_scores_of_their_recipe(weights: str, tmp_path: Path):
    source, target, said = write_model(tmp_path / "source"), tmp_path / "model.tflite", list[str]()
    export(source, target, ExportOptions(weights, CONTEXT), said.append)
    config = load_model(source).engine.config
    assert 0 < target.stat().st_size - expected_bytes(RECIPES[weights], config) < 110_000
    assert any(line.startswith("Checked: the mean negative log-likelihood of 2,079 tokens") for line in said)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("gemwright")] == []


@pytest.mark.parametrize("kind", ["paligemma2", "gemma3"])
def test_an_image_between_texts(kind: str, tmp_path: Path):
    source, target = write_model(tmp_path / "source", kind), tmp_path / "model.tflite"
    context = 2 * CONTEXT
    export(source, target, ExportOptions("f32", context, verify=False), lambda line: None)
    engine = load_model(source, "float32").engine
    config, params = engine.config, engine.params
    assert config.vision is not None
    assert params.vision is not None
    size, count = config.vision.image_size, config.vision.tokens
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    soft = vision.encode(config.vision, params.vision, jnp.asarray(pixels))
    ids = random_ids(300, 6)
    tokens = np.concatenate([ids[:3], np.full(count, -1), ids[3:]])[None]
    groups = jnp.where(tokens < 0, 0, -1)
    soft_tokens = SoftTokens(jnp.zeros((1, tokens.size, config.width)).at[:, 3 : 3 + count].set(soft), groups)
    hidden, _ = forward(config, params, jnp.asarray(tokens), soft_tokens=soft_tokens)
    expected = np.asarray(logits(config, params, hidden[:, -1]))

    found = Interpreted(target)
    encoded = found.run["encode_image"](pixels=pixels)["soft_tokens"]
    assert_close(encoded, np.asarray(soft), LOGITS)
    embedded = found.run["embed"](tokens=np.resize(ids, (1, 128)).astype(np.int32))["embeddings"]
    length, chunk = tokens.size - 1, count + 128
    embeddings, positions = np.zeros((1, chunk, config.width), np.float32), np.full(chunk, -1, np.int32)
    embeddings[0, :length] = np.concatenate([embedded[0, :3], encoded[0], embedded[0, 3:5]])
    positions[:length] = np.arange(length)
    rows, columns = np.indices((chunk, context))
    image = (rows >= 3) & (rows < 3 + count) & (columns >= 3) & (columns < 3 + count)
    mask = np.where((columns <= rows) | image, 0, -1e9).astype(np.float32)[None, None]
    local = np.where((columns <= rows) & (rows - columns < 8) | image, 0, -1e9).astype(np.float32)[None, None]
    given = {"embeddings": embeddings, "input_pos": positions, "mask": mask, "local_mask": local}
    taken = found.run["image_prefill"].get_input_details()  # the last layer stores keys only: its mask may be missing
    states = found.run["image_prefill"](**{k: v for k, v in given.items() if k in taken}, **found.states)
    last = np.where(np.arange(context) <= length, 0, -1e9).astype(np.float32)[None, None, None]
    step = {"tokens": np.array([[ids[-1]]], np.int32), "input_pos": np.array([length], np.int32), "mask": last}
    assert_close(found.run["decode"](**step, **states)["logits"][0], expected, LOGITS)


def test_litert_lm_continues_prompts_as_litert_does(tmp_path: Path):
    source, target, said = write_model(tmp_path / "source"), tmp_path / "model.litertlm", list[str]()
    export(source, target, ExportOptions("int8", CONTEXT), said.append)
    assert any(line.startswith("LiteRT-LM") for line in said)
    assert verify_against(target, source).passed
    target.write_bytes(target.read_bytes()[:1000])
    with pytest.raises(GemwrightError, match=r"cannot be opened by LiteRT|is no bundle of LiteRT-LM"):
        verify_against(target, source)


def test_a_file_that_costs_more_than_its_bound_is_not_left(tmp_path: Path):
    from gemwright.release.litert.check import check_model

    source, target = write_model(tmp_path / "source"), tmp_path / "model.tflite"
    export(source, target, ExportOptions("int4", CONTEXT, verify=False), lambda line: None)
    with pytest.raises(GemwrightError, match="too far from its source"):
        check_model(source, target, Recipe("int4", "int8", -1.0), lambda line: None)
