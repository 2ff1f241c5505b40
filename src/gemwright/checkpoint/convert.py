"""From any format to Hugging Face safetensors or GGUF: the name tables read backwards, one tensor at a time."""

import contextlib
import json
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs import processor
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_safetensors
from gemwright.checkpoint.load import Progress, read_weights, row_chunks
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.errors import CheckpointError
from gemwright.model.config import Config
from gemwright.text.chat import GEMMA
from gemwright.text.vocabulary import Vocabulary

Format = Literal["huggingface", "gguf"]
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ENCODINGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""What each dtype of ours is called in a GGUF."""
FILE_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q8_0": 7, "bfloat16": 32}
"""`general.file_type` of a GGUF, llama.cpp `include/llama.h`."""


def convert(
    source: Path,
    target: Path,
    to: Format,
    dtype: str | None = None,
    variant: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Checkpoint:
    """Write a checkpoint in another format, with its configuration, tokenizer and generation settings.

    A GGUF of a Gemma 3 that sees holds its decoder alone; llama.cpp reads towers from files of another kind.

    Args:
        source: A checkpoint in any format.
        target: What to make: a folder for Hugging Face, a file for GGUF. It must not exist.
        to: The format.
        dtype: float32, float16, bfloat16, and for GGUF q8_0 or q4_0. By default that of the source's matrices, or
            float32 where they are quantised.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the bytes read so far and the bytes in all.

    Returns:
        The source.

    Raises:
        CheckpointError: the source cannot be read or expressed in the format, or the target cannot be written.
    """
    checkpoint = open_checkpoint(source, variant)
    dtype = dtype or _own_dtype(checkpoint)
    allowed = ENCODINGS if to == "gguf" else DTYPES
    if dtype not in allowed:
        raise CheckpointError(f"The format {to} has no dtype {dtype!r}; choose one of {', '.join(allowed)}.")
    write = _write_gguf if to == "gguf" else _write_huggingface
    with new(target):
        write(checkpoint, checkpoint.vocabulary(), target, dtype, progress)
    return checkpoint


@contextlib.contextmanager
def new(target: Path) -> Generator[None]:
    """For the writing of a file or folder that must not exist.

    Raises:
        CheckpointError: it exists, or cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists; remove it or choose another name.")
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror or error}); choose another place."
        ) from error


def _own_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of the source's matrices, or float32 where they are quantised or differ."""
    encodings = {info.encoding for info in checkpoint.file.tensors.values() if len(info.shape) > 1}
    known = {encoding: name for name, encoding in ENCODINGS.items() if name in DTYPES}
    return known.get(encodings.pop(), "float32") if len(encodings) == 1 else "float32"


def _write_huggingface(
    checkpoint: Checkpoint, vocabulary: Vocabulary, folder: Path, dtype: str, progress: Progress
) -> None:
    mapping = map_huggingface(checkpoint.config)
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, DTYPES[dtype], progress)

    def produce(path: str, stored: TensorMapping) -> NDArray[Any]:
        read, values = next(weights)
        assert read == path
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{folder}: tensor {stored.name} has values that are not finite, or too large for {dtype}; "
                "repair the model or choose float32."
            )
        return stored.as_stored(values)

    tensors = [
        SafetensorsTensor(stored.name, stored.shape, DTYPES[dtype], lambda p=path, s=stored: produce(p, s))
        for path, stored in mapping.items()
    ]
    write_folder(folder, checkpoint, vocabulary, tensors, to_huggingface(checkpoint.config, dtype))


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    tensors: Iterable[SafetensorsTensor],
    config: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder, beside its place at first.

    Args:
        folder: What to make.
        checkpoint: The source of all but the weights.
        vocabulary: The source's.
        tensors: The weights.
        config: What `config.json` says of the model, all but the ids of its tokens.

    Raises:
        CheckpointError: a tensor cannot be written; nothing is left behind, whatever went wrong.
    """
    documents = _documents(checkpoint, vocabulary, config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_safetensors(partial, tensors)  # makes the folder, and its parents
        for name, document in documents.items():
            (partial / name).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
        if checkpoint.config.vision and checkpoint.chat_template is not None:  # where processors look for it
            (partial / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")
        (partial / "tokenizer.model").write_bytes(vocabulary.sentencepiece_model())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _documents(
    checkpoint: Checkpoint, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The JSON files of a folder, by name."""
    config, special = dict(config), _special_ids(checkpoint, vocabulary)
    settings, documents = vocabulary.tokenizer_config(checkpoint.chat_template), {}
    if vision := checkpoint.config.vision:
        family = checkpoint.family
        vocabulary = add_control_tokens(vocabulary, *processor.missing_tokens(family, vocabulary))
        config |= processor.token_ids(family, vocabulary)
        settings |= processor.tokenizer_keys(family)
        documents = processor.processor_documents(family, vision)
    return {
        "config.json": config | special,
        "generation_config.json": special | dict(checkpoint.generation),
        "tokenizer.json": vocabulary.tokenizer_json(),
        "tokenizer_config.json": settings,
        **documents,
    }


