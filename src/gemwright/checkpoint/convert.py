"""Convert a checkpoint of any format to Hugging Face safetensors or GGUF, one tensor at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs import processor
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.files.atomic import create_folder, file_error
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_shards
from gemwright.checkpoint.load import Progress, read_weights, row_chunks
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.tower import tower_path, written_tower
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
"""Encoding of each dtype in a GGUF file."""
FILE_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q8_0": 7, "bfloat16": 32}
"""Value of `general.file_type` in a GGUF file for each dtype. Source: llama.cpp `include/llama.h`."""


def convert(
    source: Path,
    target: Path,
    to: Format,
    dtype: str | None = None,
    variant: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Checkpoint:
    """Write a checkpoint in another format, with its configuration, tokenizer and generation settings.

    The vision tower of a Gemma 3 becomes a second GGUF file, `mmproj-` and the name of the first, as for llama.cpp.

    Args:
        source: A checkpoint in any format.
        target: The folder (Hugging Face) or file (GGUF) to make. It must not exist.
        to: The format of the target.
        dtype: float32, float16, bfloat16, and for GGUF also q8_0 or q4_0. By default that of the source's matrices, or
            float32 if they are quantized.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the number of bytes read and the total.

    Returns:
        The source.

    Raises:
        CheckpointError: The source cannot be read or expressed in the format, or the target cannot be written, in which
            case nothing is left behind.
    """
    checkpoint = open_checkpoint(source, variant)
    dtype = dtype or _source_dtype(checkpoint)
    allowed = ENCODINGS if to == "gguf" else DTYPES
    if dtype not in allowed:
        raise CheckpointError(f"The format {to} has no dtype {dtype!r}; choose one of {', '.join(allowed)}.")
    write = _write_gguf if to == "gguf" else _write_huggingface
    check_new(target)
    _check_suffix(target, to)
    if to == "gguf" and checkpoint.config.vision:
        check_new(tower_path(target))
    write(checkpoint, checkpoint.vocabulary(), target, dtype, progress)
    return checkpoint


def _check_suffix(target: Path, to: Format) -> None:
    """Check that the name of a target is one for its format, so that other programs open it, too.

    Raises:
        CheckpointError: It is not.
    """
    suffix = target.suffix.lower()
    if to == "gguf" and suffix not in ("", ".gguf"):
        raise CheckpointError(f"{target} is no name for a GGUF file; choose one that ends in .gguf.")
    if to == "huggingface" and suffix in (".gguf", ".safetensors", ".npz", ".bin"):
        raise CheckpointError(f"{target} is no name for a folder, which huggingface needs; leave out {suffix}.")


def check_new(target: Path) -> None:
    """Check that a path does not exist yet.

    Raises:
        CheckpointError: It exists or cannot be looked up.
    """
    try:
        exists = target.exists() or target.is_symlink()
    except OSError as error:  # a name that is too long, a folder without access
        raise file_error(target, f"cannot be written ({error.strerror})", "choose another place") from error
    if exists:
        raise CheckpointError(f"{target} exists; choose another name.")


def _source_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of a checkpoint's matrices, or float32 if they are quantized or have several."""
    encodings = {info.encoding for info in checkpoint.file.tensors.values() if len(info.shape) > 1}
    known = {encoding: name for name, encoding in ENCODINGS.items() if name in DTYPES}
    return known.get(encodings.pop(), "float32") if len(encodings) == 1 else "float32"


