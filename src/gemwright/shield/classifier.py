"""A shield: the probability that a text breaks each of several policies, from one reading of the text.

The prompts of all policies begin with the text. This beginning is read once; the policies run behind copies of its
state as one batch, and only the rows of Yes and No of the head are multiplied.

Source: the score is that of ShieldGemma, arXiv:2407.21772, section 5.1: the softmax over the logits of Yes and No.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright import ops, weights
from gemwright.api import Model
from gemwright.errors import GemwrightError
from gemwright.generate import buckets, slots
from gemwright.generate.step import require_finite
from gemwright.loading import load
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.state import DecodeState
from gemwright.shield.policy import MODES, Mode, Policy, read_policies
from gemwright.shield.prompt import NO, YES, encode_prompt
from gemwright.typing import Array, Float, Int

CONTEXT = buckets.CAPACITIES[0]
"""Maximum number of tokens of a prompt; a longer text is judged in parts."""
OVERLAP = 32
"""Number of characters that each of two parts of a long text has of the other."""
LEAST_ROOM = 512
"""Minimum number of tokens for the text: two of 64 characters of four bytes, the shortest parts."""


class Violation(NamedTuple):
    """A policy that a text breaks, with the probability."""

    policy: str
    score: float
    mode: Mode

    @property
    def sentence(self) -> str:
        """A sentence that tells it without the text."""
        what = "message" if self.mode == "input" else "reply"
        return f"The {what} is refused by the policy {self.policy!r} (score {self.score:.2f})."


@dataclass(frozen=True)
class Shield:
    """A model that judges texts by policies.

    Attributes:
        model: The model: a ShieldGemma, a classifier that was tuned with `write_question`, or any chat model.
        policies: The policies.

    Raises:
        GemwrightError: The vocabulary has no single tokens for Yes and No, or a policy leaves no room for a text.
    """

    model: Model
    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        self._answers  # noqa: B018  # raises
        for mode in MODES:
            for policy in self._of(mode):
                reply = None if mode == "input" else ""
                length = len(encode_prompt(self.model, policy.guidelines[mode], "", reply))
                if length > self._context - LEAST_ROOM:
                    raise GemwrightError(
                        f"The policy {policy.name!r:.80} makes a prompt of {length} tokens without a text, and at most "
                        f"{self._context - LEAST_ROOM} are allowed; shorten its words."
                    )

    def find_violation(self, text: str, reply: str | None = None) -> Violation | None:
        """Return the violation with the highest score by which a text, or the reply to it, is refused, if there is one.

        Args:
            text: The text of a user.
            reply: The reply to judge; None to judge the text.
        """
        mode: Mode = "input" if reply is None else "output"
        scores = self.score(text, reply)
        found = [
            Violation(policy.name, scores[policy.name], mode)
            for policy in self._of(mode)
            if scores[policy.name] >= policy.threshold
        ]
        return max(found, key=lambda violation: violation.score, default=None)

    def score(self, text: str, reply: str | None = None) -> dict[str, float]:
        """Return the probability that a text breaks each of the policies for texts of its kind.

        A text longer than the context is judged in parts, and its score is the highest of them.

        Args:
            text: The text of a user.
            reply: The reply to judge; None to judge the text.
        """
        mode: Mode = "input" if reply is None else "output"
        policies = self._of(mode)
        if not policies or not (text if reply is None else reply).strip():
            return {policy.name: 0.0 for policy in policies}
        scores = self._score([policy.guidelines[mode] for policy in policies], text, reply)
        return dict(zip((policy.name for policy in policies), scores.tolist(), strict=True))

    def warm_up(self) -> Iterator[None]:
        """Compile all programs, and yield after each."""
        context = self._context
        for count in dict.fromkeys((1, *(len(self._of(mode)) for mode in ("input", "output")))):
            if count == 0:
                continue
            for size in buckets.CHUNKS:  # the last chunk of a prompt, and one before it
                for length in dict.fromkeys((min(size, context), min(size + size // 2, context))):
                    yield self._warm_up(count, length)

    def _warm_up(self, count: int, length: int) -> None:
        # With prompts of two lengths, too: their last tokens come from two chunks.
        for prompts in ([[0] * length] * count, [[0] * min(8, length), *[[0] * length] * (count - 1)]):
            state = slots.gather(self._empty_state(), jnp.zeros(count, jnp.int32))
            self._ask(prompts, state)

    @functools.cached_property
    def _answers(self) -> Int[Array, "2"]:
        """The ids of Yes and No."""
        ids = [self.model.tokenizer.encode(answer) for answer in (YES, NO)]
        if any(len(each) != 1 for each in ids):
            raise GemwrightError(
                f"{self.model.name} has no tokens for Yes and No; use a model with Gemma's vocabulary."
            )
        return jnp.asarray(ids, jnp.int32)[:, 0]

    @property
    def _context(self) -> int:
        return min(CONTEXT, self.model.engine.config.max_length)

    def _of(self, mode: Mode) -> list[Policy]:
        """Return the policies for one kind of text."""
        return [policy for policy in self.policies if mode in policy.guidelines]

    def _empty_state(self) -> DecodeState:
        return self.model.engine.empty_state(1, self._context)

    def _score(self, guidelines: Sequence[str], text: str, reply: str | None) -> NDArray[np.float32]:
        """Return the scores of the policies; of a text that does not fit, the highest of its halves."""
        prompts = [encode_prompt(self.model, guideline, text, reply) for guideline in guidelines]
        if max(map(len, prompts)) <= self._context:
            return self._read(prompts)
        if reply is None:
            return np.maximum(*(self._score(guidelines, half, None) for half in _halve(text)))
        if len(text) > len(reply):  # what the reply follows is at the end
            return self._score(guidelines, text[len(text) // 2 :], reply)
        return np.maximum(*(self._score(guidelines, text, half) for half in _halve(reply)))

    def _read(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the probability of Yes after each prompt, whose common beginning is read once."""
        differing = (place for place, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
        shared = next(differing, min(map(len, prompts)) - 1)
        state = self._empty_state()
        if len(prompts) > 1 and shared:
            state, _ = self.model.engine.prefill([prompts[0][:shared]], state)
            state = slots.gather(state, jnp.zeros(len(prompts), jnp.int32))
        return self._ask(prompts, state)

    def _ask(self, prompts: Sequence[Sequence[int]], state: DecodeState) -> NDArray[np.float32]:
        """Return the probability of Yes after each prompt, of which a state holds the beginning."""
        engine = self.model.engine
        _, hidden = engine.prefill(prompts, state)
        found = np.asarray(_yes(engine.config, engine.params, hidden, self._answers))
        require_finite(np.isfinite(found))
        return found


@functools.partial(jax.jit, static_argnames="config")
def _yes(
    config: Config, params: ModelWeights, hidden: Float[Array, "B D"], answers: Int[Array, "2"]
) -> Float[Array, " B"]:
    """Return the probability of the first of two answers, if it is one of them."""
    head = params.embed if params.head is None else params.head
    logits = weights.matmul(hidden, weights.rows(head, answers), out=jnp.float32)
    return jax.nn.softmax(ops.soft_cap(logits, config.final_soft_cap), axis=-1)[:, 0]


def _halve(text: str) -> tuple[str, str]:
    """Return two parts of a text that overlap."""
    middle = len(text) // 2
    return text[: middle + OVERLAP], text[middle - OVERLAP :]


def load_shield(model: str, policies: Path) -> Shield:
    """Return a shield.

    Args:
        model: A path, name or hub id; a LoRA adapter is loaded with its base model.
        policies: A file of policies; see `read_policies`.

    Raises:
        GemwrightError: The file is wrong, as for `gemwright.load`, or as for `Shield`.
    """
    found = read_policies(policies)
    return Shield(load(model), found)
