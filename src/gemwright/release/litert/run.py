"""Run an exported model by LiteRT, as LiteRT-LM does: chunks of a prompt, then one token at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel  # pyright: ignore[reportMissingImports]
from ai_edge_litert.options import CpuOptions, Options  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import file_error
from gemwright.release.litert.program import MASKED
from gemwright.runtime import machine

FIXED = ("tokens", "input_pos", "mask", "logits")
"""Inputs and outputs that are no states."""


class Decoder:
    """A decoder of one sequence, whose states are buffers that are read and written in turn."""

    def __init__(self, path: Path):
        """Open a `.tflite`.

        Raises:
            CheckpointError: LiteRT cannot open it, or it is no exported decoder.
        """
        try:
            self._model = CompiledModel.from_file(str(path), options=Options(cpu_options=CpuOptions(machine.cores())))
        except RuntimeError as error:
            raise file_error(path, "cannot be opened by LiteRT", "export the model again") from error
        self._inputs = {name: self._model.get_input_tensor_details(name) for name in self._model.get_signature_list()}
        if "decode" not in self._inputs or not any("prefill" in name for name in self._inputs):
            raise file_error(path, "has no signatures prefill and decode", "choose a file of `gemwright export`")
        details = self._inputs["decode"]
        self.context: int = details["mask"]["shape"][-1]
        self.vocabulary: int = self._model.get_output_tensor_details("decode")["logits"]["shape"][-1]
        self._states = [name for name in details if name not in FIXED]
        self._chunk = next(self._inputs[name]["tokens"]["shape"][1] for name in self._inputs if "prefill" in name)
        self._now, self._next = (self._make_states() for _ in range(2))
        self._given = {
            name: {
                key: self._model.create_input_buffer_by_name(name, key) for key in FIXED if key in self._inputs[name]
            }
            for name in ("decode", f"prefill_{self._chunk}")
        }
        self._logits = self._model.create_output_buffer_by_name("decode", "logits")
        self.length = 0

    def _make_states(self) -> dict[str, Any]:
        return {name: self._model.create_input_buffer_by_name("decode", name) for name in self._states}

    def start(self, tokens: Sequence[int]) -> None:
        """Forget all tokens and prefill these."""
        self.length = 0
        for name in self._states:
            self._now[name].write(np.zeros(self._inputs["decode"][name]["shape"], np.float32))
        for first in range(0, len(tokens), self._chunk):
            part = tokens[first : first + self._chunk]
            self._call(f"prefill_{self._chunk}", part, self._chunk, {})

    def decode(self, token: int) -> NDArray[np.float32]:
        """Return the logits [V] after a token."""
        self._call("decode", [token], 1, {"logits": self._logits})
        return self._logits.read(self.vocabulary, np.float32)

    def generate(self, tokens: Sequence[int], count: int) -> Iterator[int]:
        """Yield the most likely tokens after some."""
        self.start(tokens[:-1])
        last = tokens[-1]
        for _ in range(count):
            last = int(np.argmax(self.decode(last)))
            yield last

    def _call(self, name: str, part: Sequence[int], size: int, results: dict[str, Any]) -> None:
        count = len(part)
        tokens, positions = np.zeros((1, size), np.int32), np.full(size, -1, np.int32)
        tokens[0, :count], positions[:count] = part, np.arange(self.length, self.length + count)
        mask = np.full((1, 1, size, self.context), MASKED, np.float32)
        for row in range(count):
            mask[0, 0, row, : self.length + row + 1] = 0
        for key, values in (("tokens", tokens), ("input_pos", positions), ("mask", mask)):
            if key in self._given[name]:
                self._given[name][key].write(values)
        self._model.run_by_name(name, self._given[name] | self._now, results | self._next)
        self._now, self._next = self._next, self._now
        self.length += count
