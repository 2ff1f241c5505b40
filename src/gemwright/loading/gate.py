"""Run a written model beside its source, and refuse it if they differ by more than rounding explains."""

import itertools
import math
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import memory, tree
from gemwright.api import Model
from gemwright.checkpoint.convert import DTYPES, source_dtype
from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.mixtures import choose_encoding
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.tower import tower_path
from gemwright.errors import GemwrightError
from gemwright.loading.model import forecast, load_model
from gemwright.model.config import Config
from gemwright.runtime import heap
from gemwright.weights import LoraTensor, PanelTensor, to_matrix

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def is_prime(n: int) -> bool:\n",
    "Q: A box holds 12 eggs. How many eggs are in 7 boxes?\nA:",
)
CONTINUATION = 16
"""Number of tokens that the source adds to each prompt; they are compared, too."""
ROWS = 64
"""Number of rows of a matrix on which the error of rounding it is measured."""
FLOAT32_ERROR = 2.0**-25
"""Relative error of a product of float32 values."""
FLOOR = 1e-3
"""Difference of log-probabilities that float32 products in another order may make."""
MARGIN, LARGEST_MARGIN = 2.0, 4.0
"""Bounds on the root mean square and on the largest difference, in units of those of random rounding errors."""


class Difference(NamedTuple):
    """Differences of the natural log-probabilities of tokens: the root of their mean square, and the largest."""

    typical: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """How a written model compares with its source.

    Attributes:
        found: Differences between the two.
        bound: Differences that rounding explains.
        agreement: Share of the source's greedy tokens that the written model chooses, too.
        nll: Mean negative log-likelihood per token of the source and of the written model, in nats.
        tokens: Number of tokens compared.
    """

    found: Difference
    bound: Difference
    agreement: float
    nll: tuple[float, float]
    tokens: int

    @property
    def passes(self) -> bool:
        """Whether rounding explains the differences; not if one is not a number."""
        return all(found <= bound for found, bound in zip(self.found, self.bound, strict=True))

    def __str__(self) -> str:
        return (
            f"log-probabilities of {self.tokens} tokens differ by {self.found.typical:.2g}, at most "
            f"{self.found.largest:.2g} (rounding explains {self.bound.typical:.2g}, at most {self.bound.largest:.2g}); "
            f"NLL is {self.nll[1]:.4f} nats a token, that of the source {self.nll[0]:.4f}; "
            f"{self.agreement:.0%} of the tokens of greedy continuations agree"
        )


@contextmanager
def checked(
    source: Path,
    target: Path,
    dtype: str | None,
    adapters: Mapping[Path, float],
    report: Callable[[Comparison], None],
    variant: str | None = None,
) -> Generator[None]:
    """Check the model that the `with` block writes against its source; remove it if it fails.

    Args:
        source: The checkpoint that it is made of.
        target: The folder or file that the block makes.
        dtype: The dtype of its matrices, such as q8_0; None for that of the source.
        adapters: Path and weight of each adapter that is merged.
        report: Called with the comparison if the model passes.
        variant: Name of the source's published variant, for an Orbax tree or an `.npz`.

    Raises:
        GemwrightError: The models do not fit in memory in float32 (before the block runs), the target cannot be loaded,
            splits a text into other tokens, or differs by more than rounding.
    """
    checkpoint = open_checkpoint(source, variant)
    dtype = dtype or source_dtype(checkpoint)
    try:
        memory.require(forecast(checkpoint, "float32"), str(source))
    except GemwrightError as error:
        raise GemwrightError(
            f"{source} is too large to be run in float32, which checks what is written; convert it with --no-check."
        ) from error
    yield
    try:
        comparison = compare(source, target, dtype, adapters, variant)
        if not comparison.passes:
            raise GemwrightError(
                f"{target} was removed, as it is not its source rounded to {dtype}: {comparison}; "
                "report this, or use the adapter unmerged."
            )
    except BaseException:
        remove(target)
        raise
    report(comparison)


def remove(target: Path) -> None:
    """Remove a model that was written, and the file of its vision tower."""
    if target.is_dir():
        shutil.rmtree(target)
        return
    target.unlink(missing_ok=True)
    tower_path(target).unlink(missing_ok=True)