def _write_huggingface(
    checkpoint: Checkpoint, vocabulary: Vocabulary, folder: Path, dtype: str, progress: Progress
) -> None:
    mapping = map_huggingface(checkpoint.config)
    weights = read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, DTYPES[dtype], progress)

    def produce(path: str, tensor: TensorMapping) -> NDArray[Any]:
        read, values = next(weights)
        assert read == path
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{folder}: tensor {tensor.name} has values that are not finite, or too large for {dtype}; "
                "repair the model or choose float32."
            )
        return tensor.as_stored(values)

    tensors = [
        SafetensorsTensor(tensor.name, tensor.shape, DTYPES[dtype], lambda p=path, t=tensor: produce(p, t))
        for path, tensor in mapping.items()
    ]
    write_folder(folder, checkpoint, vocabulary, tensors, to_huggingface(checkpoint.config, dtype))


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    tensors: Iterable[SafetensorsTensor],
    config: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder completely or not at all.

    Args:
        folder: The folder to make.
        checkpoint: The source, for its settings.
        vocabulary: The vocabulary of the source.
        tensors: The weights.
        config: The contents of `config.json` without the ids of tokens.

    Raises:
        CheckpointError: A tensor or the folder cannot be written.
    """
    tensors, documents = list(tensors), _make_documents(checkpoint, vocabulary, config)
    with create_folder(folder, sum(tensor.nbytes for tensor in tensors)) as temporary:
        write_shards(temporary, tensors)
        for name, document in documents.items():
            (temporary / name).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
        if checkpoint.config.vision and checkpoint.chat_template is not None:  # processors read it from this file
            (temporary / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")
        (temporary / "tokenizer.model").write_bytes(vocabulary.sentencepiece_model())


def _make_documents(
    checkpoint: Checkpoint, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return the JSON files of a folder by name."""
    config, special = dict(config), _find_special_ids(checkpoint, vocabulary)
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


def _find_special_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    index = vocabulary.pieces.index
    stops = list(checkpoint.stop_ids) or [index("<eos>")]
    return {
        "bos_token_id": index("<bos>"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": index("<pad>"),
    }


def _write_gguf(checkpoint: Checkpoint, vocabulary: Vocabulary, file: Path, dtype: str, progress: Progress) -> None:
    # llama.cpp requires one row per token of the vocabulary.
    size = min(vocabulary.size, checkpoint.config.vocab)
    described = to_gguf(replace(checkpoint.config, vocab=size))
    config = replace(checkpoint.config, vocab=size, vision=None)
    vocabulary = replace(
        vocabulary, pieces=vocabulary.pieces[:size], scores=vocabulary.scores[:size], kinds=vocabulary.kinds[:size]
    )
    mapping = map_gguf(config)
    # Read as float32, the dtype of the norms' gains whatever that of the matrices.
    weights = read_weights(checkpoint.file, _decoder_mapping(checkpoint, config), config, np.float32, progress)

    def chunks(path: str, tensor: TensorMapping) -> Iterator[NDArray[Any]]:
        read, values = next(weights)
        assert read == path
        for rows in row_chunks(tensor.shape):
            part = values.reshape(tensor.shape)[rows]
            yield part + np.float32(tensor.offset) if tensor.offset else part

    tensors = [
        GgufTensor(tensor.name, tensor.shape, _choose_encoding(path, tensor, dtype), chunks(path, tensor))
        for path, tensor in mapping.items()
    ]
    metadata = _make_gguf_metadata(checkpoint, described, vocabulary, dtype, file.stem)
    with written_tower(checkpoint, file, dtype):
        write_gguf(file, metadata, tensors)


def _decoder_mapping(checkpoint: Checkpoint, config: Config) -> Mapping[str, TensorMapping]:
    """Return the mapping of a checkpoint's decoder, with the config's number of embedding rows."""
    mapping = {path: tensor for path, tensor in checkpoint.mapping.items() if not path.startswith("vision.")}
    tables = {"embed", "head"} & mapping.keys()
    return mapping | {path: replace(mapping[path], shape=(config.vocab, config.width)) for path in tables}


def _choose_encoding(path: str, tensor: TensorMapping, dtype: str) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    # As is usual, the embedding table keeps more bits: its rows are also the inputs of the model.
    return "Q8_0" if dtype == "q4_0" and path in ("embed", "head") else ENCODINGS[dtype]


def _make_gguf_metadata(
    checkpoint: Checkpoint, described: Mapping[str, Any], vocabulary: Vocabulary, dtype: str, name: str
) -> dict[str, Any]:
    metadata: dict[str, Any] = {**described, **vocabulary.gguf_metadata()}
    metadata |= {"general.name": name, "general.file_type": FILE_TYPES[dtype], "general.quantization_version": 2}
    if checkpoint.chat_template is not None:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    if checkpoint.chat_template is not None and GEMMA.turn_end in vocabulary.pieces:
        metadata["tokenizer.ggml.eot_token_id"] = vocabulary.pieces.index(GEMMA.turn_end)
    return metadata
