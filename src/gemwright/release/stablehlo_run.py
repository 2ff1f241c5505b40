"""Run the model in this folder with jax and safetensors alone.

python run.py "Once upon a time"      (needs the package tokenizers, too)
python run.py --ids 2 14946 3324 496 990
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


class Model:
    """The programs and weights of a folder."""

    def __init__(self, folder: Path, weights: Mapping[str, Any] | None = None):
        """Read a folder; `weights` are arrays by name in place of its `weights.safetensors`."""
        self.about: dict[str, Any] = json.loads((folder / "stablehlo.json").read_text())
        if weights is None:
            from safetensors.flax import load_file

            weights = load_file(folder / "weights.safetensors")
        self.weights = [jax.device_put(weights[name]) for name in self.about["weights"]]
        self.steps: dict[int, Any] = {
            size: jax.jit(export.deserialize(bytearray((folder / f"step_{size}.stablehlo").read_bytes())).call)
            for size in map(int, self.about["sizes"])
        }

    def start(self) -> "Sequence":
        """Begin an empty sequence."""
        return Sequence(self)


class Sequence:
    """The state of one sequence."""

    def __init__(self, model: Model):
        """Begin an empty sequence of a model."""
        self.model = model
        self.state: list[Any] = [np.zeros(entry["shape"], entry["dtype"]) for entry in model.about["state"]]

    def read(self, ids: Iterable[int]) -> Any:
        """Add tokens and return the logits after the last, [V] float32."""
        ids, sizes, logits = list(ids), sorted(self.model.steps), None
        while ids:
            size = next((size for size in sizes if size >= len(ids)), sizes[-1])
            part, ids = ids[:size], ids[size:]
            tokens = np.zeros((1, size), np.int32)
            tokens[0, : len(part)] = part
            logits, self.state = self.model.steps[size](self.model.weights, tokens, np.int32(len(part)), self.state)
        return np.asarray(logits)[0]


def generate(model: Model, ids: list[int], count: int = 40) -> list[int]:
    """Continue ids greedily."""
    sequence, made = model.start(), list[int]()
    count = min(count, model.about["capacity"] - len(ids))
    logits = sequence.read(ids)
    while len(made) < count and (token := int(np.argmax(logits))) not in model.about["stops"]:
        made.append(token)
        logits = sequence.read([token])
    return made


if __name__ == "__main__":
    folder = Path(__file__).parent
    model, words = Model(folder), sys.argv[1:]
    if words[:1] == ["--ids"]:
        sys.stdout.write(" ".join(map(str, generate(model, list(map(int, words[1:]))))) + "\n")
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(words[0], add_special_tokens=False).ids
        sys.stdout.write(words[0] + tokenizer.decode(generate(model, [model.about["bos"], *ids])) + "\n")
