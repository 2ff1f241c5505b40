"""The cross-entropy of next tokens, summed or of each, or with a teacher, without ever holding all logits.

The logits of some tokens at a time are computed once: their gradient is made at once, in the forward pass, and the
logits are forgotten. The losses of single tokens have gradients of any weight; a trained head needs the weights to sum
its gradient, so the backward pass computes the logits again. Only labeled tokens are multiplied by the head. On a CPU a
frozen float32 head has a C++ kernel, which keeps the logits of a tile of the vocabulary in the cache.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import PartitionSpec

from gemwright import ops, sharding, tree, weights
from gemwright.kernels import choice, native
from gemwright.model.config import Config
from gemwright.model.teacher import Teacher
from gemwright.typing import Array, Bool, Float, Int
from gemwright.weights import Weight

LOGITS = 1 << 26
"""Maximum number of logits in memory, 256 MB."""


def sum_cross_entropy(
    config: Config,
    head: Weight,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    learned: Bool[Array, "B T"],
) -> Float[Array, ""]:
    """Return `cross_entropy` of a batch; in a mesh every device computes that of its own tokens."""
    mesh = jax.sharding.get_abstract_mesh()

    def flat(head: Any, hidden: Array, targets: Array, learned: Array) -> Any:
        return cross_entropy(config, head, hidden.reshape(-1, hidden.shape[-1]), targets.ravel(), learned.ravel())

    if mesh.empty:
        return flat(head, hidden, targets, learned)
    divided = sharding.divide(("batch", "length"), targets.shape, mesh.shape)
    names = sharding.mesh_axes(divided)

    def own(*arguments: Any) -> Array:
        return jax.lax.psum(flat(*arguments), names)

    specs = (PartitionSpec(), PartitionSpec(*divided, None), divided, divided)
    run = jax.shard_map(own, in_specs=specs, out_specs=PartitionSpec(), axis_names=set(names), check_vma=False)
    return run(head, hidden, targets, learned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    config: Config,
    head: Weight,
    hidden: Float[Array, "N D"],
    targets: Int[Array, " N"],
    learned: Bool[Array, " N"],
) -> Float[Array, ""]:
    """Return the sum of -log p(target) over labeled tokens, in float32.

    Its gradients are with respect to the hidden states and the head, and are computed with the loss.

    Args:
        config: The model.
        head: The head [V, D].
        hidden: Hidden states after the final norm.
        targets: The token after each; the loss of a labeled one outside the vocabulary is NaN.
        learned: Whether the loss covers the token's target.
    """
    return jnp.sum(token_losses(config, head, hidden, targets, learned))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_losses(
    config: Config,
    head: Weight,
    hidden: Float[Array, "N D"],
    targets: Int[Array, " N"],
    learned: Bool[Array, " N"],
) -> Float[Array, " N"]:
    """Return -log p(target) of each labeled token, in float32, and 0 of the others.

    Its gradients are with respect to the hidden states and the head, for any weight of each token.

    Args:
        config: The model.
        head: The head [V, D].
        hidden: Hidden states after the final norm.
        targets: The token after each; the loss of a labeled one outside the vocabulary is NaN.
        learned: Whether the token's loss is wanted.
    """
    return _forward(config, head, None, hidden, targets, learned, differentiate=False)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def distillation_loss(
    config: Config,
    head: Weight,
    hidden: Float[Array, "N D"],
    teacher: Teacher,
    targets: Int[Array, " N"],
    learned: Bool[Array, " N"],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the cross-entropy with the teacher's distribution, summed over labeled tokens, in float32.

    Its gradients are as those of `cross_entropy`; the two other sums, which come for free, have none: -log p(target),
    and the entropy of the teacher's distribution.

    Args:
        config: The model.
        head: The head [V, D].
        hidden: Hidden states after the final norm.
        teacher: The teacher at the same tokens.
        targets: The token after each.
        learned: Whether the loss covers the token's target.
    """
    ones = jnp.ones(len(hidden), jnp.float32)
    return _split(_measure(config, head, None, hidden, targets, learned, ones, teacher, differentiate=False)[0])


def _split(losses: Array) -> tuple[Array, Array, Array]:
    of_targets, of_teacher, entropy = jnp.sum(losses, axis=1)
    return of_teacher, of_targets, entropy


