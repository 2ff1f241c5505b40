"""Create a model from nothing: a Hugging Face folder with random weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import from_huggingface, to_huggingface
from gemwright.checkpoint.convert import check_new, write_folder
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.safetensors import SafetensorsTensor
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.vocabulary import TOKENIZER_FILES, check_vocabulary, read_tokenizer
from gemwright.model.config import Config
from gemwright.model.params import param_specs, start
from gemwright.text.sentencepiece_model import CONTROL
from gemwright.text.vocabulary import Vocabulary


def create(config_file: Path, tokenizer: str, folder: Path, seed: int = 0) -> Config:
    """Write a model with random float32 weights, distributed as `gemwright.model.params.init` says.

    Args:
        config_file: A `config.json` of transformers.
        tokenizer: A `tokenizer.json`, a SentencePiece model, or a folder or checkpoint that has one.
        folder: The folder to make. It must not exist.
        seed: Seed of the random numbers.

    Returns:
        The model.

    Raises:
        CheckpointError: The config or the tokenizer cannot be read, or does not fit the other, or the folder cannot be
            written, in which case nothing is left behind.
    """
    check_new(folder)
    config = from_huggingface(read_json(config_file), str(config_file))
    vocabulary = find_vocabulary(tokenizer, config)
    specs, float32 = tree.flatten(param_specs(config)), np.dtype(np.float32)
    keys = dict(zip(specs, jax.random.split(jax.random.key(seed), len(specs)), strict=True))

    def produce(path: str, tensor: TensorMapping) -> NDArray[Any]:
        return tensor.as_stored(np.asarray(start(specs[path], keys[path], jnp.float32)))

    mapping = map_huggingface(config)
    tensors = [
        SafetensorsTensor(tensor.name, tensor.shape, float32, lambda p=path, t=tensor: produce(p, t))
        for path, tensor in mapping.items()
    ]
    no_file: Any = None
    settings = Checkpoint(folder, "safetensors", no_file, config, mapping, generation={}, chat_template=None)
    write_folder(folder, settings, vocabulary, tensors, to_huggingface(config, float32.name))
    return config


def find_vocabulary(tokenizer: str, config: Config) -> Vocabulary:
    """Return the vocabulary of a tokenizer file, or of a folder or checkpoint that has one, for a model.

    Raises:
        CheckpointError: There is none, or it does not fit the model.
    """
    path = Path(tokenizer).expanduser()
    is_name = path.suffix not in (".json", ".model", ".spm")
    files = [path / name for name in TOKENIZER_FILES] if is_name else [path]
    for file in files:
        if file.is_file() or not is_name:
            return read_tokenizer(file, config)
    vocabulary = open_checkpoint(locate(tokenizer)).vocabulary()
    check_vocabulary(config, vocabulary.size, lambda token: bool(vocabulary.kinds[token] == CONTROL), path)
    return vocabulary
