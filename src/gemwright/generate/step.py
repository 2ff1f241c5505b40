"""What the engine hands out: one token for each row of a batch, on the host."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from gemwright.generate.programs import SampledTokens
from gemwright.typing import Array


@dataclass(frozen=True)
class Step:
    """One token for each row of a batch.

    Attributes:
        tokens: [B] ids.
        logprobs: [B] natural logarithm of the model's probability of each, if that was asked for.
        top_tokens: [B, A] the likeliest ids, best first, likewise.
        top_logprobs: [B, A] theirs.
        proposed: [B] tokens that speculation proposed to follow this one, and had verified with it.
        accepted: [B] how many of these stood.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    top_tokens: NDArray[np.int32] | None
    top_logprobs: NDArray[np.float32] | None
    proposed: NDArray[np.int32]
    accepted: NDArray[np.int32]


def from_choice(choice: SampledTokens) -> Step:
    """A choice that nobody guessed, with which nothing was guessed."""
    tokens = np.asarray(choice.token)
    none = np.zeros_like(tokens)
    return Step(tokens, _host(choice.logprob), _host(choice.top_tokens), _host(choice.top_logprobs), none, none)


def from_choices(choices: SampledTokens, count: int) -> Iterator[Step]:
    """The first `count` of choices that stand one after the other."""
    host = jax.tree.map(np.asarray, choices)
    return (from_choice(jax.tree.map(itemgetter(at), host)) for at in range(count))


def _host(part: Array | NDArray[Any] | None) -> NDArray[Any] | None:
    return None if part is None else np.asarray(part)
