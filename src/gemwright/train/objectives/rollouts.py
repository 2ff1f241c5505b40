"""Rollouts: replies that the engine samples from the distribution that is trained, with their log-probabilities.

The engine reads the weights of the trainer. Frozen weights are shared: on a CPU, a layer's are a view of the stacked
ones. What is trained is passed anew in each step to the same compiled programs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import tree
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.stack import StackedWeights, stacked_paths, unstack
from gemwright.train.lora import Adapters, Factors
from gemwright.train.recipe import Recipe
from gemwright.weights import LoraTensor, WeightLeaf

_Weights = TypeVar("_Weights", ModelWeights, StackedWeights)


@dataclass(frozen=True)
class Rollouts:
    """Replies, those to the same prompt one after another.

    Attributes:
        tokens: [N, most] ids, 0 after the end.
        logprobs: [N, most] natural logarithm of the probability with which each was sampled, 0 after the end.
        lengths: [N] number of ids, that of the stop id included.
        finished: [N] whether it ends with a stop id.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    lengths: NDArray[np.int32]
    finished: NDArray[np.bool_]


def tempered(config: Config, params: _Weights, temperature: float) -> tuple[Config, _Weights]:
    """Return a model whose probabilities at temperature 1 are those of a model at another temperature.

    The gain of the final norm and the soft cap are divided by the temperature, and so are the logits.
    """
    if temperature == 1.0:
        return config, params
    cap = None if config.final_soft_cap is None else config.final_soft_cap / temperature
    gain = (1.0 + params.final_norm.astype(jnp.float32)) / temperature - 1.0
    return replace(config, final_soft_cap=cap), replace(params, final_norm=gain)


class Sampler:
    """The engine of a run.

    Args:
        config: The model.
        recipe: The settings.
        frozen: The frozen weights; None if all are trained.
        length: Most tokens of a prompt and its reply.
        temperature: Divides the logits of the distribution that is trained and sampled.
    """

    def __init__(
        self, config: Config, recipe: Recipe, frozen: StackedWeights | None, length: int, temperature: float = 1.0
    ):
        self._config, self._recipe, self._length, self._temperature = config, recipe, length, temperature
        self._frozen = None if frozen is None else share_layers(frozen)
        self._prepare = jax.jit(self._unstack)

    def roll_out(
        self,
        trained: Any,
        prompts: Sequence[Sequence[int]],
        copies: int,
        seeds: Sequence[int],
        max_tokens: int,
        stop_ids: Sequence[int],
    ) -> Rollouts:
        """Sample replies with the weights of a step.

        Args:
            trained: The trained weights.
            prompts: Ids of each prompt.
            copies: Number of replies to each.
            seeds: Seed of each reply. The same seed, prompt and weights give the same reply.
            max_tokens: Most ids of a reply.
            stop_ids: Ids that end a reply.
        """
        engine = self.engine(trained)
        state = engine.allocate_state(len(prompts), self._length)
        repeated = [ids for ids in prompts for _ in range(copies)]
        # The whole distribution: no top-k, top-p, min-p or penalty.
        samplings = [Sampling(temperature=1.0, seed=seed) for seed in seeds]
        steps = list(engine.generate(repeated, samplings, max_tokens, 0, None, stop_ids, state, copies=copies))
        tokens = np.stack([step.tokens for step in steps], axis=1)
        logprobs = np.stack([step.logprobs for step in steps if step.logprobs is not None], axis=1)
        made = tokens >= 0
        lengths = np.asarray(np.sum(made, axis=1), np.int32)
        last = tokens[np.arange(len(tokens)), lengths - 1]
        pad = ((0, 0), (0, max_tokens - tokens.shape[1]))
        return Rollouts(
            np.pad(np.where(made, tokens, 0), pad).astype(np.int32),
            np.pad(np.where(made, logprobs, 0.0), pad).astype(np.float32),
            lengths,
            np.isin(last, list(stop_ids)),
        )

    def engine(self, trained: Any) -> Engine:
        """Return the engine with the weights of a step; ids without a piece have their probability, as in training."""
        prepared = self._prepare(trained)
        if self._frozen is None:
            params: ModelWeights = prepared
        else:
            params = _attach(self._frozen, prepared)
        config, params = tempered(self._config, params, self._temperature)
        return Engine(config, params, config.vocab, params.embed.dtype)

    def _unstack(self, trained: Any) -> Any:
        """Return the trained weights layer by layer: all weights, or scaled factors by path in `ModelWeights`."""
        dtype = jnp.dtype(self._recipe.dtype)

        def rounded(leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype)

        if self._recipe.method == "full":
            return unstack(jax.tree.map(rounded, trained))
        scale = self._recipe.alpha / self._recipe.rank
        return split_factors(self._config, trained, scale, dtype)


def split_factors(config: Config, adapters: Adapters, scale: float, dtype: Any) -> dict[str, Factors]:
    """Return the factors of each matrix by its path in `ModelWeights`, a [rank, in] and the scaled b [out, rank]."""
    paths = stacked_paths(config)
    return {
        path: Factors(factors.a[repeat].astype(dtype), (factors.b[repeat] * scale).astype(dtype))
        for stacked, factors in adapters.items()
        for repeat, path in enumerate(paths[stacked])
    }


def _attach(params: ModelWeights, factors: dict[str, Factors]) -> ModelWeights:
    def update(path: str, leaf: Any) -> Any:
        return LoraTensor(leaf, factors[path].a, factors[path].b, None) if path in factors else leaf

    def is_weight(leaf: object) -> bool:
        return isinstance(leaf, jax.Array | WeightLeaf)

    return tree.map_with_path(update, params, is_weight)


def share_layers(params: StackedWeights) -> ModelWeights:
    """Return stacked weights layer by layer, as views of their memory on a CPU and as copies elsewhere."""
    if jax.default_backend() != "cpu":
        return unstack(params)
    views = jax.tree.map(np.asarray, replace(params, embed=None, final_norm=None, head=None))  # type: ignore[arg-type]
    layers = unstack(views).layers
    shared = jax.tree.map(jax.device_put, layers)
    return ModelWeights(params.embed, shared, params.final_norm, params.head, None)


def seeds_of(seed: int, step: int, records: Sequence[int], copies: int) -> list[int]:
    """Return the seed of each reply in a step, which depends on nothing else than the run's seed, record and number."""

    def draw(record: int, copy: int) -> int:
        return int(np.random.SeedSequence((seed, step, record, copy)).generate_state(1)[0])

    return [draw(record, copy) for record in records for copy in range(copies)]