def _forward(
    config: Config, head: Any, trained: Any, hidden: Array, targets: Array, learned: Array, *, differentiate: bool
) -> tuple[Array, Array, Any]:
    """Return the result of `_chunked`, of the kernel if it takes the head."""
    if trained is not None:
        ones = jnp.ones(len(hidden), jnp.float32)
        return _chunked(config, head, trained, hidden, targets, learned, ones, differentiate=differentiate)
    plain = isinstance(head, Array) and head.dtype == hidden.dtype == jnp.float32
    impl = choice.resolve("the cross-entropy", None if plain else "its head or hidden states are not float32")
    function = _reference if impl == "reference" else functools.partial(_operation, impl=impl)
    losses, gradient = function(head, hidden, targets, learned, config=config, differentiate=differentiate)
    return losses, gradient, None


def _reference(
    head: Any, hidden: Array, targets: Array, learned: Array, *, config: Config, differentiate: bool
) -> tuple[Array, Array]:
    ones = jnp.ones(len(hidden), jnp.float32)
    return _chunked(config, head, None, hidden, targets, learned, ones, differentiate=differentiate)[:2]


def _native(
    head: Array, hidden: Array, targets: Array, learned: Array, *, config: Config, differentiate: bool
) -> tuple[Array, Array]:
    run, targets = native.library().cross_entropy, targets.astype(jnp.int32)
    losses, gradient = run(hidden, head, targets, learned, cap=config.final_soft_cap, differentiate=differentiate)
    return losses, gradient if differentiate else jnp.zeros_like(hidden)


_operation = choice.PlatformOperation(
    "the cross-entropy", reference=_reference, cpu=_native, like=(2, 1), dtype=jnp.float32
)


def _chunked(*arguments: Any, differentiate: bool) -> tuple[Array, Array, Any]:
    """Return the losses [N] of the targets, and their gradients as `_measure` does."""
    losses, gradient, head_gradient = _measure(*arguments, differentiate=differentiate)
    return losses[0], gradient, head_gradient


