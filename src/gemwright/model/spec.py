"""The one table of weights: what each is called, its shape, the names of its axes and how it starts."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gemwright import tree
from gemwright.model.config import Attention, Config, Layer, Mlp
from gemwright.weights import Weight


@tree.node
class AttentionWeights:
    """q [N, H, D], k and v [K, H, D], o [D, N, H]; the norms' gains [H] where the model has them."""

    q: Weight
    k: Weight
    v: Weight
    o: Weight
    q_norm: Array | None
    k_norm: Array | None


@tree.node
class MlpWeights:
    """gate and up [F, D], down [D, F]."""

    gate: Weight
    up: Weight
    down: Weight


@tree.node
class LayerWeights:
    """One layer; the norms' gains are [D], and the post norms are None where the model has none."""

    mixer_norm: Array
    mixer: AttentionWeights
    mixer_post_norm: Array | None
    mlp_norm: Array
    mlp: MlpWeights
    mlp_post_norm: Array | None


@tree.node
class ModelWeights:
    """The whole model: embed [V, D], the layers, final_norm [D], and head [V, D] unless it is tied to embed."""

    embed: Weight
    layers: tuple[LayerWeights, ...]
    final_norm: Array
    head: Weight | None


@dataclass(frozen=True)
class Param:
    """The description of one weight that stands in its place in an abstract tree."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "zeros"]
    fan_in: int = 1

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def spec(config: Config) -> ModelWeights:
    """The abstract weights of a model: `Param` leaves."""
    table = _matrix((config.vocab, config.width), ("vocab", "embed"), fan_in=config.width)
    return ModelWeights(
        embed=table,
        layers=tuple(_layer(config.width, layer) for layer in config.layers),
        final_norm=_gain(config.width),
        head=None if config.tied else table,
    )


def init(config: Config, key: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> ModelWeights:
    """Random weights: truncated normal with variance 1 / fan-in, and zero gains."""
    leaves = tree.flatten(spec(config))
    keys = dict(zip(leaves, jax.random.split(key, len(leaves)), strict=True))

    def start(path: str, param: Param) -> jax.Array:
        if param.init == "zeros":
            return jnp.zeros(param.shape, dtype)
        normal = jax.random.truncated_normal(keys[path], -2.0, 2.0, param.shape, jnp.float32)
        return (normal * param.fan_in**-0.5).astype(dtype)

    return tree.map_with_path(start, spec(config))


def parameter_count(config: Config) -> int:
    """Number of parameters, a tied embedding counted once."""
    return sum(param.size for param in tree.flatten(spec(config)).values())


def _layer(width: int, layer: Layer) -> LayerWeights:
    post = _gain(width) if layer.post_norms else None
    return LayerWeights(
        mixer_norm=_gain(width),
        mixer=_attention(width, layer.mixer),
        mixer_post_norm=post,
        mlp_norm=_gain(width),
        mlp=_mlp(width, layer.mlp),
        mlp_post_norm=post,
    )


def _attention(D: int, mixer: Attention) -> AttentionWeights:
    N, K, H = mixer.heads, mixer.kv_heads, mixer.head_dim
    head_norm = _gain(H, "head_dim") if mixer.qk_norm else None
    return AttentionWeights(
        q=_matrix((N, H, D), ("heads", "head_dim", "embed"), fan_in=D),
        k=_matrix((K, H, D), ("kv_heads", "head_dim", "embed"), fan_in=D),
        v=_matrix((K, H, D), ("kv_heads", "head_dim", "embed"), fan_in=D),
        o=_matrix((D, N, H), ("embed", "heads", "head_dim"), fan_in=N * H),
        q_norm=head_norm,
        k_norm=head_norm,
    )


def _mlp(D: int, mlp: Mlp) -> MlpWeights:
    F = mlp.hidden
    return MlpWeights(
        gate=_matrix((F, D), ("hidden", "embed"), fan_in=D),
        up=_matrix((F, D), ("hidden", "embed"), fan_in=D),
        down=_matrix((D, F), ("embed", "hidden"), fan_in=F),
    )


# A description stands where a weight will stand, so both are typed as the leaf's place: Any.
def _matrix(shape: tuple[int, ...], axes: tuple[str, ...], *, fan_in: int) -> Any:
    return Param(shape, axes, "normal", fan_in)


def _gain(size: int, axis: str = "embed") -> Any:
    return Param((size,), (axis,), "zeros")
