"""Engines of the benchmark and their interface. Each is imported only in the process that measures it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

MODULES = {
    "gemwright": ("gemwright_jax", {}),
    "llama.cpp": ("llama_cpp_python", {}),
    "transformers float32": ("huggingface", {"dtype": "float32"}),
    "transformers bfloat16": ("huggingface", {"dtype": "bfloat16"}),
    "OpenVINO 8-bit": ("openvino", {}),
}


@dataclass(frozen=True)
class Task:
    """Sequences to generate.

    Attributes:
        prompt: Tokens per prompt.
        tokens: Tokens to generate per sequence.
        sequences: Batch size.
        sampled: Sample with temperature 1, top-k 64 and top-p 0.95, instead of greedy decoding.
    """

    prompt: int
    tokens: int
    sequences: int = 1
    sampled: bool = False


class Engine(Protocol):
    """A loaded model."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        ...

    def decode(self, token: int) -> str:
        """Return the text of a token."""
        ...

    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        """Continue prompts of equal length; call `known` with the ids of each step as soon as they are available."""
        ...


def load(name: str, path: str, task: Task, threads: int) -> Engine:
    """Load a model for a task."""
    module, options = MODULES[name]
    return import_module(f"engines.{module}").load(path, task, threads, **options)
