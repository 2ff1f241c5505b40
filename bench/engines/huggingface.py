"""The transformers engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from engines import Task


class _Steps(BaseStreamer):
    """A streamer that passes on the ids of each step, except the first, which are the prompts."""

    def __init__(self, known: Callable[[list[int]], None]):
        self.known, self.prompts_passed = known, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompts_passed:
            self.known(value.tolist())
        self.prompts_passed = True

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Transformers:
    """An engine; see `engines.Engine`."""

    model: AutoModelForCausalLM
    tokenizer: AutoTokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    def decode(self, token: int) -> str:
        return self.tokenizer.decode(token)

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        ids = torch.tensor(prompts)
        chosen = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95} if task.sampled else {}
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=task.tokens,
            streamer=_Steps(known),
            **({"do_sample": False} | chosen),
        )


def load(path: str, task: Task, threads: int, dtype: str) -> Transformers:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # every engine generates all requested tokens
    return Transformers(model, AutoTokenizer.from_pretrained(path))
