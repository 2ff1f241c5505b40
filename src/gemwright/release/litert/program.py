"""The step of a decoder as LiteRT-LM calls it, over the weights and layers of `gemwright.model`.

The runtime owns the state: it passes every cache in and takes it back, and it fills the mask, which is causal. A cache
has a cell for each position, also in a local layer, whose window is applied here. Source of the contract: LiteRT-LM
`runtime/executor/litert_compiled_model_executor_utils.cc`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gemwright import ops
from gemwright.kernels import rg_lru
from gemwright.linear import Norms, norm_project, project_norm_add
from gemwright.model import mlp, recurrent, vision
from gemwright.model.config import Attention, Config, Layer, Recurrent
from gemwright.model.params import AttentionWeights, LayerWeights, ModelWeights, RecurrentWeights
from gemwright.model.transformer import logits
from gemwright.typing import Array, Float, Int

MASKED = -1e9
"""Number added to the score of a masked key, by the runtime and by windows."""
CHUNK = 128
"""Number of tokens of a prefill."""

State = tuple[Array, Array]
"""Keys and values [1, K, S, H] of an attention layer, or the hidden state [1, R] and the last inputs [1, C, R]."""


@dataclass(frozen=True)
class Signature:
    """A function of the exported model.

    Attributes:
        name: Its name in the file.
        run: Takes the weights and the inputs.
        inputs: Shape and dtype of each input, by name, in the order of the arguments.
        outputs: Names of the results.
    """

    name: str
    run: Callable[..., Sequence[Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]


def signatures(config: Config, context: int) -> tuple[Signature, ...]:
    """Return the functions of a model.

    With a vision tower there are three more, whose names do not begin with `prefill`, so that LiteRT-LM lets them be:
    `encode_image`, `embed` for the tokens around an image, and `image_prefill` for the embeddings of both.

    Args:
        config: The model.
        context: Number of tokens of the caches.
    """
    size = min(CHUNK, context)
    found = [_decoder(config, context, f"prefill_{size}", size), _decoder(config, context, "decode", 1)]
    if config.vision is not None:
        found += [_tower(config), _embedder(config)]
        found.append(_decoder(config, context, "image_prefill", image_chunk(config), embedded=True))
    return tuple(found)


def image_chunk(config: Config) -> int:
    """Return the number of tokens of an image and of the text that is prefilled with it; 0 without a tower."""
    return 0 if config.vision is None else config.vision.tokens + CHUNK


def state_names(layer: int, mixer: Attention | Recurrent) -> tuple[str, str]:
    """Return the names of the two states of a layer. LiteRT-LM gives those of attention; the others are ours."""
    if isinstance(mixer, Recurrent):
        return f"recurrent_state_{layer}", f"recurrent_inputs_{layer}"
    return f"kv_cache_k_{layer}", f"kv_cache_v_{layer}"


def _decoder(config: Config, context: int, name: str, tokens: int, *, embedded: bool = False) -> Signature:
    """Return the prefill of a number of tokens or embeddings, or, for one, the decoding of a token."""
    names = [state_names(i, layer.mixer) for i, layer in enumerate(config.layers)]
    shapes = [_state_shapes(layer, context) for layer in config.layers]
    # LiteRT-LM's order: all keys, then all values.
    states = {name: shape for pair in zip(*map(_paired, names, shapes), strict=True) for name, shape in pair}
    decode = tokens == 1

    def run(params: ModelWeights, first: Array, input_pos: Array, mask: Array, *rest: Array) -> Sequence[Array]:
        local, flat = (rest[0], rest[1:]) if embedded else (None, rest)
        given = dict(zip(states, flat, strict=True))
        x = first if embedded else _embed(config, params, first)
        x, after = step(config, params, x, input_pos, mask, [(given[a], given[b]) for a, b in names], local)
        written = dict(zip((n for pair in names for n in pair), (s for pair in after for s in pair), strict=True))
        results = [written[name] for name in states]
        if not decode:
            return results
        hidden = ops.rms_norm(x, params.final_norm, config.norm_eps)
        return [logits(config, params, hidden), *results]

    x = jax.ShapeDtypeStruct((1, tokens, config.width), jnp.float32)
    inputs = {
        **({"embeddings": x} if embedded else {"tokens": jax.ShapeDtypeStruct((1, tokens), jnp.int32)}),
        "input_pos": jax.ShapeDtypeStruct((tokens,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, 1, tokens, context), jnp.float32),
    }
    if embedded:  # the tokens of an image see each other, however far apart, which the window cannot tell
        inputs["local_mask"] = inputs["mask"]
    return Signature(name, run, inputs | states, (*(("logits",) if decode else ()), *states))


def _paired(names: tuple[str, str], shapes: tuple[Any, Any]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return (names[0], shapes[0]), (names[1], shapes[1])


def _state_shapes(layer: Layer, context: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    mixer = layer.mixer
    if isinstance(mixer, Recurrent):
        hidden = jax.ShapeDtypeStruct((1, mixer.width), jnp.float32)
        return hidden, jax.ShapeDtypeStruct((1, mixer.conv_width - 1, mixer.width), jnp.float32)
    cache = jax.ShapeDtypeStruct((1, mixer.kv_heads, context, mixer.head_dim), jnp.float32)
    return cache, cache


def _tower(config: Config) -> Signature:
    tower = config.vision
    assert tower is not None

    def run(params: ModelWeights, pixels: Array) -> Sequence[Array]:
        assert params.vision is not None
        x = vision.embed(tower, params.vision, pixels)
        for weights in params.vision.layers:
            x = vision.layer(tower, weights, x, _mix_patches)
        return [vision.project(tower, params.vision, x)]

    pixels = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
    return Signature("encode_image", run, {"pixels": pixels}, ("soft_tokens",))


def _embedder(config: Config) -> Signature:
    def run(params: ModelWeights, ids: Array) -> Sequence[Array]:
        return [_embed(config, params, ids)]

    return Signature("embed", run, {"tokens": jax.ShapeDtypeStruct((1, CHUNK), jnp.int32)}, ("embeddings",))


def _mix_patches(heads: int, q: Array, k: Array, v: Array) -> Array:
    """Return the attention of patches to each other, some heads at a time so that the scores stay small."""
    T, H = q.shape[1], q.shape[2] // heads
    at_once = max(1, vision.SCORES // T**2)

    def split(x: Array) -> list[Array]:
        by_head = x.reshape(T, heads, H).transpose(1, 0, 2)
        return [by_head[first : first + at_once] for first in range(0, heads, at_once)]

    mixed = [
        jnp.einsum("nts,nsh->nth", jax.nn.softmax(jnp.einsum("nth,nsh->nts", a * H**-0.5, b), axis=-1), c)
        for a, b, c in zip(split(q), split(k), split(v), strict=True)
    ]
    return jnp.concatenate(mixed).transpose(1, 0, 2).reshape(1, T, heads * H)


def _embed(config: Config, params: ModelWeights, ids: Int[Array, "1 T"]) -> Float[Array, "1 T D"]:
    """Return the scaled embeddings of tokens, looked up by LiteRT's own operation, which shares a quantized table."""
    rows: Any = params.embed
    # The operation takes a vector of ids only.
    found = _look_up(ids.reshape(-1), rows).reshape(*ids.shape, config.width)
    scale = math.sqrt(config.width) if config.embed_scale is None else config.embed_scale
    return found * jnp.asarray(scale, found.dtype)


