"""The weights of a model: the name, shape, axes and initialization of each, in one table."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from gemwright import tree
from gemwright.kernels.rg_lru import SHARPNESS
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Vision
from gemwright.weights import Weight


@tree.node
class AttentionWeights:
    """Weights q [N, H, D], k and v [K, H, D], o [D, N, H]; optional bias of o [D] and gains of the norms [H]."""

    q: Weight
    k: Weight
    v: Weight
    o: Weight
    o_bias: Array | None
    q_norm: Array | None
    k_norm: Array | None


@tree.node
class RecurrentWeights:
    """Weights x and y [R, D], conv [taps, R], gates [blocks, in, out], decay [R], out [D, R]; a bias for each output.

    `conv[-1]` multiplies the current token. A channel decays at the rate softplus(decay).
    """

    x: Weight
    x_bias: Array
    y: Weight
    y_bias: Array
    conv: Array
    conv_bias: Array
    input_gate: Array
    input_gate_bias: Array
    decay_gate: Array
    decay_gate_bias: Array
    decay: Array
    out: Weight
    out_bias: Array


@tree.node
class MlpWeights:
    """Weights gate and up [F, D], down [D, F]; optional biases of the outputs."""

    gate: Weight
    gate_bias: Array | None
    up: Weight
    up_bias: Array | None
    down: Weight
    down_bias: Array | None


@tree.node
class LayerWeights:
    """Weights of one layer; gains of norms are [D], and None for norms that the model does not have."""

    mixer_norm: Array
    mixer: AttentionWeights | RecurrentWeights
    mixer_post_norm: Array | None
    mlp_norm: Array
    mlp: MlpWeights
    mlp_post_norm: Array | None


@tree.node
class VisionLayerWeights:
    """Weights of one layer of the tower: q, k, v and o [E, E], up [F, E], down [E, F], gains [E]; each has a bias."""

    mixer_norm: Array
    mixer_norm_bias: Array
    q: Weight
    q_bias: Array
    k: Weight
    k_bias: Array
    v: Weight
    v_bias: Array
    o: Weight
    o_bias: Array
    mlp_norm: Array
    mlp_norm_bias: Array
    up: Weight
    up_bias: Array
    down: Weight
    down_bias: Array


@tree.node
class VisionWeights:
    """Weights of the tower and the projector.

    patch [E, 3 * side * side] over channel, row and column; positions [patches, E]; gain and bias [E] of the final
    LayerNorm; project [D, E], with a bias [D], or after an RMSNorm with gain [E].
    """

    patch: Weight
    patch_bias: Array
    positions: Array
    layers: tuple[VisionLayerWeights, ...]
    final_norm: Array
    final_norm_bias: Array
    project_norm: Array | None
    project: Weight
    project_bias: Array | None


@tree.node
class ModelWeights:
    """Weights of a model: embed [V, D], layers, final_norm [D], head [V, D] unless tied to embed, and the tower."""

    embed: Weight
    layers: tuple[LayerWeights, ...]
    final_norm: Array
    head: Weight | None
    vision: VisionWeights | None


Init: TypeAlias = Literal["normal", "zeros", "ones", "decay"]
CONV_SCALE = 0.01
"""Variance of the temporal convolution at the start, times its number of taps."""
DECAYS = 0.9, 0.999
"""Least and largest share of its state that a channel of an RG-LRU keeps per step at the start, if its gate is open."""


@dataclass(frozen=True)
class ParamSpec:
    """The description of one weight, a leaf of an abstract tree.

    A `linear` weight is only multiplied or looked up, so it may be any kind of `Weight`. One that is `normal` starts
    with a variance of `scale / fan_in`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    fan_in: int = 1
    linear: bool = False
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def param_specs(config: Config) -> ModelWeights:
    """Return the abstract weights of a model, with `ParamSpec` leaves."""
    table = _matrix((config.vocab, config.width), ("vocab", "embed"), fan_in=config.width)
    return ModelWeights(
        embed=table,
        layers=tuple(_layer(config.width, layer, 2 / len(config.layers)) for layer in config.layers),
        final_norm=_zeros(config.width),
        head=None if config.tied else table,
        vision=None if config.vision is None else _vision(config.width, config.vision),
    )


