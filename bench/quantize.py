"""Quality of gemwright's quantizer beside llama.cpp's: how far files of both are from the model in float32.

python bench/quantize.py TEXT --calibration OTHER [--tokens 2048]     such as the test and valid parts of WikiText-2

The demo weights are values of Q4_K_M, which a quantizer could find again. So each input of a matrix is multiplied by a
random factor, which is divided out in the gain or matrix before it: the model is the same, its weights on no grid.
gemwright in float32 scores all files, in windows of 512 tokens after a BOS. Prints the mean Kullback-Leibler
divergence from the model in float32 with its standard error, how often the most likely token is the same, and the
perplexity.
"""

import argparse
import ctypes
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import models
import numpy as np
from numpy.typing import NDArray
from quality import ROWS, WINDOW

import gemwright
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files.gguf import GgufFile, GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.imatrix import read_imatrix
from gemwright.checkpoint.mixtures import MIXTURES
from gemwright.checkpoint.names.gguf import LAYER
from gemwright.model import transformer
from gemwright.model.params import ModelWeights

DTYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "iq4_nl", "q4_0", "q3_k_m", "q2_k")
WEIGHTED = ("q4_k_m", "iq4_xs")
"""Dtypes that are also measured with an importance matrix."""
PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
"""Projections of attention in transformers and here."""


class Scores(NamedTuple):
    """Divergence at each token of a text, whether the most likely token is the same, negative log-likelihood."""

    divergence: Any
    same: Any
    loss: Any


def write_source(target: Path) -> None:
    """Write the demo weights in float32 with random factors, between 0.7 and 1.4, of the inputs of each matrix."""
    file, random = open_gguf(models.locate_demo()), np.random.default_rng(0)
    gains: dict[str, NDArray[np.float32]] = {}
    columns: dict[str, NDArray[np.float32]] = {}

    def factors(size: int) -> NDArray[np.float32]:
        return np.exp2(random.uniform(-0.5, 0.5, size)).astype(np.float32)

    for layer in range(int(file.metadata["gemma3.block_count"])):
        names = {leaf: f"blk.{layer}.{name}.weight" for leaf, name in LAYER.items()}
        for norm, matrices in (("mixer_norm", ("q", "k", "v")), ("mlp_norm", ("gate", "up"))):
            values = factors(file.tensors[names[norm]].shape[0])
            gains[names[norm]] = 1 / values
            columns |= {names[f"{norm.removesuffix('_norm')}.{matrix}"]: values for matrix in matrices}
        hidden, values = (factors(file.tensors[names[leaf]].shape[0]) for leaf in ("mlp.up", "mixer.v"))
        gains |= {names["mlp.up"]: 1 / hidden[:, None], names["mixer.v"]: 1 / values[:, None]}
        columns[names["mlp.down"]] = hidden
        width = int(file.metadata["gemma3.attention.value_length"])
        shared = file.tensors[names["mixer.o"]].shape[1] // len(values)  # query heads of a head of values
        columns[names["mixer.o"]] = np.repeat(values.reshape(-1, width), shared, axis=0).ravel()

    tensors = [
        GgufTensor(name, info.shape, "F32", _scaled(file, name, gains.get(name, 1), columns.get(name, 1)))
        for name, info in file.tensors.items()
    ]
    write_gguf(target, dict(file.metadata) | {"general.file_type": 0}, tensors)


def _scaled(file: GgufFile, name: str, gains: Any, columns: Any) -> Iterator[NDArray[np.float32]]:
    yield file.read(name) * np.float32(1) * gains * columns