@functools.partial(jax.lax.composite, name="odml.embedding_lookup", version=0)
def _look_up(ids: Int[Array, " T"], table: Float[Array, "V D"]) -> Float[Array, "T D"]:
    return jnp.take(table, ids, axis=0, mode="clip")


def step(
    config: Config,
    params: ModelWeights,
    x: Float[Array, "1 T D"],
    input_pos: Int[Array, " T"],
    mask: Float[Array, "1 1 T S"],
    states: Sequence[State],
    local: Float[Array, "1 1 T S"] | None = None,
) -> tuple[Float[Array, "1 T D"], list[State]]:
    """Run the layers over some tokens.

    Args:
        config: The model.
        params: Its weights, of which those of linear maps are matrices.
        x: Embeddings of the tokens.
        input_pos: Their positions. The first is that of the first cell to be written. Recurrent layers skip tokens of
            negative positions, which come last; others rely on the mask.
        mask: Numbers added to the scores: 0 for visible cells and -1e9 for others.
        states: The state of each layer.
        local: The mask of local layers; None for `mask` within the window.

    Returns:
        The hidden states before the final norm, and the states after these tokens.
    """
    distance = input_pos[:, None] - jnp.arange(mask.shape[-1])[None, :]
    after: list[State] = []
    for layer, weights, state in zip(config.layers, params.layers, states, strict=True):
        norms = Norms(weights.mixer_norm, weights.mixer_post_norm, config.norm_eps)
        if isinstance(layer.mixer, Recurrent):
            x, state = _recur(weights, norms, x, input_pos[None], state)
        else:
            window = layer.mixer.window
            seen = mask
            if window is not None:
                seen = mask + jnp.where(distance < window, 0.0, MASKED)[None, None] if local is None else local
            x, state = _attend(layer.mixer, weights, norms, x, input_pos, seen, state)
        x = mlp.apply(weights.mlp, Norms(weights.mlp_norm, weights.mlp_post_norm, config.norm_eps), x)
        after.append(state)
    return x, after


