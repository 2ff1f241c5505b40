"""What the engine hands out: one token for each row of a batch, on the host."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.generate.programs import Choice
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


def from_choice(choice: Choice) -> Step:
    """A choice that nobody guessed, with which nothing was guessed."""

    def host(part: Array | None) -> NDArray[Any] | None:
        return None if part is None else np.asarray(part)

    tokens = np.asarray(choice.token)
    none = np.zeros_like(tokens)
    return Step(tokens, host(choice.logprob), host(choice.top_tokens), host(choice.top_logprobs), none, none)
