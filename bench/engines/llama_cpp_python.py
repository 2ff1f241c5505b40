"""The llama.cpp engine, through the C functions of llama-cpp-python, whose `Llama` class decodes only one sequence.

Settings are those of llama.cpp's own programs: flash attention chosen by the library, caches of local layers limited to
their window, and a separate cache per sequence.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from llama_cpp._logger import set_verbose
from numpy.typing import NDArray

from engines import Task

BATCH = 2048
"""Maximum tokens per call, the library's default; it processes 512 of them at a time."""


@dataclass(frozen=True)
class LlamaCpp:
    """An engine; see `engines.Engine`.

    Attributes:
        context: Handle of weights, caches and threads.
        vocabulary: Handle of the tokenizer.
        batch: Input buffer of tokens.
    """

    context: Any
    vocabulary: Any
    batch: Any

    def encode(self, text: str) -> list[int]:
        raw, room = text.encode(), len(text.encode()) + 1
        ids = (lib.llama_token * room)()
        return ids[: lib.llama_tokenize(self.vocabulary, raw, len(raw), ids, room, True, False)]

    def decode(self, token: int) -> str:
        piece = ctypes.create_string_buffer(256)
        size = lib.llama_token_to_piece(self.vocabulary, token, piece, len(piece), 0, False)
        return piece.raw[:size].decode(errors="replace")

    def write(self, prompts: Sequence[Sequence[int]], task: Task, known: Callable[[list[int]], None]) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        samplers = [_make_sampler(task.sampled, seed=index) for index in range(len(prompts))]
        length = len(prompts[0])
        step = max(1, BATCH // len(prompts))
        for start in range(0, length, step):
            last = self.prefill([list(prompt[start : start + step]) for prompt in prompts], start)
        for position in range(length, length + task.tokens):
            # Logits of a sequence have the index of its last token in the batch.
            tokens = [lib.llama_sampler_sample(s, self.context, i) for s, i in zip(samplers, last, strict=True)]
            known(tokens)
            if position + 1 < length + task.tokens:
                last = self.prefill([[token] for token in tokens], position)
        for sampler in samplers:
            lib.llama_sampler_free(sampler)

    def prefill(self, sequences: Sequence[Sequence[int]], position: int, every: bool = False) -> list[int]:
        """Prefill the next tokens of each sequence, from `position` on.

        Returns:
            Index in the batch of each sequence's last token, whose logits are computed; of all tokens if `every`.
        """
        batch, size = self.batch, 0
        for sequence, ids in enumerate(sequences):
            for offset, token in enumerate(ids):
                batch.token[size], batch.pos[size] = token, position + offset
                batch.n_seq_id[size], batch.seq_id[size][0] = 1, sequence
                batch.logits[size] = every or offset == len(ids) - 1
                size += 1
        batch.n_tokens = size
        if code := lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        return [index for index in range(size) if batch.logits[index]]

    def logits(self, ids: Sequence[int], count: int) -> Iterator[NDArray[np.float32]]:
        """Yield logits [count, V] of a text, `count` tokens at a time, in memory of the library."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        width = lib.llama_vocab_n_tokens(self.vocabulary)
        for start in range(0, len(ids), count):
            indices = self.prefill([ids[start : start + count]], start, every=True)
            yield np.ctypeslib.as_array(lib.llama_get_logits(self.context), (len(indices), width))


def _make_sampler(sampled: bool, seed: int) -> Any:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    steps = (
        [
            lib.llama_sampler_init_top_k(64),
            lib.llama_sampler_init_top_p(0.95, 1),
            lib.llama_sampler_init_temp(1.0),
            lib.llama_sampler_init_dist(seed),
        ]
        if sampled
        else [lib.llama_sampler_init_greedy()]
    )
    for step in steps:
        lib.llama_sampler_chain_add(chain, step)
    return chain


def repacks() -> bool:
    """Return whether weights may be repacked: this release crashes if compiled with AMX."""
    return b"AMX_INT8 = 1" not in lib.llama_print_system_info()


def load(path: str, task: Task, threads: int) -> LlamaCpp:
    set_verbose(False)
    lib.llama_backend_init()
    model_parameters = lib.llama_model_default_params()
    model_parameters.use_extra_bufts = repacks()
    model = lib.llama_model_load_from_file(path.encode(), model_parameters)
    parameters = lib.llama_context_default_params()
    parameters.n_seq_max = task.sequences
    parameters.n_ctx = task.sequences * -(-(task.prompt + task.tokens) // 256) * 256
    parameters.n_batch = BATCH
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.swa_full = False
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return LlamaCpp(context, lib.llama_model_get_vocab(model), lib.llama_batch_init(BATCH, 0, 1))
