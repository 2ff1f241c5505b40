"""Average the weights of models of one shape: a weighted mean, or spherical interpolation of tensors.

The average is a checkpoint whose tensors are computed when they are read, some rows at a time.

Sources: arXiv:2203.05482 (model soups), arXiv:2401.12187 (WARM), arXiv:2406.16768 (WARP: spherical interpolation of
task vectors, then linear interpolation towards the base).
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.adapters import find_model
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.checkpoint.load import checked_names, read_weights, row_chunks
from gemwright.checkpoint.merge import adapt
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.updates import Updates, merge, replacement
from gemwright.checkpoint.vocabulary import require_same_tokens
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.model.config import Config
from gemwright.model.differences import differences
from gemwright.model.params import param_specs
from gemwright.text.vocabulary import Vocabulary

PARALLEL = 0.9995
"""Absolute cosine above which two tensors are interpolated linearly, as in mergekit."""
Averaging: TypeAlias = Literal["linear", "slerp"]


def slerp_coefficients(products: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the factors of some vectors in their spherical interpolation.

    Two vectors at an angle W become `sin((1 - t) W) / sin(W) u + sin(t W) / sin(W) v`, with the second one's weight t.
    A further vector is interpolated with the result so far, its weight taken as a share of the weights so far. If one
    is zero, or the cosine exceeds `PARALLEL`, the two are interpolated linearly.

    Args:
        products: The inner product of each two vectors, [M, M].
        weights: The positive weight of each.
    """
    factors = np.zeros(len(weights))
    factors[0] = 1.0
    for index in range(1, len(weights)):
        t = weights[index] / math.fsum(weights[: index + 1])
        sizes = math.sqrt(max(factors @ products @ factors, 0.0)), math.sqrt(products[index, index])
        cosine = float(factors @ products[index]) / math.prod(sizes) if all(sizes) else 1.0
        if abs(cosine) > PARALLEL:
            before, after = 1 - t, t
        else:
            angle = math.acos(cosine)
            before, after = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        factors *= before
        factors[index] = after
    return factors


class _Source:
    """The weights of a model, with its adapters merged."""

    def __init__(self, checkpoint: Checkpoint, updates: Sequence[Updates]):
        self.checkpoint, self._updates = checkpoint, updates
        self._names = checked_names(checkpoint.file, checkpoint.mapping)
        self._changed = {path for update in updates for path in (*update.low_rank, *update.replaced)}
        self._whole: tuple[str, NDArray[np.float32]] = "", np.zeros(0, np.float32)

    def rows(self, path: str, target: TensorMapping, rows: slice) -> NDArray[np.float64]:
        """Return rows of a weight in the shape of the target, which has no index and no permutation."""
        tensor, file = self.checkpoint.mapping[path], self.checkpoint.file
        plain = not tensor.index and tensor.permute is None and tensor.shape[1:] == target.shape[1:]
        if not plain or path in self._changed:
            return self._read(path).reshape(-1, *target.shape[1:])[rows].astype(np.float64)
        name = self._names[tensor.name]
        values = np.asarray(file.read_rows(name, rows.start, rows.stop), np.float32)
        values = values - np.float32(tensor.offset) if tensor.offset else values
        file.release(name)
        return values.astype(np.float64)

    def _read(self, path: str) -> NDArray[np.float32]:
        """Return a whole weight; the last one is kept, as its rows are asked for one part after another."""
        if self._whole[0] != path:
            base, values = self.checkpoint, replacement(path, self._updates)
            if values is None:
                values = next(read_weights(base.file, base.mapping, base.config, np.float32, order=[path]))[1]
            self._whole = path, merge(path, values, self._updates)
        return self._whole[1]


