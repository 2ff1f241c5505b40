"""Write a `.tflite`: the converted program with the weights, encoded some rows at a time, after it.

A flatbuffer has at most 2 GB, but its buffers may be offsets into the rest of the file, which have no such limit
(tensorflow/lite/schema/schema.fbs, `Buffer`).
"""

import functools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import flatbuffers  # pyright: ignore[reportMissingImports]
import numpy as np
from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from gemwright import tree
from gemwright.checkpoint.load import read_weights, row_chunks
from gemwright.checkpoint.open import Checkpoint
from gemwright.errors import GemwrightError
from gemwright.model.config import Config
from gemwright.model.params import param_specs
from gemwright.release.litert.convert import convert
from gemwright.release.litert.program import signatures
from gemwright.release.litert.recipes import (
    BLOCK,
    RECIPES,
    Encoding,
    choose_encoding,
    encode,
    encoded_bytes,
    is_constant,
    matrix_shape,
)
from gemwright.runtime.child import Report

ALIGNMENT = 64
"""Bytes to which weights are aligned in the file."""
_TYPES: Mapping[Encoding, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
}
_TAKING = {"FULLY_CONNECTED": "a linear map", "EMBEDDING_LOOKUP": "a table"}
"""Operations that take encoded weights as their second input."""


@dataclass(frozen=True)
class StoredWeight:
    """An encoded weight.

    Attributes:
        encoding: Its encoding.
        scales: [rows] of int8, [rows, blocks] of int4.
        offset: Its first byte among those of all weights.
        size: Number of its bytes.
    """

    encoding: Encoding
    scales: NDArray[np.float32]
    offset: int
    size: int


def write_checkpoint(
    checkpoint: Checkpoint, target: Path, config: Config, weights: str, context: int, report: Report
) -> None:
    """Write the `.tflite` of a checkpoint; memory holds its largest weight in float32.

    Args:
        checkpoint: The source.
        target: The file to make.
        config: The model to write: that of the source, or the same without its tower.
        weights: A key of `RECIPES`.
        context: Number of tokens of the caches.
        report: Called with a line about each stage.

    Raises:
        GemwrightError: The checkpoint cannot be read, or LiteRT's converter does not support the program.
    """
    recipe, specs = RECIPES[weights], tree.flatten(param_specs(config))
    read = functools.partial(read_weights, checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32)
    constants = dict(read(order=[path for path, spec in specs.items() if is_constant(spec)]))
    report("Converting ...")
    program = convert(config, signatures(config, context), constants)
    report("Encoding the weights ...")
    large = {path: spec for path, spec in specs.items() if not is_constant(spec)}
    matrices = ((path, values.reshape(matrix_shape(path, specs[path]))) for path, values in read(order=large))
    write_model(target, program, matrices, {path: choose_encoding(recipe, path, spec) for path, spec in large.items()})


def write_model(
    target: Path,
    program: bytes | bytearray,
    weights: Iterator[tuple[str, NDArray[np.float32]]],
    encodings: Mapping[str, Encoding],
) -> None:
    """Write a `.tflite`.

    Args:
        target: The file to make.
        program: What `convert` returns.
        weights: Path and matrix of each weight that is an input of the program.
        encodings: The encoding of each.

    Raises:
        GemwrightError: The program uses a weight otherwise than its encoding allows.
    """
    with target.open("xb") as file, TemporaryFile(dir=target.parent) as data:
        stored = {path: _store(data, values, encodings[path]) for path, values in weights}
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(program), 0))
        buffers = {path: _add_buffer(model, offset=1, size=1) for path in stored}
        scales = {
            path: _add_block_scales(model, weight) for path, weight in stored.items() if weight.encoding == "int4"
        }
        for signature in model.signatureDefs:
            _bind(model, signature, stored, buffers, scales)
        start = -(-len(_pack(model)) // ALIGNMENT) * ALIGNMENT
        for path, weight in stored.items():
            buffer = model.buffers[buffers[path]]
            buffer.offset, buffer.size = start + weight.offset, weight.size
        packed = _pack(model)
        file.write(packed)
        file.write(bytes(start - len(packed)))
        data.seek(0)
        shutil.copyfileobj(data, file, 1 << 22)


def _store(data: BinaryIO, values: NDArray[np.float32], encoding: Encoding) -> StoredWeight:
    """Append an encoded weight."""
    offset = data.tell()
    scales = []
    for rows in row_chunks(values.shape):
        raw, scale = encode(encoding, np.ascontiguousarray(values[rows]))
        data.write(raw.tobytes())
        scales.append(scale)
    size = data.tell() - offset
    assert size == encoded_bytes(encoding, values.size)
    data.write(bytes(-size % ALIGNMENT))
    return StoredWeight(encoding, np.concatenate(scales), offset, size)


def _add_buffer(model: Any, **fields: Any) -> int:
    model.buffers.append(schema.BufferT(**fields))
    return len(model.buffers) - 1


def _add_block_scales(model: Any, weight: StoredWeight) -> int:
    return _add_buffer(model, data=np.ravel(weight.scales.astype(np.float16)).view(np.uint8))


def _bind(
    model: Any,
    signature: Any,
    stored: Mapping[str, StoredWeight],
    buffers: Mapping[str, int],
    scales: Mapping[str, int],
) -> None:
    """Make the inputs of a signature that are weights constants.

    Args:
        model: The model.
        signature: One of its signatures.
        stored: All weights, by path.
        buffers: The buffer of each.
        scales: The buffer of the scales of blocks.
    """
    graph = model.subgraphs[signature.subgraphIndex]
    inputs = {entry.name.decode(): entry.tensorIndex for entry in signature.inputs}
    weights = {inputs[path]: path for path in stored if path in inputs}
    _check_uses(model, graph, {index: path for index, path in weights.items() if stored[path].encoding != "float32"})
    signature.inputs = [entry for entry in signature.inputs if entry.tensorIndex not in weights]
    graph.inputs = [index for index in graph.inputs if index not in weights]
    for index, path in weights.items():
        tensor = graph.tensors[index]
        tensor.name, tensor.buffer, tensor.type = path, buffers[path], _TYPES[stored[path].encoding]
        tensor.quantization = _describe_scales(graph, path, stored[path], scales.get(path))


def _check_uses(model: Any, graph: Any, encoded: Mapping[int, str]) -> None:
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for place, index in enumerate(operator.inputs):
            if index in encoded and (name not in _TAKING or place != 1):
                raise GemwrightError(
                    f"LiteRT's converter made {name} of {encoded[index]}, which takes no encoded weights; "
                    "export with --weights f32."
                )


def _describe_scales(graph: Any, path: str, weight: StoredWeight, buffer: int | None) -> Any:
    """Return the quantization of a tensor; the scales of blocks are a tensor of their own."""
    if weight.encoding == "float32":
        return None
    if buffer is None:
        zeros = np.zeros(len(weight.scales), np.int64)
        return schema.QuantizationParametersT(scale=weight.scales, zeroPoint=zeros, quantizedDimension=0)
    shape, dtype = list(weight.scales.shape), schema.TensorType.FLOAT16
    graph.tensors.append(schema.TensorT(name=f"{path}.scales", shape=shape, type=dtype, buffer=buffer))
    blocks = schema.BlockwiseQuantizationT(scales=len(graph.tensors) - 1, zeroPoints=-1, blockSize=BLOCK)
    kind = schema.QuantizationDetails.BlockwiseQuantization
    return schema.QuantizationParametersT(detailsType=kind, details=blocks, quantizedDimension=0)


def _pack(model: Any) -> bytearray:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return builder.Output()
