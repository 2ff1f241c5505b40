"""The gemwright engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gemwright
from engines import Task

if TYPE_CHECKING:
    from gemwright import Model


@dataclass(frozen=True)
class Gemwright:
    """An engine; see `engines.Engine`."""

    model: "Model"

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, token: int) -> str:
        return self.model.tokenizer.decode([token])

    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        from gemwright import Sampling  # JAX, which it brings, is imported while a model is being loaded
        from gemwright.families import GEMMA_3

        sampling = Sampling(**GEMMA_3.sampling) if task.sampled else Sampling(temperature=0.0)
        for step in self.model.engine.generate(prompts, [sampling] * len(prompts), task.tokens):
            known(step.tokens.tolist())


def load(path: str, task: Task, threads: int) -> Gemwright:
    """Load a model; XLA takes its number of threads from the process's CPU affinity."""
    return Gemwright(gemwright.load(path))
