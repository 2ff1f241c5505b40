"""Training with images: losses and gradients against transformers', and what is learned and masked."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright import tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.model import stack
from gemwright.train.image_text import ImageText
from gemwright.train.objective import Sequences
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate
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


@pytest.mark.parametrize("name", ["paligemma", "paligemma2, window 8", "gemma3"])
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
