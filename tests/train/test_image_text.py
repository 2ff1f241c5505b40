"""Training with images: losses and gradients against transformers', and what is learned and masked."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import gemwright
from gemwright import tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.errors import DataError, GemwrightError
from gemwright.model import stack
from gemwright.model.transformer import SoftTokens, forward, logits
from gemwright.train.objectives.image_text import ImageText
from gemwright.train.objectives.objective import Objective, Sequences
from gemwright.train.program import to_device
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train
from gemwright.train.step import accumulate
from tests.tiny.hf import write_model
from tests.tiny.vision_pairs import IMAGE, PREFIXES, VisionPair, channels_first, make_vision_pair
from tests.train.cases import relative

pytestmark = [pytest.mark.usefixtures("quick_compilation")]
LOSS, GRADIENT = 1e-5, 1e-4
"""Relative tolerance of a float32 loss, and of a gradient relative to its norm."""
LENGTHS = (55, 48)
"""Tokens of the two documents; the rest of their rows is padding."""


def _batch(pair: VisionPair) -> dict[str, np.ndarray]:
    """Return a row for each document with images, of which PaliGemma's suffix and half of Gemma 3's text is learned."""
    given, prefix = pair.batch, pair.config.vision.projector == "affine"
    ids = np.maximum(given.tokens, 1) * (given.tokens >= 0) - (given.tokens < 0)
    place = np.arange(ids.shape[1])[None]
    inside = place < np.array(LENGTHS)[:, None]
    chosen = place >= np.array(PREFIXES)[:, None] if prefix else np.random.default_rng(3).random(ids.shape) < 0.5
    learned = inside & chosen & (ids >= 0)
    counts = (1, 1) if prefix else (3, 1)
    pixels = np.zeros((2, max(counts), *given.pixels.shape[1:]), np.float32)
    pixels[0, : counts[0]], pixels[1, : counts[1]] = given.pixels[: counts[0]], given.pixels[counts[0] :]
    inputs = inside[:, 1:]  # the last token is only a target
    return {
        "tokens": np.where(inputs, ids[:, :-1], 0),
        "targets": np.where(inputs, np.maximum(ids[:, 1:], 0), 0),
        "learned": learned[:, 1:],
        "segments": inputs.astype(np.int32),
        "pixels": pixels,
    }


def _their_loss(pair: VisionPair, batch: dict[str, np.ndarray]) -> torch.Tensor:
    kinds = np.where(batch["segments"] > 0, pair.batch.kinds[:, :-1], 0)
    logits = pair.theirs(
        input_ids=torch.tensor(np.where(batch["tokens"] < 0, IMAGE, batch["tokens"])).long(),
        attention_mask=torch.tensor(batch["segments"]).long(),
        token_type_ids=torch.tensor(kinds),
        pixel_values=channels_first(pair.batch.pixels),
    ).logits.float()
    labels = torch.tensor(np.where(batch["learned"], batch["targets"], -100)).long()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize(
    "name",
    ["paligemma2, window 8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("paligemma", "gemma3"))],
)
def test_loss_and_gradients_with_images_equal_those_of_transformers(name: str, tmp_path: Path):
    pair = make_vision_pair(name, tmp_path)
    batch, config = _batch(pair), pair.config
    pair.theirs.zero_grad()
    expected = _their_loss(pair, batch)
    expected.backward()

    params, count = stack.stack(config, pair.weights, tower=True), batch["learned"].sum()
    pixels = batch.pop("pixels")
    given = Sequences(**jax.tree.map(jnp.asarray, batch), extras={"pixels": jnp.asarray(pixels)})
    recipe, objective = Recipe(method="full"), ImageText(images=pixels.shape[1])
    sums, gradient = jax.jit(functools.partial(accumulate, config, recipe, objective=objective))(params, None, given)
    assert int(sums.count) == count
    np.testing.assert_allclose(float(sums.loss) / count, expected.item(), rtol=LOSS)
    paths, theirs = stack.stacked_paths(config, tower=True), _their_gradients(pair)
    found: dict[str, np.ndarray] = {}
    for path, leaf in tree.flatten(gradient).items():
        parts = np.asarray(leaf) if path.startswith(stack.STACKED) else np.asarray(leaf)[None]
        found |= dict(zip(paths[path], parts / count, strict=True))
    assert found.keys() == theirs.keys()
    for path, value in theirs.items():
        if path.endswith(".k_bias"):  # moves all scores of a query alike, so its gradient is rounding
            assert np.linalg.norm(found[path]) < GRADIENT * np.linalg.norm(theirs[path.replace("k_bias", "q_bias")])
        else:
            assert relative(found[path], value) < GRADIENT, path
    assert sum(path.startswith("vision.") for path in found) > 3 * 16


def _their_gradients(pair: VisionPair) -> dict[str, np.ndarray]:
    """Return the gradients of transformers' parameters by the path of our weight, in our shape."""
    gradients = {}
    for name, parameter in pair.theirs.named_parameters():
        if parameter.grad is not None:
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
            gradients[name.replace("model.multi_modal_projector.", "multi_modal_projector.")] = parameter.grad.numpy()
    found = {}
    for path, tensor in map_huggingface(pair.config).items():
        if tensor.name in gradients:
            gradient = gradients.pop(tensor.name)
            found[path] = gradient if tensor.permute is None else gradient.transpose(tensor.permute)
    assert not gradients, f"parameters without a weight: {list(gradients)}"
    return found