def _special_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    index = vocabulary.pieces.index
    stops = list(checkpoint.stop_ids) or [index("<eos>")]
    return {
        "bos_token_id": index("<bos>"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": index("<pad>"),
    }


def _write_gguf(checkpoint: Checkpoint, vocabulary: Vocabulary, file: Path, dtype: str, progress: Progress) -> None:
    # llama.cpp wants exactly one row for each piece of the vocabulary.
    size = min(vocabulary.size, checkpoint.config.vocab)
    described = to_gguf(replace(checkpoint.config, vocab=size))
    config = replace(checkpoint.config, vocab=size, vision=None)
    vocabulary = replace(
        vocabulary, pieces=vocabulary.pieces[:size], scores=vocabulary.scores[:size], kinds=vocabulary.kinds[:size]
    )
    mapping = map_gguf(config)
    # In float32, as the norms' gains are stored in it whatever the dtype of the matrices.
    weights = read_weights(checkpoint.file, _plan_of(checkpoint, config), config, np.float32, progress)

    def chunks(path: str, stored: TensorMapping) -> Iterator[NDArray[Any]]:
        read, values = next(weights)
        assert read == path
        for rows in row_chunks(stored.shape):
            part = values.reshape(stored.shape)[rows]
            yield part + np.float32(stored.offset) if stored.offset else part

    tensors = [
        GgufTensor(stored.name, stored.shape, _encoding(path, stored, dtype), chunks(path, stored))
        for path, stored in mapping.items()
    ]
    metadata = _gguf_metadata(checkpoint, described, vocabulary, dtype, file.stem)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(file, metadata, tensors)


def _plan_of(checkpoint: Checkpoint, config: Config) -> Mapping[str, TensorMapping]:
    """The source's mapping for the decoder alone, with as many rows of vocabulary or fewer."""
    mapping = {path: stored for path, stored in checkpoint.mapping.items() if not path.startswith("vision.")}
    rows = {"embed", "head"} & mapping.keys()
    return mapping | {path: replace(mapping[path], shape=(config.vocab, config.width)) for path in rows}


def _encoding(path: str, stored: TensorMapping, dtype: str) -> str:
    if len(stored.shape) == 1:
        return "F32"
    # The table is read by row as well as multiplied by: it keeps more bits than the rest, as is usual.
    return "Q8_0" if dtype == "q4_0" and path in ("embed", "head") else ENCODINGS[dtype]


def _gguf_metadata(
    checkpoint: Checkpoint, described: Mapping[str, Any], vocabulary: Vocabulary, dtype: str, name: str
) -> dict[str, Any]:
    metadata: dict[str, Any] = {**described, **vocabulary.gguf_metadata()}
    metadata |= {"general.name": name, "general.file_type": FILE_TYPES[dtype], "general.quantization_version": 2}
    if checkpoint.chat_template is not None:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    if checkpoint.chat_template is not None and GEMMA.turn_end in vocabulary.pieces:
        metadata["tokenizer.ggml.eot_token_id"] = vocabulary.pieces.index(GEMMA.turn_end)
    return metadata