def compare(
    source: Path,
    target: Path,
    dtype: str | Mapping[str, str],
    adapters: Mapping[Path, float],
    variant: str | None = None,
) -> Comparison:
    """Compare a written model with its source and adapters, both in float32, one after the other in memory.

    The bounds are multiples of the differences that random errors of the size of the rounding of each matrix make to
    the source. These are made without the code that merges and writes, so that its errors are found.

    Args:
        source: The checkpoint that the target is made of.
        target: The written checkpoint.
        dtype: The dtype of its matrices, such as q8_0; or the encoding of each of its weights, by path.
        adapters: Path and weight of each adapter that is merged.
        variant: Name of the source's published variant, for an Orbax tree or an `.npz`.

    Raises:
        GemwrightError: A model cannot be loaded, or the target splits a text into other tokens.
    """
    model = load_model(source, "float32", variant=variant, adapters=adapters)
    prompts = _encode(model, model.tuned and bool(model.chat_template.end_ids))
    continued = _generate(model, prompts)
    texts = [prompt + ids for prompt, ids in zip(prompts, continued, strict=True)]
    expected = _score(model, texts)
    model = _with_noise(model, dtype)
    noise = _difference(_score(model, texts), expected)
    del model
    heap.trim()
    written = load_model(target, "float32")
    if _encode(written, len(prompts) > len(PROMPTS)) != prompts:
        raise GemwrightError(f"{target} splits texts into other tokens than its source; use the source's tokenizer.")
    scores = _score(written, texts)
    found = _difference(scores, expected)
    pairs = zip(continued, _generate(written, prompts), strict=True)
    same = [a == b for theirs, ours in pairs for a, b in zip(theirs, ours, strict=False)]
    bound = Difference(max(FLOOR, MARGIN * noise.typical), max(FLOOR, LARGEST_MARGIN * noise.largest))
    nll = float(-expected.mean()), float(-scores.mean())
    return Comparison(found, bound, float(np.mean(same or [True])), nll, len(expected))


def _encode(model: Model, chat: bool) -> list[list[int]]:
    prompts = [model.encode(text) for text in PROMPTS]
    return [*prompts, model.encode_chat([{"role": "user", "content": PROMPTS[0]}])] if chat else prompts


def _generate(model: Model, prompts: Sequence[list[int]]) -> list[list[int]]:
    return [done.tokens for done in model.generate(prompts, max_tokens=CONTINUATION, temperature=0.0)]


def _score(model: Model, texts: Sequence[list[int]]) -> NDArray[np.float64]:
    return np.concatenate([score.logprobs for score in model.score(texts)])


def _difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> Difference:
    differences = np.abs(found - expected)
    return Difference(float(np.sqrt(np.mean(np.square(differences)))), float(differences.max()))


def rounding_error(encoding: str, values: NDArray[np.float32]) -> float:
    """Return the root mean square error of rows of values in an encoding of GGUF, relative to theirs."""
    decoded = np.empty_like(values)
    ggml.decode(encoding, ggml.encode(encoding, values), decoded)
    return float(np.sqrt(np.mean(np.square(decoded - values)) / np.mean(np.square(values))))


def _noise_size(matrix: jax.Array, encoding: str) -> float:
    """Return the relative error of rounding a matrix, or normally distributed values if the matrix is rounded before.

    It is measured on `ROWS` rows.
    """
    rows = np.asarray(matrix[:: max(1, len(matrix) // ROWS)][:ROWS])
    normal = np.random.default_rng(0).standard_normal(rows.shape, np.float32)
    own = rounding_error(encoding, rows) if rows.any() else 0.0
    return max(own, rounding_error(encoding, normal), FLOAT32_ERROR)


def _with_noise(model: Model, dtype: str | Mapping[str, str]) -> Model:
    """Return a model whose weights, but not their updates, have random errors of the size of their rounding.

    The weights of the given model are deleted one by one, so that memory holds them once. Those of the vision tower,
    which texts do not use, remain.
    """
    config, seeds = model.engine.config, itertools.count()

    def add(path: str, leaf: Any) -> Any:
        if path.startswith("vision."):
            return leaf
        if isinstance(leaf, LoraTensor):
            return replace(leaf, base=add(path, leaf.base))
        inputs = math.prod(leaf.shape[1:]) if path.endswith(".o") else leaf.shape[-1]
        matrix = to_matrix(leaf, math.prod(leaf.shape) // inputs)
        encoding = _choose_encoding(dtype, path, leaf.shape, inputs, config)
        noisy = _add_noise(matrix, _noise_size(matrix, encoding), next(seeds)).reshape(leaf.shape)
        for array in jax.tree.leaves((leaf, matrix)):
            array.delete()
        return noisy

    params = tree.map_with_path(add, model.engine.params, lambda leaf: isinstance(leaf, LoraTensor | PanelTensor))
    return replace(model, engine=replace(model.engine, params=params))


def _choose_encoding(
    dtype: str | Mapping[str, str], path: str, shape: tuple[int, ...], inputs: int, config: Config
) -> str:
    """Return the encoding of a weight in the written model."""
    if not isinstance(dtype, str):
        return dtype.get(path) or dtype["embed"]  # a tied head
    return "F32" if len(shape) == 1 and dtype not in DTYPES else choose_encoding(dtype, path, inputs, config)


@jax.jit
def _add_noise(values: jax.Array, size: jax.Array, seed: jax.Array) -> jax.Array:
    # A hash of the index, which XLA computes without an array of random numbers.
    bits = jnp.arange(values.size, dtype=jnp.uint32) + seed.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-23 - 1  # with a variance of 1/3
    return values * (1 + size * math.sqrt(3) * uniform.reshape(values.shape))
