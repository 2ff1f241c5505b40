"""The engine's results: one token of each sequence of a batch, on the host."""

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright.errors import NotFiniteError
from gemwright.generate.programs import NO_TOKEN, NOT_FINITE, SampledTokens
from gemwright.typing import Array


@dataclass(frozen=True)
class Step:
    """One token of each sequence of a batch.

    Attributes:
        tokens: [B] ids, -1 for a sequence that ended before, whose other values are then undefined.
        logprobs: [B] natural logarithm of the model's probability of each, if requested.
        top_tokens: [B, A] the likeliest ids, best first, if requested.
        top_logprobs: [B, A] their log-probabilities.
        proposed: [B] draft tokens that were verified together with this token.
        accepted: [B] how many of them were accepted.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    top_tokens: NDArray[np.int32] | None
    top_logprobs: NDArray[np.float32] | None
    proposed: NDArray[np.int32]
    accepted: NDArray[np.int32]


def require_finite(finite: NDArray[np.bool_]) -> None:
    """Raise an error unless the logits of all tokens are finite.

    Raises:
        NotFiniteError: some are not.
    """
    if not finite.all():
        raise NotFiniteError(
            "The model's logits are not finite: its weights are damaged or its activations overflow; check the "
            "checkpoint, or load it with dtype float32 or bfloat16."
        )


def from_choice(choice: SampledTokens) -> Step:
    """Copy the tokens of one step to the host."""
    tokens = np.asarray(choice.token)
    none = np.zeros_like(tokens)
    return Step(tokens, _host(choice.logprob), _host(choice.top_tokens), _host(choice.top_logprobs), none, none)


def from_choices(choices: SampledTokens) -> list[Step]:
    """Copy the tokens of consecutive steps to the host, up to the last that any sequence has.

    Raises:
        NotFiniteError: some logits were not finite.
    """
    host = jax.tree.map(np.asarray, choices)
    require_finite(host.token != NOT_FINITE)
    count = int(np.sum(np.any(host.token != NO_TOKEN, axis=1)))
    return [from_choice(jax.tree.map(itemgetter(at), host)) for at in range(count)]


def _host(part: Array | NDArray[Any] | None) -> NDArray[Any] | None:
    return None if part is None else np.asarray(part)
