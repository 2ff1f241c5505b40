"""Tiny random models of every architecture as a pair, transformers' and ours with stacked weights, and a batch."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel, RecurrentGemmaConfig

from gemwright import tree
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.model.config import Attention, Config, Layer
from gemwright.model.params import ModelWeights
from gemwright.model.stack import StackedWeights, stack, stacked_paths
from gemwright.train.objectives.objective import Sequences
from tests.tiny.hf import make_random_model
from tests.tiny.pairs import CONFIGS, LENGTH, VOCAB, WINDOW, load
from tests.tiny.vision_pairs import VISION_CONFIGS


def _recurrent() -> PreTrainedConfig:
    return RecurrentGemmaConfig(
        num_hidden_layers=3,
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=144,
        num_attention_heads=3,
        num_key_value_heads=1,
        lru_width=60,
        attention_window_size=WINDOW,
        logits_soft_cap=8.0,
        use_cache=False,
        attn_implementation="eager",
    )


def _shorter(name: str, depth: int) -> PreTrainedConfig:
    config: Any = CONFIGS[name]()
    config.num_hidden_layers, config.layer_types = depth, config.layer_types[:depth]
    return config


CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma": CONFIGS["gemma, multi-query"],
    "gemma2": functools.partial(_shorter, "gemma2", 4),
    "gemma3": functools.partial(_shorter, "gemma3", 6),
    "vaultgemma": functools.partial(_shorter, "vaultgemma", 4),
    "recurrentgemma": _recurrent,
    "paligemma": VISION_CONFIGS["paligemma"],
}


def cases(*quick: str) -> list[Any]:
    """Return the names of all models as parameters, those that are not quick marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@dataclass(frozen=True)
class Case:
    """The same model in transformers and in gemwright, in float32; without the tower, which text does not train."""

    name: str
    theirs: PreTrainedModel
    config: Config
    layers: ModelWeights
    weights: StackedWeights


def _distribution(name: str) -> tuple[float, float] | None:
    if name.endswith("recurrent_param"):  # keeps 0.9 to 0.999 of its channel a step, to the power of 8 gate
        return None
    return 0.0, 0.3 if name.endswith("norm.weight") or "gate_" in name or "conv" in name else 0.15


@functools.cache
def make_case(name: str) -> Case:
    """Return a model with weights so large that every part of it matters."""
    theirs = make_random_model(CASES[name](), _distribution)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config, weights = load(Path(folder), jnp.float32)
    if name == "recurrentgemma":  # the published model's window has one token more than transformers'
        config = replace(config, layers=tuple(_with_window(layer) for layer in config.layers))
    return Case(name, theirs, config, weights, stack(config, weights))


def _with_window(layer: Layer) -> Layer:
    mixer = layer.mixer
    return replace(layer, mixer=replace(mixer, window=WINDOW)) if isinstance(mixer, Attention) else layer


def make_documents(lengths: tuple[int, ...], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return documents of random tokens, one more than a length each, and which targets are labeled.

    Token 0 is padding, for whose embedding PyTorch computes no gradient.
    """
    random = np.random.default_rng(seed)
    return [
        (random.integers(1, VOCAB - 1, length + 1), random.random(length) < random.uniform(0.2, 0.9))
        for length in lengths
    ]


def to_batch(rows: list[list[tuple[np.ndarray, np.ndarray]]], length: int = LENGTH) -> Sequences:
    """Return a batch, of which each sequence holds some documents and then padding."""
    shape = len(rows), length
    tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    learned = np.zeros(shape, bool)
    for row, documents in enumerate(rows):
        begin = 0
        for segment, (ids, labeled) in enumerate(documents, 1):
            place = row, slice(begin, begin + len(labeled))
            tokens[place], targets[place], learned[place], segments[place] = ids[:-1], ids[1:], labeled, segment
            begin += len(labeled)
    return Sequences(*map(jnp.asarray, (tokens, targets, learned, segments)))


def their_loss(model: Any, batch: Sequences) -> torch.Tensor:
    """Return the mean loss of labeled tokens of sequences that hold one document each, from transformers' logits."""
    tokens, targets, learned, segments = (
        torch.tensor(np.asarray(leaf)).long() for leaf in (batch.tokens, batch.targets, batch.learned, batch.segments)
    )
    kinds = {"token_type_ids": torch.ones_like(tokens)} if hasattr(model.config, "vision_config") else {}
    logits = model(input_ids=tokens, attention_mask=segments, **kinds).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.where(learned > 0, targets, -100).flatten())


def to_layers(config: Config, stacked: Any) -> dict[str, np.ndarray]:
    """Return stacked values by the path of each weight in `ModelWeights`."""
    paths, found = stacked_paths(config), {}
    for path, leaf in tree.flatten(stacked).items():
        parts = np.asarray(leaf) if path.startswith("stages.") else np.asarray(leaf)[None]
        found |= dict(zip(paths[path], parts, strict=True))
    return found


def their_gradients(case: Case) -> dict[str, np.ndarray]:
    """Return the gradients of transformers' parameters by the path of our weight, in our shape."""
    mapping, gradients = map_huggingface(case.config), {}
    for name, parameter in case.theirs.named_parameters():
        if parameter.grad is not None:
            gradients[name.replace("model.language_model.", "language_model.model.")] = parameter.grad.numpy()
    found = {}
    for path, tensor in mapping.items():
        if tensor.name in gradients:
            gradient = gradients.pop(tensor.name)
            found[path] = gradient if tensor.permute is None else gradient.transpose(tensor.permute)
    assert not gradients, f"parameters without a weight: {list(gradients)}"
    return found


def relative(found: Any, expected: Any) -> float:
    """Return the norm of a difference as a share of the norm of the expected value."""
    found, expected = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def largest_difference(found: Any, expected: Any) -> float:
    """Return the largest `relative` difference of two trees of the same structure."""
    return max(jax.tree.leaves(jax.tree.map(relative, found, expected)))
