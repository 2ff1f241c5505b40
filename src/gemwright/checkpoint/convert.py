"""Convert a checkpoint of any format to Hugging Face safetensors or GGUF, one tensor at a time."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.chat_templates import GGUF_IDS, to_gguf_templates, write_chat_templates
from gemwright.checkpoint.configs import processor
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.configs.huggingface import to_huggingface, to_reward
from gemwright.checkpoint.documents import model_documents, name_special_tokens
from gemwright.checkpoint.files.atomic import create_folder, file_error
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_shards
from gemwright.checkpoint.imatrix import Importance, read_imatrix
from gemwright.checkpoint.load import Progress, row_chunks
from gemwright.checkpoint.merge import adapt, read_merged
from gemwright.checkpoint.mixtures import MIXTURES, choose_encoding
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import SCORE, map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.tower import tower_path, written_tower
from gemwright.checkpoint.updates import Updates
from gemwright.checkpoint.vocabulary import add_control_tokens
from gemwright.errors import CheckpointError
from gemwright.model.config import Config
from gemwright.text.chat import GEMMA
from gemwright.text.vocabulary import Vocabulary

_LOG = logging.getLogger(__name__)
Format = Literal["huggingface", "gguf"]
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def convert(
    source: Path,
    target: Path,
    to: Format,
    dtype: str | None = None,
    variant: str | None = None,
    progress: Progress = lambda done, total: None,
    adapters: Mapping[Path, float] = MappingProxyType({}),
    imatrix: Path | None = None,
) -> Checkpoint:
    """Write a checkpoint in another format, with its configuration, tokenizer and generation settings.

    The vision tower of a Gemma 3 becomes a second GGUF file, `mmproj-` and the name of the first, as for llama.cpp.

    Args:
        source: A checkpoint in any format.
        target: The folder (Hugging Face) or file (GGUF) to make. It must not exist.
        to: The format of the target.
        dtype: float32, float16, bfloat16, and for GGUF another key of `MIXTURES`, such as q4_k_m. By default that of
            the source's matrices, or float32 if they are quantized.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the number of bytes read and the total.
        adapters: Path and weight of each LoRA adapter to merge, in float32.
        imatrix: An importance matrix of llama.cpp, for quantized GGUF files.

    Returns:
        The source.

    Raises:
        CheckpointError: The source cannot be read or expressed in the format, or the target cannot be written, in which
            case nothing is left behind.
    """
    checkpoint = open_checkpoint(source, variant)
    merged, updates = adapt(checkpoint, adapters)
    write_checkpoint(merged, target, to, dtype or source_dtype(checkpoint), updates, progress, imatrix)
    return checkpoint


def write_checkpoint(
    checkpoint: Checkpoint,
    target: Path,
    to: Format,
    dtype: str,
    updates: Sequence[Updates] = (),
    progress: Progress = lambda done, total: None,
    imatrix: Path | None = None,
) -> None:
    """Write an open checkpoint, whose config is that of the updated model; arguments and errors as for `convert`."""
    allowed = MIXTURES if to == "gguf" else DTYPES
    if dtype not in allowed:
        raise CheckpointError(f"The format {to} has no dtype {dtype!r}; choose one of {', '.join(allowed)}.")
    if imatrix is not None and dtype in DTYPES:
        raise CheckpointError(f"An importance matrix has no use for {dtype}; choose a quantized dtype, such as q4_k_m.")
    check_new(target)
    _check_suffix(target, to)
    if to == "gguf" and checkpoint.config.vision:
        check_new(tower_path(target))
    if to == "gguf":
        importance = {} if imatrix is None else read_imatrix(imatrix)
        _write_gguf(checkpoint, checkpoint.vocabulary(), target, dtype, updates, progress, importance)
    else:
        write_huggingface(checkpoint, target, dtype, updates, progress)


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


def source_dtype(checkpoint: Checkpoint, otherwise: str = "float32") -> str:
    """Return the dtype of a checkpoint's matrices, or another if they are quantized or have several."""
    encodings = {info.encoding for info in checkpoint.file.tensors.values() if len(info.shape) > 1}
    known = {MIXTURES[name].encoding: name for name in DTYPES}
    return known.get(encodings.pop(), otherwise) if len(encodings) == 1 else otherwise