def _recur(
    weights: LayerWeights, norms: Norms, x: Array, positions: Int[Array, "1 T"], state: State
) -> tuple[Array, State]:
    """Add Griffin's recurrent block to x, with operations that LiteRT has: no loops, scatters or gathers."""
    w = weights.mixer
    assert isinstance(w, RecurrentWeights)
    inputs, gate = norm_project(x, norms, w.x, w.y)
    inputs, gate = ops.biased(inputs, w.x_bias), ops.biased(gate, w.y_bias)
    hidden, earlier = state
    line = jnp.concatenate([earlier, inputs], axis=1)
    u = recurrent.convolve(w, line, positions)
    gates = (w.input_gate, w.input_gate_bias), (w.decay_gate, w.decay_gate_bias)
    h = _accumulate(*rg_lru.find_steps(u, positions, *gates, w.decay), hidden)
    # Padding comes last and leaves the hidden state unchanged.
    count = jnp.sum(positions[0] >= 0)
    last = jax.lax.dynamic_slice_in_dim(line, count, earlier.shape[1], axis=1, allow_negative_indices=False)
    return project_norm_add(x, h, w.out, w.out_bias, norms, gate=gate), (h[:, -1], last)


def _accumulate(a: Float[Array, "1 T R"], b: Float[Array, "1 T R"], initial: Float[Array, "1 R"]) -> Array:
    """Return h_t = a_t h_{t-1} + b_t, by doubling the number of tokens that a step spans (Hillis and Steele, 1986)."""
    span = 1
    while span < a.shape[1]:
        pad = ((0, 0), (span, 0), (0, 0))
        a_before, b_before = jnp.pad(a, pad, constant_values=1.0)[:, :-span], jnp.pad(b, pad)[:, :-span]
        a, b = a * a_before, a * b_before + b
        span *= 2
    return a * initial[:, None] + b


def _attend(
    mixer: Attention,
    weights: LayerWeights,
    norms: Norms,
    x: Float[Array, "1 T D"],
    input_pos: Int[Array, " T"],
    mask: Float[Array, "1 1 T S"],
    state: State,
) -> tuple[Array, State]:
    """Add attention to x, with the operations that delegates take: a written slice and an added mask."""
    w = weights.mixer
    assert isinstance(w, AttentionWeights)
    T, S, N, K, H = x.shape[1], mask.shape[-1], mixer.heads, mixer.kv_heads, mixer.head_dim
    q, k, v = (y.reshape(1, T, -1, H) for y in norm_project(x, norms, w.q, w.k, w.v))
    if mixer.qk_norm:
        assert w.q_norm is not None
        assert w.k_norm is not None
        q, k = ops.rms_norm(q, w.q_norm, norms.eps), ops.rms_norm(k, w.k_norm, norms.eps)
    turn = ops.rotation(input_pos[None], int(mixer.head_dim * mixer.rope.fraction), mixer.rope.base, mixer.rope.scale)
    q, k = ops.rotate(q, turn) * mixer.query_scalar**-0.5, ops.rotate(k, turn)

    zero = jnp.int32(0)
    start = (zero, zero, input_pos[0], zero)
    keys, values = (
        jax.lax.dynamic_update_slice(cache, new.transpose(0, 2, 1, 3), start, allow_negative_indices=False)
        for cache, new in zip(state, (k, v), strict=True)
    )
    rows = q.transpose(0, 2, 1, 3).reshape(1, K, N // K * T, H)
    scores = ops.soft_cap(jnp.einsum("bkrh,bksh->bkrs", rows, keys), mixer.soft_cap)
    shares = jax.nn.softmax(scores.reshape(1, N, T, S) + mask, axis=-1)
    mixed = jnp.einsum("bkrs,bksh->bkrh", shares.reshape(1, K, N // K * T, S), values)
    mixed = mixed.reshape(1, N, T, H).transpose(0, 2, 1, 3).reshape(1, T, N * H)
    return project_norm_add(x, mixed, w.o, w.o_bias, norms), (keys, values)
