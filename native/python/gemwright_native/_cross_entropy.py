"""The cross-entropy of next tokens as a JAX operation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gemwright_native._library import operation


def cross_entropy(
    hidden: Array, head: Array, targets: Array, learned: Array, *, cap: float | None, differentiate: bool
) -> tuple[Array, Array]:
    """Compute the losses of tokens and their gradients with respect to the hidden states.

    The loss is `-log_softmax(logits)[target]` with `logits = hidden @ head.T`, capped as `cap * tanh(logits / cap)`.
    The logits of a tile of the vocabulary at a time are in memory.

    Args:
        hidden: float32 `[N, D]`.
        head: float32 `[V, D]`.
        targets: int32 `[N]`; the loss of one outside the vocabulary is NaN.
        learned: bool `[N]`; the loss and the gradient of other tokens are zero.
        cap: Soft cap of the logits; None for no cap.
        differentiate: Whether to compute the gradient.

    Returns:
        The losses, float32 `[N]`, and their gradients, float32 `[N, D]`, or `[0, D]` if they are not computed.

    Raises:
        ValueError: A dtype or shape is wrong.
    """
    N, D = hidden.shape if hidden.ndim == 2 else (0, 0)
    V = head.shape[0]
    expected = {
        "hidden": (hidden, jnp.float32, (N, D)),
        "head": (head, jnp.float32, (V, D)),
        "targets": (targets, jnp.int32, (N,)),
        "learned": (learned, jnp.bool_, (N,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}.")
    results = [jax.ShapeDtypeStruct((N,), jnp.float32), jax.ShapeDtypeStruct((N * differentiate, D), jnp.float32)]
    losses, gradient = operation("gemwright_cross_entropy", results)(
        hidden, head, targets, learned, cap=np.float32(cap or 0.0)
    )
    return losses, gradient