def write_huggingface(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: str,
    updates: Sequence[Updates] = (),
    progress: Progress = lambda done, total: None,
    score: NDArray[np.float32] | None = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder, completely or not at all.

    Args:
        checkpoint: The source, whose config already has the shapes of the updated model.
        folder: The folder to make.
        dtype: A key of `DTYPES`.
        updates: Updates of the weights, merged in float32 and rounded once.
        progress: Called with the number of bytes read and the total.
        score: The head [1, D] of a reward model, which the folder is then.

    Raises:
        CheckpointError: A weight cannot be read, is not finite in the dtype, or the folder cannot be written.
    """
    mapping = map_huggingface(checkpoint.config)
    weights = read_merged(checkpoint, checkpoint.mapping, checkpoint.config, DTYPES[dtype], updates, progress)

    def produce(path: str, tensor: TensorMapping) -> NDArray[Any]:
        read, values = next(weights)
        assert read == path
        stored = tensor.as_stored(values)
        if not all(np.isfinite(stored[rows]).all() for rows in row_chunks(stored.shape)):
            raise CheckpointError(
                f"{folder}: tensor {tensor.name} has values that are not finite, or too large for {dtype}; "
                "repair the model or choose float32."
            )
        return stored

    tensors = [
        SafetensorsTensor(tensor.name, tensor.shape, DTYPES[dtype], lambda p=path, t=tensor: produce(p, t))
        for path, tensor in mapping.items()
    ]
    if score is not None:
        tensors.append(SafetensorsTensor(SCORE, score.shape, DTYPES[dtype], lambda: score.astype(DTYPES[dtype])))
    config = (to_huggingface if score is None else to_reward)(checkpoint.config, dtype)
    write_folder(folder, checkpoint, checkpoint.vocabulary(), tensors, config)


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
    if checkpoint.config.vision:
        missing = processor.missing_tokens(checkpoint.family, vocabulary)
        vocabulary = add_control_tokens(vocabulary, *missing)
    tensors, documents = list(tensors), model_documents(checkpoint, vocabulary, config)
    with create_folder(folder, sum(tensor.nbytes for tensor in tensors)) as temporary:
        while documents:  # the tokenizer takes some hundred megabytes until it is written
            name, document = documents.popitem()
            with (temporary / name).open("x", encoding="utf-8") as file:
                json.dump(document, file, indent=2, ensure_ascii=False)
            del document
        write_shards(temporary, tensors)
        named = len(checkpoint.chat_templates) > 1 or checkpoint.chat_template is None
        if checkpoint.config.vision or named:  # processors and named templates need files
            write_chat_templates(temporary, checkpoint.chat_templates)
        (temporary / "tokenizer.model").write_bytes(vocabulary.sentencepiece_model())


def _write_gguf(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    file: Path,
    dtype: str,
    updates: Sequence[Updates],
    progress: Progress,
    importance: Importance,
) -> None:
    if vocabulary.contextual:
        names = ", ".join(token.content for token in vocabulary.contextual.values())
        _LOG.warning("%s: lstrip, rstrip and single_word of %.200s are left out; GGUF cannot record them.", file, names)
    # llama.cpp requires one row per token of the vocabulary.
    size = min(vocabulary.size, checkpoint.config.vocab)
    described = to_gguf(replace(checkpoint.config, vocab=size))
    config = replace(checkpoint.config, vocab=size, vision=None)
    vocabulary = replace(
        vocabulary, pieces=vocabulary.pieces[:size], scores=vocabulary.scores[:size], kinds=vocabulary.kinds[:size]
    )
    mapping = map_gguf(config)
    # Read as float32, the dtype of the norms' gains whatever that of the matrices.
    decoder = _decoder_mapping(checkpoint, config)
    weights = read_merged(checkpoint, decoder, config, np.dtype(np.float32), updates, progress)

    def chunks(path: str, tensor: TensorMapping) -> Iterator[NDArray[Any]]:
        read, values = next(weights)
        assert read == path
        for rows in row_chunks(tensor.shape):
            part = values.reshape(tensor.shape)[rows]
            yield part + np.float32(tensor.offset) if tensor.offset else part

    def describe(path: str, tensor: TensorMapping) -> GgufTensor:
        weights = importance.get(tensor.name)
        if weights is not None and len(weights) != tensor.shape[-1]:
            raise CheckpointError(
                f"The importance matrix has {len(weights)} columns for tensor {tensor.name} of shape {tensor.shape}; "
                "choose one of this model."
            )
        encoding = choose_encoding(dtype, path, tensor.shape[-1], config, bool(importance))
        encoding = "F32" if len(tensor.shape) == 1 else encoding
        return GgufTensor(tensor.name, tensor.shape, encoding, chunks(path, tensor), weights)

    tensors = [describe(path, tensor) for path, tensor in mapping.items()]
    metadata = _make_gguf_metadata(checkpoint, described, vocabulary, dtype, file.stem)
    with written_tower(checkpoint, file, dtype, updates):
        write_gguf(file, metadata, tensors)


def _decoder_mapping(checkpoint: Checkpoint, config: Config) -> Mapping[str, TensorMapping]:
    """Return the mapping of a checkpoint's decoder, with the config's number of embedding rows."""
    mapping = {path: tensor for path, tensor in checkpoint.mapping.items() if not path.startswith("vision.")}
    tables = {"embed", "head"} & mapping.keys()
    return mapping | {path: replace(mapping[path], shape=(config.vocab, config.width)) for path in tables}


def _make_gguf_metadata(
    checkpoint: Checkpoint, described: Mapping[str, Any], vocabulary: Vocabulary, dtype: str, name: str
) -> dict[str, Any]:
    metadata: dict[str, Any] = {**described, **vocabulary.gguf_metadata()}
    metadata |= {
        "general.name": name,
        "general.file_type": MIXTURES[dtype].file_type,
        "general.quantization_version": 2,
    }
    metadata |= to_gguf_templates(checkpoint.chat_templates)
    for special, token in name_special_tokens(checkpoint, vocabulary).items():
        metadata[f"tokenizer.ggml.{GGUF_IDS[special]}"] = vocabulary.pieces.index(token)
    ends = [token for token in checkpoint.stop_ids if token != metadata["tokenizer.ggml.eos_token_id"]]
    if GEMMA.turn_end in (checkpoint.chat_template or "") and GEMMA.turn_end in vocabulary.pieces:
        ends.append(vocabulary.pieces.index(GEMMA.turn_end))
    if ends and ends[0] < vocabulary.size:
        metadata["tokenizer.ggml.eot_token_id"] = ends[0]
    return metadata
