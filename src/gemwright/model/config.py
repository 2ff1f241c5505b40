"""What a model is: numbers only. A configuration is frozen, hashable and knows no file, device or tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the angle of dimension i at position p is p / scale * base^(-2i / H)."""

    base: float = 10_000.0
    scale: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Attention over the previous tokens: all of them, or the last `window` of them, the token itself included."""

    heads: int
    kv_heads: int
    head_dim: int
    query_scalar: float
    """Scores are multiplied by query_scalar^(-1/2)."""
    rope: Rope = Rope()
    window: int | None = None
    soft_cap: float | None = None
    qk_norm: bool = False


@dataclass(frozen=True)
class Mlp:
    """Gated MLP: down(gelu(gate(x)) * up(x)), each branch `hidden` wide."""

    hidden: int


@dataclass(frozen=True)
class Layer:
    """One residual layer: a mixer over time, then an MLP, each normalised before and, optionally, after."""

    mixer: Attention
    mlp: Mlp
    post_norms: bool = False


@dataclass(frozen=True)
class Config:
    """A whole decoder. `layers` says which mixer stands where."""

    width: int
    vocab: int
    layers: tuple[Layer, ...]
    context: int
    final_soft_cap: float | None = None
    tied: bool = True
    norm_eps: float = 1e-6


def pattern(depth: int, *kinds: Layer) -> tuple[Layer, ...]:
    """`depth` layers that repeat `kinds` in order; the last repetition may be cut short."""
    return tuple(kinds[i % len(kinds)] for i in range(depth))
