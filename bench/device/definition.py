"""All use of gemwright in the accelerator benchmark: small configurations, random weights, programs and costs."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemwright import ops, tree, weights
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.families import find_family
from gemwright.generate.engine import Engine
from gemwright.generate.prompts import Prompt
from gemwright.generate.sampling import Sampling
from gemwright.kernels import choice
from gemwright.kernels.self_attention import attend_uncached
from gemwright.model import block, transformer, vision
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, Vision, pattern, stages
from gemwright.model.params import ModelWeights, param_specs, parameter_count
from gemwright.model.state import DecodeState, Positions, empty_state
from gemwright.model.transformer import SoftTokens
from gemwright.text.image_format import SOFT_TOKEN
from gemwright.typing import Array
from gemwright.variants import VARIANTS

__all__ = ["SOFT", "Config", "Prompt", "parameter_count", "to_huggingface"]

SOFT = SOFT_TOKEN
"""Id of a soft token."""
WINDOW = 7
WIDTH, VOCAB, MAX_LENGTH = 64, 128, 4096  # the square root of the width is exact in bfloat16
MEANS = {"normal": 0.0, "zeros": 0.0, "ones": 1.0, "decay": -4.0}
"""Means of random weights by `ParamSpec.init`; with a decay of -4 a state keeps about 0.93 per step."""


def _decoder(depth: int, *mixers: Attention, post_norms: bool = True, cap: float | None = None) -> Config:
    kinds = [Layer(mixer, Mlp(96), post_norms) for mixer in mixers]
    return Config(WIDTH, VOCAB, pattern(depth, *kinds), MAX_LENGTH, final_soft_cap=cap)


def _recurrent() -> Config:
    mlp = Mlp(96, bias=True)
    attention = Attention(4, 1, 16, 16.0, rope=Rope(fraction=0.5), window=WINDOW, out_bias=True)
    layers = Layer(Recurrent(WIDTH, 4), mlp), Layer(Recurrent(WIDTH, 4), mlp), Layer(attention, mlp)
    return Config(WIDTH, VOCAB, layers, MAX_LENGTH, final_soft_cap=30.0)


_GROUPED = Attention(4, 2, head_dim=16, query_scalar=24.0, soft_cap=5.0)
_QK_NORM = Attention(4, 1, head_dim=16, query_scalar=16.0, rope=Rope(1e6, 8.0), qk_norm=True)
_GEMMA_1 = _decoder(2, Attention(4, 1, 16, 16.0), post_norms=False)
_GEMMA_2 = _decoder(4, replace(_GROUPED, window=WINDOW), _GROUPED, cap=10.0)
_GEMMA_3 = _decoder(2, replace(_QK_NORM, window=WINDOW, rope=Rope()), _QK_NORM)
_TOWER = {"patch": 7, "width": 48, "depth": 2, "heads": 3, "hidden": 80}
ARCHITECTURES = {
    "Gemma 1": _GEMMA_1,
    "Gemma 2": _GEMMA_2,
    "Gemma 3": _GEMMA_3,
    "RecurrentGemma": _recurrent(),
    "PaliGemma": replace(_GEMMA_1, vision=Vision(28, 16, "affine", **_TOWER)),
    "Gemma 3, images": replace(_GEMMA_3, vision=Vision(28, 4, "normed", **_TOWER)),
}
"""A small configuration of every architecture."""


def describe_attention() -> str:
    """Return the implementation of attention without a cache on the default device."""
    return choice.describe_choices()["attention without a cache"]


def attend(q: Array, k: Array, v: Array) -> Array:
    """Attend without a cache, with a window and a soft cap, at sizes that a flash kernel takes."""
    batch, length, _, width = q.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    rotation = ops.rotation(positions, width, 10000.0, 1.0)
    return attend_uncached(q, k, v, positions, rotation, None, window=200, scale=width**-0.5, cap=5.0, eps=1e-6)


def shape(model: str) -> Config:
    """Return the configuration of a published variant, or of an architecture above."""
    return ARCHITECTURES[model] if model in ARCHITECTURES else VARIANTS[model].config


def random_weights(config: Config, dtype: str, stacked: int | None = None) -> ModelWeights:
    """Return random weights on the default device; no weight is constant.

    Args:
        config: The model.
        dtype: Dtype of the weights.
        stacked: Length of a leading axis of the layers' weights, for `scanned_loss`.
    """
    table = param_specs(config)
    leaves = tree.flatten(table)
    keys = dict(zip(leaves, jax.random.split(jax.random.key(0), len(leaves)), strict=True))

    def make(path: str, param: Any) -> Array:
        lead = () if stacked is None or not path.startswith("layers.") else (stacked,)
        return _normal(keys[path], (*lead, *param.shape), dtype, *map(jnp.float32, _moments(param)))

    return tree.map_with_path(make, table)


def random_host_weights(config: Config, dtype: str) -> ModelWeights:
    """Return random weights as numpy arrays, without compilation."""
    numbers = np.random.default_rng(0)

    def make(path: str, param: Any) -> Any:
        mean, deviation = _moments(param)
        return numbers.normal(mean, deviation, param.shape).astype(jnp.dtype(dtype))

    return tree.map_with_path(make, param_specs(config))


def _moments(param: Any) -> tuple[float, float]:
    return MEANS[param.init], param.fan_in**-0.5 if param.init == "normal" else 0.1


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: Array, shape: tuple[int, ...], dtype: str, mean: Array, deviation: Array) -> Array:
    numbers = jax.random.normal(key, shape, jnp.dtype(dtype))
    return numbers * deviation.astype(dtype) + mean.astype(dtype)


def vision_groups(config: Config, soft: Array, batch: int, length: int) -> tuple[Array, Array]:
    """Return ids and groups [B, T] of prompts that hold soft tokens, as PaliGemma or Gemma 3 arranges them."""
    assert config.vision is not None
    ids = np.random.default_rng(1).integers(3, config.vocab, (batch, length), dtype=np.int32)
    prefix = find_family(config).image_prompt == "prefix"
    groups = np.full((batch, length), 0 if prefix else -1, np.int32)
    first = 0 if prefix else 2
    places = slice(first, first + soft.shape[1])
    ids[:, places], groups[:, places] = SOFT, 0
    return ids, groups


def encode(config: Config, params: ModelWeights, pixels: Array) -> Array:
    """Return the soft tokens of images."""
    assert config.vision is not None
    assert params.vision is not None
    return vision.encode(config.vision, params.vision, pixels)


@functools.partial(jax.jit, static_argnames="config")
def forward(
    config: Config,
    params: ModelWeights,
    tokens: Array,
    valid: Array | None,
    soft: tuple[Array, Array] | None,
    state: DecodeState | None,
) -> tuple[Array, DecodeState | None]:
    """Return logits [B, T, V] and the state after the tokens; `soft` is embeddings [B, T, D] and groups [B, T]."""
    soft_tokens = None if soft is None else SoftTokens(*soft)
    hidden, state = transformer.forward(config, params, tokens, state, valid=valid, soft_tokens=soft_tokens)
    return transformer.logits(config, params, hidden), state


def empty(config: Config, batch: int, dtype: Any) -> DecodeState:
    """Return the state of empty sequences."""
    return empty_state(config, batch, 64, dtype)


def generate(config: Config, params: ModelWeights, prompts: Sequence[Any], count: int) -> Iterator[np.ndarray]:
    """Yield the greedy tokens [B] of each step of the engine."""
    engine = Engine(config, params, config.vocab, params.final_norm.dtype)
    for step in engine.generate(prompts, [Sampling()] * len(prompts), count):
        yield step.tokens


def period(config: Config) -> tuple[Config, int]:
    """Return the model of one repetition of the layer pattern, and the number of repetitions."""
    (layers, repeats), *rest = stages(config.layers)
    assert not rest, "the layers do not repeat a whole number of times"
    return replace(config, layers=layers), repeats


def loss(config: Config, params: ModelWeights, tokens: Array) -> Array:
    """Return the mean cross-entropy of next-token prediction on tokens [B, T + 1], without a scan."""
    hidden, _ = transformer.forward(config, params, tokens[:, :-1])
    return _cross_entropy(config, params, hidden, tokens)


def scanned_loss(one: Config, params: ModelWeights, tokens: Array) -> Array:
    """Return `loss` by a scan over repetitions of the pattern, with rematerialization.

    Args:
        one: The model of one repetition, from `period`.
        params: Weights with a leading axis of repetitions in their layers.
        tokens: Token ids [B, T + 1].
    """
    B, T = tokens[:, :-1].shape
    positions = Positions(jnp.broadcast_to(jnp.arange(T), (B, T)), None, jnp.zeros((B,), jnp.int32))
    apply = jax.checkpoint(block.apply, static_argnums=(0, 5))

    def repetition(x: Array, layers: tuple[Any, ...]) -> tuple[Array, None]:
        for layer, layer_params in zip(one.layers, layers, strict=True):
            x, _ = apply(layer, layer_params, x, positions, None, one.norm_eps)
        return x, None

    x = weights.rows(params.embed, tokens[:, :-1])
    x = x * jnp.asarray(one.width**0.5 if one.embed_scale is None else one.embed_scale, x.dtype)
    x, _ = jax.lax.scan(repetition, x, params.layers)
    return _cross_entropy(one, params, ops.rms_norm(x, params.final_norm, one.norm_eps), tokens)


def _cross_entropy(config: Config, params: ModelWeights, hidden: Array, tokens: Array) -> Array:
    logits = transformer.logits(config, params, hidden)
    target = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - target)


def count_bytes_per_step(config: Config, batch: int, length: int) -> int:
    """Return the bytes of bfloat16 weights, keys and values read to decode one token of each sequence."""
    attention = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    cached = sum(2 * mixer.kv_heads * mixer.head_dim * min(mixer.window or length, length) for mixer in attention)
    return 2 * (parameter_count(config) + batch * cached)


def count_prefill_flops(config: Config, batch: int, length: int) -> int:
    """Return the floating-point operations of prefill: layers for all tokens, the head for the last one."""
    head = config.vocab * config.width
    attended = 0
    for mixer in [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]:
        window = min(mixer.window or length, length)
        attended += 2 * mixer.heads * mixer.head_dim * (window * length - window * (window - 1) // 2)
    return 2 * batch * ((parameter_count(config) - head) * length + head + attended)