@dataclass(frozen=True, eq=False)
class AveragedFile:
    """Tensors that are computed from those of several models, in float64, and rounded to float32 once.

    Attributes:
        path: A name for messages.
        mapping: The tensor of each weight.
        sources: The models.
        weights: The weight of each.
        method: How they are averaged.
        base: The model that task vectors start from; None for none.
        eta: Share of the average; the rest is that of the base.
    """

    path: Path
    mapping: Mapping[str, TensorMapping]
    sources: tuple[_Source, ...]
    weights: tuple[float, ...]
    method: Averaging
    base: _Source | None
    eta: float
    _factors: dict[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, as float32."""
        return {
            tensor.name: TensorInfo(tensor.shape, "F32", 0, 4 * math.prod(tensor.shape))
            for tensor in self.mapping.values()
        }

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor."""
        return self.read_rows(name, 0, self._find(name)[1].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return some rows of a tensor."""
        path, tensor = self._find(name)
        with self._lock:  # sources keep the last tensor that they read
            if name not in self._factors:
                self._factors[name] = self._find_factors(path, tensor)
            *of_sources, of_base = self._factors[name]
            total = np.zeros((stop - start, *tensor.shape[1:]))
            for source, factor in zip((*self.sources, self.base), (*of_sources, of_base), strict=True):
                if source is not None and factor:
                    total += factor * source.rows(path, tensor, slice(start, stop))
        with np.errstate(over="ignore"):  # the writer refuses values that are not finite
            return total.astype(np.float32)

    def raw(self, name: str) -> NDArray[Any]:
        """Return the bytes of a tensor."""
        return self.read(name).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        """Do nothing: nothing is kept of a tensor."""

    def _find(self, name: str) -> tuple[str, TensorMapping]:
        return next((path, tensor) for path, tensor in self.mapping.items() if tensor.name == name)

    def _find_factors(self, path: str, tensor: TensorMapping) -> NDArray[np.float64]:
        """Return the factor of each model's tensor, and that of the base's."""
        factors = np.array(self.weights)
        if self.method == "slerp":
            factors = slerp_coefficients(self._multiply(path, tensor), self.weights)
        factors = self.eta * factors
        return np.append(factors, 0.0 if self.base is None else 1 - math.fsum(factors))

    def _multiply(self, path: str, tensor: TensorMapping) -> NDArray[np.float64]:
        """Return the inner products of the models' tensors, or of what each adds to the base's."""
        products = np.zeros((len(self.sources), len(self.sources)))
        for rows in row_chunks(tensor.shape):
            parts = np.stack([source.rows(path, tensor, rows).ravel() for source in self.sources])
            if self.base is not None:
                parts -= self.base.rows(path, tensor, rows).ravel()
            products += parts @ parts.T
        return products


@dataclass(frozen=True, repr=False)
class AveragedCheckpoint(Checkpoint):
    """The average of several models, with the tokenizer and the settings of the first."""

    first: Checkpoint | None = None

    def vocabulary(self) -> Vocabulary:
        """Load the vocabulary of the first model."""
        assert self.first is not None
        return self.first.vocabulary()


def open_average(
    models: Sequence[str],
    method: Averaging = "linear",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    eta: float = 1.0,
    variant: str | None = None,
) -> AveragedCheckpoint:
    """Open the average of models of one shape and one vocabulary.

    Args:
        models: Paths, names from `gemwright models`, hub ids or adapters, two or more. Settings, such as the chat
            template, are those of the first.
        method: A weighted mean; or spherical interpolation of each tensor, see `slerp_coefficients`.
        weights: The weight of each; equal ones by default. They sum to 1.
        base: The model that all start from. What they add to it is averaged, and added to it.
        eta: Share of the average; the rest is that of the base.
        variant: Name of the published variant, for Orbax trees and `.npz` files.

    Raises:
        GemwrightError: A model cannot be read or differs in shape or vocabulary, or a number is not valid.
    """
    weights = _check_weights(models, method, weights)
    _check_eta(eta, base)
    names = [*models, *([] if base is None else [base])]
    sources = [_open(name, variant) for name in names]
    config = _common_config(names, sources)
    first = sources[0].checkpoint
    shapes = tree.flatten(param_specs(config))
    mapping = {
        path: tensor if tensor.permute is None else TensorMapping(tensor.name, shapes[path].shape)
        for path, tensor in map_huggingface(config).items()
    }
    averaged = tuple(sources[: len(models)])
    origin = None if base is None else sources[-1]
    file = AveragedFile(Path(" and ".join(models)), mapping, averaged, weights, method, origin, eta)
    return AveragedCheckpoint(
        path=first.path,
        format=first.format,
        file=file,
        config=config,
        mapping=mapping,
        generation=first.generation,
        chat_template=first.chat_template,
        chat_templates=first.chat_templates,
        special_tokens=first.special_tokens,
        tokenizer=first.tokenizer,
        first=first,
    )


def _open(name: str, variant: str | None) -> _Source:
    path, adapters = find_model(name)
    return _Source(*adapt(open_checkpoint(path, variant), adapters))


def _check_weights(models: Sequence[str], method: Averaging, weights: Sequence[float] | None) -> tuple[float, ...]:
    if len(models) < 2:
        raise GemwrightError("One model alone cannot be merged; give two or more.")
    if weights is None:
        return (1 / len(models),) * len(models)
    listed = ", ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(models):
        raise GemwrightError(
            f"There are {len(weights)} weights ({listed}) for {len(models)} models; give one for each."
        )
    if not all(map(math.isfinite, weights)) or abs(math.fsum(weights) - 1) > 1e-6:
        raise GemwrightError(f"The weights {listed} sum to {math.fsum(weights):g}; give numbers that sum to 1.")
    if method == "slerp" and min(weights) <= 0:
        raise GemwrightError(
            f"The weights {listed} are not all above 0, as slerp needs them; leave a model out instead."
        )
    return tuple(weights)


def _check_eta(eta: float, base: str | None) -> None:
    if not 0 <= eta <= 1:
        raise GemwrightError(f"eta is {eta:g}; it is a share between 0, the base, and 1, the average.")
    if base is None and eta != 1:
        raise GemwrightError(f"eta {eta:g} leaves a share to the base; name it with base.")


def _common_config(names: Sequence[str], sources: Sequence[_Source]) -> Config:
    """Return the config that all have, with the fewest rows of padding in the embedding.

    Raises:
        CheckpointError: They differ.
    """
    first = sources[0].checkpoint
    vocabulary, rows = first.vocabulary(), min(source.checkpoint.config.vocab for source in sources)
    for name, source in zip(names[1:], sources[1:], strict=True):
        other = replace(source.checkpoint.config, vocab=first.config.vocab, max_length=first.config.max_length)
        if changed := list(differences(other, first.config)):
            raise CheckpointError(
                f"{name} is of another shape than {names[0]}: {'; '.join(changed[:3])}; merge models of one shape."
            )
        require_same_tokens(
            (names[0], vocabulary, first.config.vocab),
            (name, source.checkpoint.vocabulary(), source.checkpoint.config.vocab),
        )
    return replace(first.config, vocab=rows)
