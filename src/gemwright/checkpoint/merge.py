"""Merge LoRA adapters into the weights of a checkpoint while they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.chat_templates import read_chat_templates, read_special_tokens
from gemwright.checkpoint.configs.huggingface import read_generation_config
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.load import Progress, read_weights
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint
from gemwright.checkpoint.updates import Updates, fit, merge, read_all, replacement, update_config
from gemwright.checkpoint.vocabulary import TOKENIZER_FILES
from gemwright.model.config import Config
from gemwright.model.params import param_specs


def adapt(
    checkpoint: Checkpoint, adapters: Mapping[Path, float], *, reward: bool = False
) -> tuple[Checkpoint, tuple[Updates, ...]]:
    """Return the checkpoint with the config and the text files of its adapters, and their updates.

    A PEFT folder may have a tokenizer with added tokens, a chat template and ids that end a text; those of the last
    adapter count.

    Args:
        checkpoint: The base model.
        adapters: Path and weight of each adapter.
        reward: Whether they are of reward models.

    Raises:
        CheckpointError: An adapter cannot be read, or is for another model.
    """
    updates = read_all(adapters, checkpoint.config, reward=reward)
    config, mapping = update_config(checkpoint.config, updates), checkpoint.mapping
    if not config.tied and "head" not in mapping:
        mapping = {**mapping, "head": mapping["embed"]}
    checkpoint = replace(checkpoint, config=config, mapping=mapping)
    for folder in filter(Path.is_dir, adapters):
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            checkpoint = replace(checkpoint, tokenizer=folder)
        if templates := read_chat_templates(folder):
            checkpoint = replace(
                checkpoint,
                chat_template=templates.get("default"),
                chat_templates=templates,
                special_tokens=read_special_tokens(folder),
            )
        if (file := folder / "generation_config.json").is_file():
            own = read_generation_config(read_json(file), str(file))
            checkpoint = replace(checkpoint, generation={**checkpoint.generation, **own})
    return checkpoint, updates


def read_merged(
    checkpoint: Checkpoint,
    mapping: Mapping[str, TensorMapping],
    config: Config,
    dtype: np.dtype[Any],
    updates: Sequence[Updates],
    progress: Progress,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Iterate over weights with the updates merged, in a dtype."""
    if not updates:
        return read_weights(checkpoint.file, mapping, config, dtype, progress)
    params = tree.flatten(param_specs(config))
    kept = [path for path in params if replacement(path, updates) is None]
    weights = read_weights(checkpoint.file, mapping, config, np.float32, progress, kept)

    def read(path: str) -> NDArray[Any]:
        whole = replacement(path, updates)
        values = next(weights)[1] if whole is None else fit(whole, params[path].shape)
        return merge(path, values, updates).astype(dtype)

    return ((path, read(path)) for path in params)