def write_imatrix(source: Path, target: Path, windows: Sequence[Sequence[int]]) -> None:
    """Write the mean squares of the inputs of each matrix, as llama-imatrix does, from the model in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = target.with_suffix(".folder")
    if not folder.exists():
        convert(source, folder, "huggingface", "float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums: dict[str, Any] = defaultdict(float)

    def add(name: str, inputs: Any) -> None:
        sums[name] += inputs.reshape(-1, inputs.shape[-1]).square().sum(dim=0).numpy()

    for index, layer in enumerate(model.model.layers):
        linears = {f"mixer.{leaf}": getattr(layer.self_attn, name) for name, leaf in PROJECTIONS.items()}
        linears |= {f"mlp.{leaf}": getattr(layer.mlp, f"{leaf}_proj") for leaf in ("gate", "up", "down")}
        for leaf, linear in linears.items():
            name = f"blk.{index}.{LAYER[leaf]}.weight"
            linear.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
    with torch.no_grad():
        for window in windows:
            model(torch.tensor([window]), logits_to_keep=1)
    with target.open("wb") as file:
        file.write(struct.pack("<i", len(sums)))
        for name, values in sums.items():
            file.write(struct.pack(f"<i{len(name)}sii", len(name), name.encode(), 1, len(values)))
            file.write((values / (len(windows) * len(windows[0]))).astype("<f4").tobytes())


def quantize_with_llama_cpp(
    source: Path, target: Path, dtype: str, importance: Mapping[str, NDArray[np.float32]]
) -> None:
    """Quantize a GGUF file with llama.cpp."""
    import llama_cpp.llama_cpp as lib
    from llama_cpp._logger import set_verbose

    set_verbose(False)
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = MIXTURES[dtype].file_type
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()  # the last has no name, which ends the list
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        parameters.imatrix = entries
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise RuntimeError(f"llama.cpp cannot quantize {source} to {dtype}")


class Scorer:
    """Scores files by their difference from the source, whose logits are kept in a file."""

    def __init__(self, source: Path, windows: Sequence[Sequence[int]]):
        model = gemwright.load(source, dtype="float32")
        self.config, self.windows = model.engine.config, [jnp.asarray(window) for window in windows]
        self.hidden = jax.jit(lambda params, ids: transformer.forward(self.config, params, ids[None, :-1])[0][0])
        self.logits = jax.jit(lambda table, hidden: transformer.logits(self.config, table, hidden))
        self.file, losses = source.with_suffix(".logits"), []
        with self.file.open("wb") as file:
            for targets, logits in self._chunks(model.engine.params):
                file.write(np.asarray(logits).data)
                losses.append(_compare(logits, logits, targets).loss)
        self.loss = np.concatenate(losses)

    def score(self, path: Path) -> Scores:
        """Return the scores of a file."""
        params, parts = gemwright.load(path, dtype="float32").engine.params, []
        with self.file.open("rb") as file:
            for targets, logits in self._chunks(params):
                expected = np.frombuffer(file.read(logits.nbytes), np.float32).reshape(logits.shape)
                parts.append(_compare(logits, expected, targets))
        return Scores(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _chunks(self, params: ModelWeights) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yield the next tokens and the logits of some positions at a time."""
        table = replace(params, layers=())  # the embedding, which is also the head
        for ids in self.windows:
            hidden = self.hidden(params, ids)
            for start in range(0, WINDOW, ROWS):
                yield ids[start + 1 : start + 1 + ROWS], self.logits(table, hidden[start : start + ROWS])


@jax.jit
def _compare(found: jax.Array, expected: jax.Array, targets: jax.Array) -> Scores:
    found, expected = jax.nn.log_softmax(found, axis=-1), jax.nn.log_softmax(expected, axis=-1)
    divergence = jnp.sum(jnp.exp(expected) * (expected - found), axis=-1)
    same = jnp.argmax(found, axis=-1) == jnp.argmax(expected, axis=-1)
    return Scores(divergence, same, -jnp.take_along_axis(found, targets[:, None], axis=-1)[:, 0])


def read_windows(source: Path, text: Path, tokens: int) -> list[list[int]]:
    """Return the first tokens of a text in windows, each after a BOS."""
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(open_checkpoint(source).vocabulary())
    ids = tokenizer.encode(text.read_text(encoding="utf-8")[: 16 * tokens])
    if len(ids) < tokens or tokens < WINDOW:
        raise SystemExit(f"{text} has {len(ids)} tokens, but {max(tokens, WINDOW)} are needed.")
    return [[tokenizer.bos_id, *ids[start : start + WINDOW]] for start in range(0, tokens // WINDOW * WINDOW, WINDOW)]


def write_row(dtype: str, quantizer: str, size: int, scores: Scores) -> None:
    """Print a row of the table."""
    error = scores.divergence.std(ddof=1) / len(scores.divergence) ** 0.5
    print(
        f"| {dtype} | {quantizer} | {size / 1e6:.0f} MB | {scores.divergence.mean():.4f} ± {error:.4f} "
        f"| {scores.same.mean():.1%} | {np.exp(scores.loss.mean()):.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text of the importance matrix")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", nargs="*", default=DTYPES, choices=DTYPES)
    parser.add_argument("--folder", type=Path, default=models.CACHE / "quantize", help="place of files, 4.5 GB")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    source, imatrix = arguments.folder / "source.gguf", arguments.folder / "imatrix.dat"
    if not source.exists():
        write_source(source)
    if not imatrix.exists():
        write_imatrix(source, imatrix, read_windows(source, arguments.calibration, 16 * WINDOW))
    scorer = Scorer(source, read_windows(source, arguments.text, arguments.tokens))
    print("| dtype | quantizer | size | divergence | same most likely token | perplexity |")
    print("|---|---|---|---|---|---|")
    print(f"| float32 | | {source.stat().st_size / 1e6:.0f} MB | | | {np.exp(scorer.loss.mean()):.2f} |", flush=True)
    for dtype in arguments.only:
        for weighted in (False, True)[: 1 + (dtype in WEIGHTED)]:
            for quantizer in ("gemwright", "llama.cpp"):
                target = arguments.folder / f"{dtype}.gguf"
                target.unlink(missing_ok=True)
                print(f"{dtype}, {quantizer}", file=sys.stderr)
                if quantizer == "gemwright":
                    convert(source, target, "gguf", dtype, imatrix=imatrix if weighted else None)
                else:
                    quantize_with_llama_cpp(source, target, dtype, read_imatrix(imatrix) if weighted else {})
                size, name = target.stat().st_size, f"{dtype}, importance matrix" if weighted else dtype
                write_row(name, quantizer, size, scorer.score(target))
                target.unlink()


if __name__ == "__main__":
    main()