def _write_data(folder: Path, records: int = 4) -> Path:
    random = np.random.default_rng(0)
    lines: list[str] = []
    for index in range(records):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "prefix": "the hen", "suffix": f"<loc{index:04}> in"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("image-text")
    write_model(place / "model", "paligemma2")
    _write_data(place)
    return place


RECIPE = Recipe(method="full", learning_rate=1e-2, batch_size=2, steps=4, length=64)


@pytest.mark.slow
def test_a_run_trains_the_tower_and_its_result_reads_images(folder: Path, tmp_path: Path):
    run = prepare(folder / "model", folder / "data.jsonl", tmp_path / "run", RECIPE, held_out=0.25)
    assert run.objective == ImageText(images=1)
    lengths = [len(document.ids) for data in (run.dataset, run.held_out) if data for document in data.documents]
    assert (run.recipe.packing, run.recipe.length) == ("none", max(lengths) - 1)
    seen: list[Any] = []
    result = train(run, seen.append)
    assert seen[-1].loss < seen[1].loss
    assert seen[-1].held_out is not None
    models = [gemwright.load(path, dtype="float32") for path in (folder / "model", result)]
    before, after = (tree.flatten(model.image_prompter.params) for model in models if model.image_prompter)
    assert len(before) > 30
    assert all(np.any(before[path] != after[path]) for path in before if not path.endswith("k_bias"))
    found = models[1].generate("the hen", [folder / "0.png"], max_tokens=2)
    assert len(found.tokens) == 2


@pytest.mark.slow
def test_an_adapter_leaves_the_tower(folder: Path, tmp_path: Path):
    recipe = replace(RECIPE, method="lora", rank=2)
    run = prepare(folder / "model", folder / "data.jsonl", tmp_path / "run", recipe, held_out=0.0)
    result = train(run)
    image = [folder / "0.png"]
    base, tuned = gemwright.load(folder / "model", dtype="float32"), gemwright.load(result, dtype="float32")
    scores = [sum(model.score("<loc0000> in", "the hen", image).logprobs) for model in (base, tuned)]
    assert scores[1] > scores[0]
    assert tuned.image_prompter is not None
    found = jax.tree.leaves(tuned.image_prompter.params)
    assert base.image_prompter is not None
    for one, other in zip(found, jax.tree.leaves(base.image_prompter.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_an_image_that_breaks_during_a_run_ends_it_with_its_line_and_a_checkpoint(folder: Path, tmp_path: Path):
    data = _write_data(tmp_path)
    run = prepare(folder / "model", data, tmp_path / "run", replace(RECIPE, batch_size=1), held_out=0.0)
    broken = [int(run.batches[step].records[0, 0]) for step in range(2)][1]
    content = (tmp_path / f"{broken}.png").read_bytes()
    (tmp_path / f"{broken}.png").write_bytes(content[:100])
    with pytest.raises(DataError, match=rf"data.jsonl, line {broken + 1}: .*truncated or damaged"):
        train(run)
    (tmp_path / f"{broken}.png").write_bytes(content)
    steps: list[int] = []
    again = prepare(folder / "model", data, tmp_path / "run", replace(RECIPE, batch_size=1), held_out=0.0)
    train(again, lambda progress: steps.append(progress.step))
    assert steps == [2, 3, 4]


def test_a_prompt_of_text_attends_both_ways_in_a_prefix_lm(folder: Path, tmp_path: Path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"prompt": "the hen", "completion": "in the ring"}))
    run = prepare(folder / "model", tmp_path / "text.jsonl", tmp_path / "run", RECIPE)
    assert run.objective == ImageText(images=0)
    model, document = gemwright.load(folder / "model", dtype="float32"), run.dataset.documents[0]
    assert model.image_prompter is not None
    prompt = model.image_prompter.before("the hen", []).then(document.ids[document.learned].tolist())
    assert list(prompt.ids) == document.ids.tolist()
    config, params = model.engine.config, model.engine.params
    soft_tokens = SoftTokens(jnp.zeros((1, len(prompt), config.width)), jnp.asarray(prompt.groups)[None])
    hidden, _ = forward(config, params, jnp.asarray(document.ids)[None], soft_tokens=soft_tokens)
    logprobs = jax.nn.log_softmax(logits(config, params, hidden))[0, :-1]
    expected = np.asarray(logprobs)[np.arange(len(prompt) - 1), document.ids[1:]][document.learned[1:]]
    stacked = stack.stack(config, params)
    sums = run.objective.sum_losses(config, run.recipe, stacked, None, to_device(run.batches[0]))
    np.testing.assert_allclose(float(sums.loss), -expected.sum(), rtol=LOSS)


def test_other_objectives_refuse_images(folder: Path, tmp_path: Path):
    class Other(Objective):
        name = "other"

    with pytest.raises(GemwrightError, match="The objective other does not support images"):
        prepare(folder / "model", folder / "data.jsonl", tmp_path / "run", RECIPE, objective=Other())
