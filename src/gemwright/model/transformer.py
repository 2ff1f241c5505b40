"""The decoder: embedding, layers, final norm and head.

`forward` returns hidden states after the final norm, and `logits` multiplies them by the head. They are two functions
because most callers need the logits of a few positions, and the head is most of a small model.
"""

import math
from typing import cast

import jax.numpy as jnp

from gemwright import ops, tree, weights
from gemwright.model import block
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState, MixerState, Positions
from gemwright.typing import Array, Bool, Float, Int
from gemwright.weights import Weight


@tree.node
class SoftTokens:
    """Embeddings of images in a batch of tokens.

    The embeddings replace those of negative tokens and are not scaled; groups are as in `Positions`.
    """

    embeddings: Float[Array, "B T D"]
    groups: Int[Array, "B T"]


def forward(
    config: Config,
    params: ModelWeights,
    tokens: Int[Array, "B T"],
    state: DecodeState | None = None,
    *,
    valid: Bool[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    soft_tokens: SoftTokens | None = None,
) -> tuple[Float[Array, "B T D"], DecodeState | None]:
    """Run the decoder over tokens.

    Args:
        config: The model.
        params: Its weights; activations have the dtype of the embedding.
        tokens: Token ids; negative for soft tokens.
        state: The state after earlier tokens. None (training, scoring) starts without one and returns none.
        valid: False for padding, on either side. None for no padding.
        segments: The document of each token in packed sequences; positions restart with each (training only).
        soft_tokens: Embeddings of images, if there are any.

    Returns:
        The hidden states after the final norm, and the state after these tokens (None if there was none).
    """
    positions = find_positions(tokens, state, valid, segments, soft_tokens)
    x = embed(config, params.embed, tokens, soft_tokens)
    states = [None] * len(config.layers) if state is None else state.layers
    after: list[MixerState | None] = []
    for layer, layer_params, layer_state in zip(config.layers, params.layers, states, strict=True):
        x, layer_state = block.apply(layer, layer_params, x, positions, layer_state, config.norm_eps)
        after.append(layer_state)
    x = ops.rms_norm(x, params.final_norm, config.norm_eps)
    if state is None:
        return x, None
    lengths = state.lengths + jnp.sum(positions.indices >= 0, axis=1)
    return x, DecodeState(lengths, cast("tuple[MixerState, ...]", tuple(after)))  # None for a layer without a state


def embed(
    config: Config, table: Weight, tokens: Int[Array, "B T"], soft_tokens: SoftTokens | None = None
) -> Float[Array, "B T D"]:
    """Return the scaled embeddings of tokens, and those of images in place of negative tokens."""
    x = weights.rows(table, jnp.maximum(tokens, 0))
    scale = math.sqrt(config.width) if config.embed_scale is None else config.embed_scale
    x = x * jnp.asarray(scale, x.dtype)  # rounded to the activations' dtype, as in training
    if soft_tokens is None:
        return x
    return jnp.where(tokens[:, :, None] < 0, soft_tokens.embeddings.astype(x.dtype), x)


def logits(config: Config, params: ModelWeights, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
    """Return the logits of the vocabulary, in float32."""
    head = params.embed if params.head is None else params.head
    return ops.soft_cap(weights.matmul(hidden, head, out=jnp.float32), config.final_soft_cap)


def top_logits(
    config: Config, params: ModelWeights, hidden: Float[Array, "B D"], vocabulary: int, count: int
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """Return the `count` largest of `logits` in descending order, and their ids, all below `vocabulary`."""
    head = params.embed if params.head is None else params.head
    values, ids = weights.top(hidden, head, vocabulary, count)
    return ops.soft_cap(values, config.final_soft_cap), ids


def find_positions(
    tokens: Int[Array, "B T"],
    state: DecodeState | None,
    valid: Bool[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    soft_tokens: SoftTokens | None,
) -> Positions:
    """Return the positions of tokens; the arguments are those of `forward`."""
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    lengths = jnp.zeros(tokens.shape[:1], jnp.int32) if state is None else state.lengths
    order = jnp.cumsum(valid, axis=1) - 1
    if segments is not None:
        starts = jnp.where(segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1], order, 0)
        order -= jnp.maximum.accumulate(starts, axis=1)
    indices = jnp.where(valid, lengths[:, None] + order, -1)
    groups = None if soft_tokens is None else jnp.where(valid, soft_tokens.groups, -1)
    return Positions(indices, segments, lengths, groups)