def _measure(
    config: Config,
    head: Any,
    trained: Any,
    hidden: Array,
    targets: Array,
    learned: Array,
    cotangents: Array,
    teacher: Teacher | None = None,
    *,
    differentiate: bool,
) -> tuple[Array, Array, Any]:
    """Return the losses and their gradients with respect to the hidden states and the trained leaves of the head.

    The losses are [1, N]: -log p(target). With a teacher they are [3, N]: also the cross-entropy with its distribution,
    which is then the one that has the gradients, and the entropy of the distribution.

    Args:
        config: The model.
        head: The head, with None for each trained leaf.
        trained: The trained leaves, with None for all others; None for no gradient.
        hidden: See `cross_entropy`.
        targets: See `cross_entropy`.
        learned: See `cross_entropy`.
        cotangents: [N] factor of the gradient of each loss.
        teacher: See `distillation_loss`.
        differentiate: Whether the gradients are wanted; they are zero otherwise.
    """
    size, width = hidden.shape
    arrays = 1 if teacher is None else 4  # logits, and those, the probabilities and the distribution of the teacher
    chunk = max(1, min(size, LOGITS // arrays // config.vocab))
    count = jnp.sum(learned, dtype=jnp.int32)
    # Labeled tokens first, in order, so that the loop ends with them.
    order = jnp.pad(jnp.argsort(~learned, stable=True), (0, -size % chunk))

    # Of two large matrices XLA's CPU backend packs the second in every call, so a plain head is the first.
    axis = 0 if isinstance(head if trained is None else trained, Array) else 1

    def logits(trained: Any, hidden: Array) -> Array:
        full = head if trained is None else tree.combine(trained, head)
        pair = (full, hidden) if axis == 0 else (hidden, full)
        return ops.soft_cap(weights.matmul(*pair, out=jnp.float32), config.final_soft_cap)

    def step(index: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        losses, gradient, head_gradient = carry
        places = jax.lax.dynamic_slice(order, (index * chunk,), (chunk,))
        wanted = index * chunk + jnp.arange(chunk) < count
        result = jnp.where(wanted, places, size)  # a padded place repeats token 0, and is dropped
        target = jnp.where(targets[places] < 0, config.vocab, targets[places])
        states = jnp.where(wanted[:, None], hidden[places], 0)
        scores, pull = jax.vjp(logits, trained, states)  # without `pull`, only the logits are computed
        log_total = jax.nn.logsumexp(scores, axis=axis, keepdims=True)
        of_target = jnp.take_along_axis(scores, jnp.expand_dims(target, axis), axis, mode="fill")
        found = [(log_total - of_target).reshape(-1)]
        if teacher is None:
            wished = jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) == jnp.expand_dims(target, axis)
        else:
            wished, entropy = teacher.distribution(places, config.vocab, axis)
            found += [log_total.reshape(-1) - jnp.sum(wished * scores, axis), entropy]
        losses = losses.at[:, result].set(jnp.stack(found), mode="drop")
        if not differentiate:
            return losses, gradient, head_gradient
        difference = jnp.exp(scores - log_total) - wished
        difference *= jnp.expand_dims(cotangents[places], axis)
        of_trained, of_hidden = pull(jnp.where(jnp.expand_dims(wanted, axis), difference, 0.0))
        gradient = gradient.at[result].set(of_hidden, mode="drop")
        return losses, gradient, jax.tree.map(jnp.add, head_gradient, of_trained)  # the sum is float32

    zeros = jax.tree.map(functools.partial(jnp.zeros_like, dtype=jnp.float32), trained)
    rows = 1 if teacher is None else 3
    start = (jnp.zeros((rows, size), jnp.float32), jnp.zeros((size, width), hidden.dtype), zeros)
    return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, step, start)


def _sum_with_residuals(config: Config, head: Any, hidden: Any, targets: Any, learned: Any) -> tuple[Array, Any]:
    """Return the loss, and as residuals its gradients with respect to what is differentiated."""
    trained, frozen = _partition(head)
    arguments = (leaf.value for leaf in (hidden, targets, learned))
    losses, gradient, head_gradient = _forward(config, frozen, trained, *arguments, differentiate=True)
    return jnp.sum(losses), (gradient, jax.tree.map(_like, head_gradient, trained))


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def _partition(head: Any) -> tuple[Any, Any]:
    """Return the leaves of a head that are differentiated, None for none, and the others."""

    def choose(leaf: Any, *, perturbed: bool) -> Array | None:
        return leaf.value if leaf.perturbed == perturbed else None

    trained, frozen = (
        jax.tree.map(functools.partial(choose, perturbed=perturbed), head, is_leaf=_is_primal)
        for perturbed in (True, False)
    )
    return (trained if jax.tree.leaves(trained) else None), frozen


def _like(value: Array, other: Array) -> Array:
    """Return a value in the dtype of another."""
    return value.astype(other.dtype)


def _sum_backward(config: Config, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    del config
    products = jax.tree.map(functools.partial(jnp.multiply, cotangent), residuals)
    gradient, head_gradient = jax.tree.map(_like, products, residuals)
    return head_gradient, gradient, None, None


cross_entropy.defvjp(_sum_with_residuals, _sum_backward, symbolic_zeros=True)


def _distill_with_residuals(
    config: Config, head: Any, hidden: Any, *others: Any
) -> tuple[tuple[Array, Array, Array], Any]:
    trained, frozen = _partition(head)
    teacher, targets, learned = jax.tree.map(operator.attrgetter("value"), others, is_leaf=_is_primal)
    ones = jnp.ones(len(hidden.value), jnp.float32)
    losses, gradient, head_gradient = _measure(
        config, frozen, trained, hidden.value, targets, learned, ones, teacher, differentiate=True
    )
    return _split(losses), (gradient, jax.tree.map(_like, head_gradient, trained))


def _distill_backward(config: Config, residuals: Any, cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    return *_sum_backward(config, residuals, cotangents[0]), None


distillation_loss.defvjp(_distill_with_residuals, _distill_backward, symbolic_zeros=True)


def _losses_with_residuals(config: Config, head: Any, hidden: Any, targets: Any, learned: Any) -> tuple[Array, Any]:
    """Return the losses, and as residuals their gradients, or the arguments if the head has a gradient."""
    trained, frozen = _partition(head)
    arguments = tuple(leaf.value for leaf in (hidden, targets, learned))
    if trained is None:
        losses, gradient, _ = _forward(config, frozen, None, *arguments, differentiate=True)
        return losses, (gradient, None)
    losses = _forward(config, tree.combine(trained, frozen), None, *arguments, differentiate=False)[0]
    return losses, (None, (frozen, trained, *arguments))


def _losses_backward(config: Config, residuals: Any, cotangents: Array) -> tuple[Any, ...]:
    gradient, arguments = residuals
    if arguments is None:
        return None, _like(cotangents[:, None] * gradient, gradient), None, None
    frozen, trained, hidden, targets, learned = arguments
    results = _chunked(config, frozen, trained, hidden, targets, learned, cotangents, differentiate=True)
    return jax.tree.map(_like, results[2], trained), results[1], None, None


token_losses.defvjp(_losses_with_residuals, _losses_backward, symbolic_zeros=True)
