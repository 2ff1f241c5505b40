"""Portable StableHLO programs of a model, which a process with jax and safetensors alone runs.

A folder has a program for each number of tokens that it reads at once, for CPUs, CUDA and TPUs; the weights; the
tokenizer; `stablehlo.json`, which describes them; and `run.py`, which reads them.

Source: jax `docs/export/export.md`; openxla/stablehlo `docs/compatibility.md`: six months of backward compatibility.
"""

import datetime
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from gemwright import tree
from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.convert import check_new
from gemwright.checkpoint.documents import text_documents
from gemwright.checkpoint.files.atomic import create_folder, file_error
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, open_safetensors, write_safetensors
from gemwright.checkpoint.load import read_weights
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs
from gemwright.kernels import choice
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import param_specs
from gemwright.model.state import abstract_state
from gemwright.release import stablehlo_run
from gemwright.release.targets import MANIFEST, ExportOptions, Progress
from gemwright.release.verify.report import Check, passes, some
from gemwright.release.verify.runtime import compare_run, refused_if_failed

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(jnp.bfloat16)}
WEIGHTS = "weights.safetensors"


def export_stablehlo(source: Path, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the decoder of a checkpoint as StableHLO programs and safetensors.

    Args:
        source: A checkpoint in any format. Its vision tower is left out.
        target: The folder to make.
        options: `weights` is f32 or bf16; `context` is the number of tokens of a sequence.
        progress: Called with a line about each stage.

    Raises:
        GemwrightError: The checkpoint cannot be read, an option is unknown, or the programs differ from the source.
    """
    _require_flatbuffers()
    checkpoint = open_checkpoint(source)
    weights = options.weights or "f32"
    if weights not in DTYPES:
        raise GemwrightError(f"StableHLO programs have no weights {weights!r:.40}; choose f32 or bf16.")
    if not 1 <= options.context <= checkpoint.config.max_length:
        raise GemwrightError(f"The context is {options.context}; choose 1 to {checkpoint.config.max_length} tokens.")
    check_new(target)
    config = replace(checkpoint.config, vision=None)
    verify = (lambda: verify_stablehlo(target, source, progress)) if options.verify else None
    with refused_if_failed(target, verify):
        _write(checkpoint, config, target, DTYPES[weights], options.context, progress)


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise GemwrightError("jax.export needs the package flatbuffers; install 'gemwright[stablehlo]'.")


def _write(
    checkpoint: Checkpoint, config: Config, target: Path, dtype: np.dtype[Any], capacity: int, progress: Progress
) -> None:
    params, vocabulary = tree.flatten(param_specs(config)), checkpoint.vocabulary()
    nbytes = sum(math.prod(param.shape) * dtype.itemsize for param in params.values())
    sizes = [1, *(size for size in buckets.CHUNKS if size <= capacity)]
    manifest = _describe(checkpoint, config, dtype, capacity, sizes, min(vocabulary.size, config.vocab))
    documents = {MANIFEST: manifest, "tokenizer.json": text_documents(checkpoint, vocabulary)["tokenizer.json"]}
    with create_folder(target, nbytes) as folder:
        for size in sizes:
            progress(f"Exporting the program for {size} tokens ...")
            program = export_step(config, size, capacity, dtype, min(vocabulary.size, config.vocab))
            (folder / f"step_{size}.stablehlo").write_bytes(program)
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer.model").write_bytes(vocabulary.sentencepiece_model())
        (folder / "run.py").write_bytes(files("gemwright.release").joinpath("stablehlo_run.py").read_bytes())
        progress("Writing the weights ...")
        _write_weights(checkpoint, config, folder, dtype)


def _write_weights(checkpoint: Checkpoint, config: Config, folder: Path, dtype: np.dtype[Any]) -> None:
    params = tree.flatten(param_specs(config))
    mapping = {path: checkpoint.mapping[path] for path in checkpoint.mapping if not path.startswith("vision.")}
    read = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype, order=params)
    assert mapping.keys() == params.keys()

    def produce(path: str) -> Any:
        found, values = next(read)
        assert found == path
        return values

    tensors = [SafetensorsTensor(path, spec.shape, dtype, lambda p=path: produce(p)) for path, spec in params.items()]
    write_safetensors(folder, tensors, shard_bytes=1 << 62)
    (folder / "model.safetensors").rename(folder / WEIGHTS)


def export_step(config: Config, size: int, capacity: int, dtype: np.dtype[Any], vocabulary: int) -> bytes:
    """Return the program that adds up to `size` tokens to a sequence, serialized.

    It maps weights (a list in tree order), tokens [1, size] int32, their count, and the state (a list) to the logits
    after the last token [1, V] float32, -inf for padding ids, and the new state.
    """
    specs = param_specs(config)
    params = tree.flatten(specs)
    empty = abstract_state(config, 1, capacity, dtype)
    state = tree.flatten(empty)

    def step(weights: list[Any], tokens: Any, count: Any, before: list[Any]) -> tuple[Any, list[Any]]:
        model = tree.build(specs, dict(zip(params, weights, strict=True)))
        valid = jnp.arange(size)[None] < count
        hidden, after = programs.forward(
            config, model, tokens, valid, tree.build(empty, dict(zip(state, before, strict=True)))
        )
        last = jax.lax.dynamic_index_in_dim(hidden, jnp.maximum(count - 1, 0), axis=1, keepdims=False)
        logits = programs.real_logits(transformer.logits(config, model, last), vocabulary)
        return logits, list(tree.flatten(after).values())

    shapes = [jax.ShapeDtypeStruct(param.shape, dtype) for param in params.values()]
    tokens, count = jax.ShapeDtypeStruct((1, size), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    with choice.use("reference"):  # another process has no C++ kernels
        exported = export.export(jax.jit(step), platforms=PLATFORMS)(shapes, tokens, count, list(state.values()))
    return bytes(exported.serialize())


def _describe(
    checkpoint: Checkpoint, config: Config, dtype: np.dtype[Any], capacity: int, sizes: list[int], vocabulary: int
) -> dict[str, Any]:
    state = tree.flatten(abstract_state(config, 1, capacity, dtype))
    return {
        "format": "gemwright-stablehlo",
        "version": 1,
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platforms": PLATFORMS,
        "model": checkpoint.family.name,
        "dtype": dtype.name,
        "capacity": capacity,
        "vocabulary": vocabulary,
        "bos": 2,
        "stops": checkpoint.stop_ids or (1,),
        "sizes": sizes,
        "signature": "(weights, tokens [1, size] int32, count int32, state) -> (logits [1, V] float32, state)",
        "weights": list(tree.flatten(param_specs(config))),
        "state": [{"name": name, "shape": leaf.shape, "dtype": leaf.dtype.name} for name, leaf in state.items()],
    }


def verify_stablehlo(folder: Path, source: Path, progress: Progress) -> Iterator[Check]:
    """Compare the programs of a folder with the source of its weights.

    Raises:
        CheckpointError: The folder is damaged.
    """
    _require_flatbuffers()
    manifest = ConfigReader(read_json(folder / MANIFEST), str(folder / MANIFEST))
    yield _compare_weights(folder, manifest.data, source)
    progress("Running the programs beside their source ...")
    weights = open_safetensors(folder / WEIGHTS)
    try:
        model = stablehlo_run.Model(folder, {name: weights.read(name) for name in weights.tensors})
    except Exception as error:  # jax raises anything on a damaged program
        raise file_error(
            folder, f"has programs that cannot be read ({error!s:.200})", "export the model again"
        ) from error
    yield compare_run(model.start, source, str(manifest.data.get("dtype")), manifest.integer("capacity"))


def _compare_weights(folder: Path, manifest: Mapping[str, Any], source: Path) -> Check:
    checkpoint, file = open_checkpoint(source), open_safetensors(folder / WEIGHTS)
    params = tree.flatten(param_specs(replace(checkpoint.config, vision=None)))
    shapes = {name: info.shape for name, info in file.tensors.items()}
    if shapes != {path: param.shape for path, param in params.items()}:
        return Check("weights", "failed", "the weights have other names or shapes than those of the source")
    dtype = DTYPES["bf16" if manifest.get("dtype") == "bfloat16" else "f32"]
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, dtype, order=params)
    changed = [path for path, values in weights if not np.array_equal(file.read(path), values)]
    detail = f"{len(params)} weights are the source's in {dtype.name}, bit for bit"
    return passes("weights", not changed, f"{some(changed)} differ" if changed else detail)
