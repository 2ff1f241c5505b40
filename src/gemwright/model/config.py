"""The configuration of a model: numbers only, frozen and hashable, without files, devices or tokenizers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the angle of dimension i at position p is p / scale * base^(-2i / H).

    The first `fraction` of each head is rotated, and H is the width of that part.
    """

    base: float = 10_000.0
    scale: float = 1.0
    fraction: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Causal attention to all tokens, or to the last `window` of them, the token itself included."""

    heads: int
    kv_heads: int
    head_dim: int
    query_scalar: float
    """Scores are multiplied by query_scalar^(-1/2)."""
    rope: Rope = Rope()
    window: int | None = None
    soft_cap: float | None = None
    qk_norm: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class Recurrent:
    """Griffin's recurrent block (arXiv:2402.19427): a short convolution and an RG-LRU, times a gate."""

    width: int
    blocks: int
    """Number of blocks of the RG-LRU's gates, whose linear maps are block-diagonal."""
    conv_width: int = 4


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: down(gelu(gate(x)) * up(x)), with branches of width `hidden`."""

    hidden: int
    bias: bool = False


Mixer: TypeAlias = Attention | Recurrent


@dataclass(frozen=True)
class Layer:
    """One residual layer: a mixer over time, then an MLP, each with a norm before and, optionally, after."""

    mixer: Mixer
    mlp: Mlp
    post_norms: bool = False


@dataclass(frozen=True)
class Vision:
    """A SigLIP tower for square images, and its projection to soft tokens of the decoder.

    An image is divided into patches of `patch` x `patch` pixels; the tower's outputs are averaged down to `tokens`
    vectors, then projected to the decoder's width.
    """

    image_size: int
    tokens: int
    projector: Literal["affine", "normed"]
    """A linear map with a bias, or an RMSNorm and a linear map without."""
    patch: int = 14
    width: int = 1152
    depth: int = 27
    heads: int = 16
    hidden: int = 4304
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Number of patches along a side of an image."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class Config:
    """A whole model."""

    width: int
    vocab: int
    layers: tuple[Layer, ...]
    max_length: int
    final_soft_cap: float | None = None
    tied: bool = True
    norm_eps: float = 1e-6
    embed_scale: float | None = None
    """Factor of the embeddings; None for the square root of `width`, rounded to the activations' dtype."""
    vision: Vision | None = None


def stages(layers: tuple[Layer, ...]) -> tuple[tuple[tuple[Layer, ...], int], ...]:
    """Return the layers as a pattern and its number of repeats, and the rest of an incomplete last repeat, if any.

    For example (local, global) x 13, or (recurrent, recurrent, attention) x 8 and (recurrent, recurrent) x 1.
    """
    period = next(p for p in range(1, len(layers) + 1) if all(a == b for a, b in zip(layers, layers[p:], strict=False)))
    repeats, rest = divmod(len(layers), period)
    whole = (layers[:period], repeats)
    return (whole, (layers[-rest:], 1)) if rest else (whole,)


def pattern(depth: int, *kinds: Layer) -> tuple[Layer, ...]:
    """Return `depth` layers that repeat `kinds` in order; the last repeat may be incomplete."""
    return tuple(kinds[i % len(kinds)] for i in range(depth))
