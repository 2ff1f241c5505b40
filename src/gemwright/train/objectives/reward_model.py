"""Score texts and conversations with a reward model: `load_reward`."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import memory
from gemwright.checkpoint.adapters import find_model, open_adapter
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.merge import adapt
from gemwright.checkpoint.names.huggingface import SCORE
from gemwright.checkpoint.open import open_checkpoint
from gemwright.data.documents import Encoder
from gemwright.data.records import find_kind, read_examples
from gemwright.data.sources import Place, Record
from gemwright.errors import CheckpointError
from gemwright.loading.model import choose_precision, forecast, make_chat_template
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.runtime import fork, machine
from gemwright.runtime.cache_dir import enable_cache
from gemwright.text.tokenizer import Tokenizer
from gemwright.typing import Array, Float, Int

BATCH = 8
"""Number of texts that are scored at once."""
BUCKET = 64
"""Lengths are padded to multiples of so many tokens, to compile few programs."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model; `load_reward` loads one.

    Attributes:
        name: The model as it was given.
        config: Its shapes.
        params: Its weights.
        head: [1, D] weight of the score.
        encoder: The tokenizer and the chat template.
        tuned: Whether prompts and completions are conversations.
    """

    name: str
    config: Config
    params: ModelWeights
    head: Float[Array, "1 D"]
    encoder: Encoder
    tuned: bool

    def score(self, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the score of the last token of each record.

        Args:
            records: Records as those of training data, such as `{"prompt": ..., "completion": ...}` or
                `{"messages": [...]}`; what follows the last message of the model is not read.

        Raises:
            GemwrightError: A record is malformed, has no answer or is too long.
        """
        ids = [self._encode(index, fields) for index, fields in enumerate(records, 1)]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        found = np.zeros(len(ids))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            found[part] = self._score([ids[index] for index in part])
        return found.tolist()

    def _encode(self, number: int, fields: Mapping[str, Any]) -> NDArray[np.int32]:
        record = Record(Place(Path("the list of records"), number, "item"), fields)
        documents = [
            document
            for example in read_examples(find_kind(record), record, self.tuned)
            for document in self.encoder.encode(example)
        ]
        if not documents or not documents[-1].learned.any():
            raise record.place.error("there is no answer to score; give one that is not empty.")
        ids = documents[-1].ids
        if len(ids) > self.config.max_length:
            raise record.place.error(f"it has {len(ids):,} tokens, and {self.config.max_length:,} fit; shorten it.")
        return ids

    def _score(self, documents: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        longest = max(map(len, documents))
        tokens = np.zeros((BATCH, -(-longest // BUCKET) * BUCKET), np.int32)
        lengths = np.ones(BATCH, np.int32)
        for row, ids in enumerate(documents):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        scores = _score_last(self.config, self.params, self.head, jnp.asarray(tokens), jnp.asarray(lengths))
        return np.asarray(scores)[: len(documents)]


@functools.partial(jax.jit, static_argnums=0)
def _score_last(
    config: Config, params: ModelWeights, head: Array, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, " B"]:
    """Return the score of the last token of each row."""
    valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
    hidden, _ = transformer.forward(config, params, tokens, valid=valid)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return last.astype(jnp.float32) @ head[0]


def load_reward(model: str | Path, dtype: Any = None) -> RewardModel:
    """Load a reward model.

    Args:
        model: A Hugging Face folder of a `*ForSequenceClassification` with one label, or an adapter of one, as runs of
            the objective `reward` write them; a path or a hub id.
        dtype: As for `gemwright.load`.

    Raises:
        GemwrightError: It is not found, damaged, or no reward model.
    """
    fork.require_not_forked()
    machine.set_threads()
    enable_cache()
    path, adapters = find_model(model)
    checkpoint = open_checkpoint(path, reward=not adapters)
    checkpoint, updates = adapt(checkpoint, adapters, reward=True)
    head = _read_head(next(map(open_adapter, adapters)) if adapters else checkpoint, checkpoint.config.width)
    precision = choose_precision(dtype)
    memory.require(forecast(checkpoint, precision), str(model))
    params = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, precision, updates=updates)
    tokenizer = Tokenizer(checkpoint.vocabulary())
    encoder = Encoder(tokenizer, make_chat_template(checkpoint, tokenizer))
    return RewardModel(
        str(model), checkpoint.config, params, jnp.asarray(head), encoder, bool(checkpoint.chat_templates)
    )


def _read_head(opened: Any, width: int) -> NDArray[np.float32]:
    """Return the head of an open reward model or of its adapter."""
    name = next((name for name in opened.file.tensors if name == SCORE or name.endswith(f".{SCORE}")), None)
    if name is None:
        raise CheckpointError(f"{opened.path} is no reward model: it has no {SCORE}; train one.")
    head = np.asarray(opened.file.read(name), np.float32)
    if head.shape != (1, width):
        raise CheckpointError(f"{opened.path}: {name} has shape {list(head.shape)}, and it must be [1, {width}].")
    if not np.isfinite(head).all():
        raise CheckpointError(f"{opened.path}: {name} has values that are not finite; train it again.")
    return head
