"""What the benchmark asks of an engine, and the engines. Each is imported only in the process that measures it."""

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
    """Sequences to write.

    Attributes:
        prompt: Tokens of each prompt.
        tokens: Tokens to write behind each.
        rows: Sequences that are written together.
        sampled: Whether tokens are drawn, with temperature 1, top-k 64 and top-p 0.95, or the likeliest are taken.
    """

    prompt: int
    tokens: int
    rows: int = 1
    sampled: bool = False


class Engine(Protocol):
    """A loaded model."""

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt."""
        ...

    def decode(self, token: int) -> str:
        """The text of a token."""
        ...

    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        """Continue prompts of equal length; call `known` with the ids of each step as soon as they are there."""
        ...


def load(name: str, path: str, task: Task, threads: int) -> Engine:
    """Load a model for a task."""
    module, options = MODULES[name]
    return import_module(f"engines.{module}").load(path, task, threads, **options)
