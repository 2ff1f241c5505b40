"""Models of the benchmark: the demo weights in the formats of all engines, and a larger model of random weights.

They are made once and kept in `bench/.cache`, which `make clean` removes.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from worker import PROMPT

from gemwright import tree
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.demo import DEMO
from gemwright.checkpoint.files.atomic import replace_file
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.files.parts import find_parts
from gemwright.checkpoint.load import row_chunks
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model.params import param_specs
from gemwright.text.tokenizer import Tokenizer
from gemwright.variants import VARIANTS

CACHE = Path(__file__).with_name(".cache")
LARGE = "gemma-2-2b"
OPENVINO = CACHE / "openvino"
"""Folder of `venv` and `model`, if made by the commands in bench/README.md."""
PER_VOCABULARY = ("tokens", "scores", "token_type")
"""Tokenizer keys of a GGUF file with one entry per id."""


def locate_demo() -> Path:
    """Return one file with the demo weights, Q4_K_M, for all engines; join it from its parts if missing."""
    path = CACHE / f"{DEMO}-q4_k_m.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with replace_file(path) as file:
            for part in find_parts(locate(DEMO)):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
    return path


def write_prompt() -> None:
    """Write the token ids of the license, a few thousand, without those that Gemma 2 lacks."""
    CACHE.mkdir(exist_ok=True)
    checkpoint = open_checkpoint(locate_demo())
    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    ids = Tokenizer(checkpoint.vocabulary()).encode(text)
    PROMPT.write_text(json.dumps([token for token in ids if token < VARIANTS[LARGE].config.vocab]))


def make_demo_folder() -> Path:
    """Return a folder with the demo weights in float32 for transformers; make it if missing."""
    folder = CACHE / DEMO
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"making {folder}", file=sys.stderr)
        convert(locate_demo(), folder, "huggingface", "float32")
    return folder


def make_large_gguf() -> Path:
    """Return a GGUF file of Gemma 2 2B's shapes; make it if missing.

    Weights are random, every matrix is in Q4_0, and the tokenizer is the demo's, truncated to 256,000 pieces.
    """
    path = CACHE / f"{LARGE}-random-q4_0.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"making {path}, 1.5 GB", file=sys.stderr)
        _write_random(path)
    return path


def _write_random(path: Path) -> None:
    config = VARIANTS[LARGE].config
    random = np.random.default_rng(0)

    def gains(size: int) -> Iterator[NDArray[np.float32]]:
        yield np.ones(size, np.float32)

    def matrix(shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        deviation = np.float32(shape[-1] ** -0.5)  # activations keep their magnitude from layer to layer
        for rows in row_chunks(shape):
            yield random.standard_normal((rows.stop - rows.start, *shape[1:]), np.float32) * deviation

    mapping = map_gguf(config)
    tensors = []
    for ours, param in tree.flatten(param_specs(config)).items():
        name, shape = mapping[ours].name, mapping[ours].shape
        encoding, chunks = ("Q4_0", matrix(shape)) if param.linear else ("F32", gains(shape[0]))
        tensors.append(GgufTensor(name, shape, encoding, chunks))
    tokenizer = {key: value for key, value in open_gguf(locate_demo()).metadata.items() if key.startswith("tokenizer.")}
    for key in PER_VOCABULARY:
        tokenizer[f"tokenizer.ggml.{key}"] = tokenizer[f"tokenizer.ggml.{key}"][: config.vocab]
    write_gguf(path, to_gguf(config) | tokenizer | {"general.file_type": 2}, tensors)