def init(config: Config, key: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> ModelWeights:
    """Return random weights, distributed as in RecurrentGemma's released code.

    Linear maps, gates and the embedding are normal with variance 1 / fan-in, the last map of a residual branch with
    2 / number of layers times that, and the temporal convolution with 0.01 times that. Gains are neutral, biases zero.
    The decay of an RG-LRU with open gates is uniform in [0.9, 0.999] (arXiv:2402.19427, 2.4); the released code draws
    its eighth root there.

    Args:
        config: The model.
        key: The key of the random numbers. Every weight depends on it and on its place in the tree only.
        dtype: Dtype of the weights.
    """
    leaves = tree.flatten(param_specs(config))
    keys = dict(zip(leaves, jax.random.split(key, len(leaves)), strict=True))
    return tree.map_with_path(lambda path, spec: start(spec, keys[path], dtype), param_specs(config))


def start(spec: ParamSpec, key: jax.Array, dtype: jnp.dtype | type) -> jax.Array:
    """Return the random start of one weight; see `init`."""
    if spec.init in ("zeros", "ones"):
        return jnp.full(spec.shape, float(spec.init == "ones"), dtype)
    if spec.init == "decay":
        kept = jax.random.uniform(key, spec.shape, jnp.float32, *DECAYS)
        return jnp.log(jnp.expm1(-jnp.log(kept) / SHARPNESS)).astype(dtype)
    normal = jax.random.normal(key, spec.shape, jnp.float32)
    return (normal * (spec.scale / spec.fan_in) ** 0.5).astype(dtype)


def parameter_count(config: Config) -> int:
    """Return the number of parameters; a tied embedding counts once."""
    return sum(param.size for param in tree.flatten(param_specs(config)).values())


def _layer(width: int, layer: Layer, scale: float) -> LayerWeights:
    """Return the weights of a layer, of which the last map of each branch starts with a `scale` of its variance."""
    post = _zeros(width) if layer.post_norms else None
    return LayerWeights(
        mixer_norm=_zeros(width),
        mixer=_mixer(width, layer.mixer, scale),
        mixer_post_norm=post,
        mlp_norm=_zeros(width),
        mlp=_mlp(width, layer.mlp, scale),
        mlp_post_norm=post,
    )


def _mixer(D: int, mixer: Attention | Recurrent, scale: float) -> AttentionWeights | RecurrentWeights:
    return _recurrent(D, mixer, scale) if isinstance(mixer, Recurrent) else _attention(D, mixer, scale)


def _attention(D: int, mixer: Attention, scale: float) -> AttentionWeights:
    N, K, H = mixer.heads, mixer.kv_heads, mixer.head_dim
    head_norm = _zeros(H, "head_dim") if mixer.qk_norm else None
    return AttentionWeights(
        q=_matrix((N, H, D), ("heads", "head_dim", "embed"), fan_in=D),
        k=_matrix((K, H, D), ("kv_heads", "head_dim", "embed"), fan_in=D),
        v=_matrix((K, H, D), ("kv_heads", "head_dim", "embed"), fan_in=D),
        o=_matrix((D, N, H), ("embed", "heads", "head_dim"), fan_in=N * H, scale=scale),
        o_bias=_zeros(D) if mixer.out_bias else None,
        q_norm=head_norm,
        k_norm=head_norm,
    )


def _recurrent(D: int, mixer: Recurrent, scale: float) -> RecurrentWeights:
    R, block = mixer.width, mixer.width // mixer.blocks
    gate_axes = ("blocks", "recurrent_in", "recurrent_out")
    return RecurrentWeights(
        x=_matrix((R, D), ("recurrent", "embed"), fan_in=D),
        x_bias=_zeros(R, "recurrent"),
        y=_matrix((R, D), ("recurrent", "embed"), fan_in=D),
        y_bias=_zeros(R, "recurrent"),
        conv=_array((mixer.conv_width, R), ("taps", "recurrent"), "normal", mixer.conv_width, CONV_SCALE),
        conv_bias=_zeros(R, "recurrent"),
        input_gate=_array((mixer.blocks, block, block), gate_axes, "normal", block),
        input_gate_bias=_array((mixer.blocks, block), gate_axes[::2], "zeros"),
        decay_gate=_array((mixer.blocks, block, block), gate_axes, "normal", block),
        decay_gate_bias=_array((mixer.blocks, block), gate_axes[::2], "zeros"),
        decay=_array((R,), ("recurrent",), "decay"),
        out=_matrix((D, R), ("embed", "recurrent"), fan_in=R, scale=scale),
        out_bias=_zeros(D),
    )


def _mlp(D: int, mlp: Mlp, scale: float) -> MlpWeights:
    F = mlp.hidden
    return MlpWeights(
        gate=_matrix((F, D), ("hidden", "embed"), fan_in=D),
        gate_bias=_zeros(F, "hidden") if mlp.bias else None,
        up=_matrix((F, D), ("hidden", "embed"), fan_in=D),
        up_bias=_zeros(F, "hidden") if mlp.bias else None,
        down=_matrix((D, F), ("embed", "hidden"), fan_in=F, scale=scale),
        down_bias=_zeros(D) if mlp.bias else None,
    )


def _vision(D: int, vision: Vision) -> VisionWeights:
    E, pixels = vision.width, 3 * vision.patch**2
    return VisionWeights(
        patch=_matrix((E, pixels), ("vision", "pixels"), fan_in=pixels),
        patch_bias=_zeros(E, "vision"),
        positions=_array((vision.grid**2, E), ("patches", "vision"), "normal", E),
        layers=(_vision_layer(vision),) * vision.depth,
        final_norm=_array((E,), ("vision",), "ones"),
        final_norm_bias=_zeros(E, "vision"),
        project_norm=_zeros(E, "vision") if vision.projector == "normed" else None,
        project=_matrix((D, E), ("embed", "vision"), fan_in=E),
        project_bias=_zeros(D) if vision.projector == "affine" else None,
    )


def _vision_layer(vision: Vision) -> VisionLayerWeights:
    E, F = vision.width, vision.hidden
    square = _matrix((E, E), ("vision_out", "vision"), fan_in=E)
    gain, bias = _array((E,), ("vision",), "ones"), _zeros(E, "vision")
    return VisionLayerWeights(
        mixer_norm=gain,
        mixer_norm_bias=bias,
        q=square,
        q_bias=bias,
        k=square,
        k_bias=bias,
        v=square,
        v_bias=bias,
        o=square,
        o_bias=bias,
        mlp_norm=gain,
        mlp_norm_bias=bias,
        up=_matrix((F, E), ("hidden", "vision"), fan_in=E),
        up_bias=_zeros(F, "hidden"),
        down=_matrix((E, F), ("vision", "hidden"), fan_in=F),
        down_bias=bias,
    )


# Typed Any, because a ParamSpec takes the place of a weight.
def _matrix(shape: tuple[int, ...], axes: tuple[str, ...], *, fan_in: int, scale: float = 1.0) -> Any:
    return ParamSpec(shape, axes, "normal", fan_in, linear=True, scale=scale)


def _array(shape: tuple[int, ...], axes: tuple[str, ...], init: Init, fan_in: int = 1, scale: float = 1.0) -> Any:
    return ParamSpec(shape, axes, init, fan_in, scale=scale)


def _zeros(size: int, axis: str = "embed") -> Any:
    return ParamSpec((size,), (axis,), "zeros")
