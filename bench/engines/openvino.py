"""The OpenVINO GenAI engine, with 8-bit weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino_genai as genai
from openvino import Tensor

from engines import Task


class _Steps(genai.StreamerBase):
    """A streamer that passes on ids, which arrive one or several at a time."""

    def __init__(self, known: Callable[[list[int]], None]):
        super().__init__()
        self.known = known

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        for one in [token] if isinstance(token, int) else token:
            self.known([one])
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class OpenVino:
    """An engine for one sequence at a time; see `engines.Engine`."""

    pipeline: Any

    def encode(self, text: str) -> list[int]:
        return self.pipeline.get_tokenizer().encode(text).input_ids.data[0].tolist()

    def decode(self, token: int) -> str:
        return self.pipeline.get_tokenizer().decode([token])

    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        config = genai.GenerationConfig(max_new_tokens=task.tokens, ignore_eos=True, do_sample=task.sampled)
        if task.sampled:
            config.temperature, config.top_k, config.top_p = 1.0, 64, 0.95
        self.pipeline.generate(Tensor(np.asarray(prompts, np.int64)), config, _Steps(known))


def load(path: str, task: Task, threads: int) -> OpenVino:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # otherwise a repeated prompt costs nothing
    return OpenVino(genai.LLMPipeline(path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads))
