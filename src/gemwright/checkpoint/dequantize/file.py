"""Recognize the quantization of a Hugging Face folder, and decode its matrices to floats when they are read."""

import math
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.huggingface import QUANT_METHOD
from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize import bitsandbytes, compressed_tensors, fp8, gptq, mlx
from gemwright.checkpoint.dequantize.module import Matrix, Module
from gemwright.checkpoint.dequantize.numbers import DTYPES
from gemwright.checkpoint.files.json_file import read_json
from gemwright.checkpoint.files.safetensors import SafetensorsFile
from gemwright.checkpoint.files.tensor_file import TensorFile, TensorInfo
from gemwright.errors import CheckpointError

CHUNK = 1 << 20
"""Number of values decoded at a time."""


class Method(NamedTuple):
    """A quantization method.

    Attributes:
        name: Name for messages.
        markers: Leaves of which a quantized module has one.
        parts: Other leaves that a quantized module may have.
        read: Return the matrix of a module.
        check: Check the config.
    """

    name: str
    markers: tuple[str, ...]
    parts: tuple[str, ...]
    read: Callable[[Module, ConfigReader], Matrix]
    check: Callable[[ConfigReader], None] = lambda config: None


METHODS = {
    "mlx": Method("MLX", ("scales",), ("biases",), mlx.read),
    "metal": Method("Metal", ("scales",), ("qbiases",), mlx.read),
    "compressed-tensors": Method(
        "compressed-tensors",
        ("weight_packed", "weight_scale"),
        ("weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale"),
        compressed_tensors.read,
        compressed_tensors.check,
    ),
    "gptq": Method("GPTQ", ("qweight",), ("qzeros", "scales", "g_idx"), gptq.read_gptq, gptq.check_gptq),
    "awq": Method("AWQ", ("qweight",), ("qzeros", "scales"), gptq.read_awq, gptq.check_awq),
    "bitsandbytes": Method(
        "bitsandbytes",
        ("weight.absmax", "SCB"),
        (
            "weight.quant_map",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            *bitsandbytes.STATES,
            "weight_format",
        ),
        bitsandbytes.read,
    ),
    "fp8": Method("FP8", ("weight_scale_inv", "weight_scale"), (), fp8.read_scaled),
    "fbgemm_fp8": Method("FBGEMM FP8", ("weight_scale",), (), fp8.read_scaled),
    "modelopt": Method(
        "Model Optimizer", ("weight_scale",), ("weight_scale_2",), fp8.read_modelopt, fp8.check_modelopt
    ),
}
"""Method of each `quant_method`."""
OLDER = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Method of files beside `config.json`: of Model Optimizer, AutoGPTQ and AutoAWQ."""
UNUSED = re.compile(r"(.*\.)?((input|output|[kvq])_(scale|global_scale|zero_point)|activation_scale|input_scale_ub)")
"""Tensors of quantized activations and caches, which are floats here."""


@dataclass(frozen=True, eq=False)
class DequantizedFile:
    """A safetensors file whose quantized matrices are decoded when they are read: a `TensorFile`.

    Attributes:
        file: The safetensors file.
        tensors: Every tensor, with a decoded matrix in place of its parts.
        matrices: The decoded matrices, by name.
        parts: Names of the tensors that each matrix is decoded from.
    """

    file: SafetensorsFile
    tensors: Mapping[str, TensorInfo]
    matrices: Mapping[str, Matrix]
    parts: Mapping[str, tuple[str, ...]]

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.file.path

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor; a decoded matrix is a new float32 array."""
        if name not in self.matrices:
            return self.file.read(name)
        out = np.empty(self.tensors[name].shape, np.float32)
        self._decode(name, out)
        return out

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]` without decoding other rows."""
        if name not in self.matrices:
            return self.file.read_rows(name, start, stop)
        with np.errstate(all="ignore"):  # damaged scales give values that are not finite
            return self.matrices[name].decode(start, stop)

    def raw(self, name: str) -> NDArray[Any]:
        """Return a tensor's bytes, `(nbytes,)` uint8; those of a decoded matrix are a new array."""
        if name not in self.matrices:
            return self.file.raw(name)
        info = self.tensors[name]
        out = np.empty(info.shape, DTYPES[info.encoding])
        self._decode(name, out)
        return out.reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        """Release the pages that reading a tensor mapped in."""
        for part in self.parts.get(name, (name,)):
            self.file.release(part)

    def _decode(self, name: str, out: NDArray[Any]) -> None:
        """Decode a matrix in chunks of rows, on all cores."""
        rows = len(out)
        step = max(1, CHUNK // math.prod(out.shape[1:]))

        def decode(start: int) -> None:
            stop = min(start + step, rows)
            with np.errstate(all="ignore"):  # values too large for the dtype become infinite
                out[start:stop] = self.read_rows(name, start, stop)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, range(0, rows, step)))


def dequantize(file: SafetensorsFile, settings: Mapping[str, Any], where: str) -> TensorFile:
    """Return a file that decodes quantized matrices, or the file itself if it has none.

    As stored, a decoded matrix has 16 bits per weight, as in a folder that is not quantized.

    Args:
        file: The open safetensors file. Only headers, shapes and indices are read.
        settings: The keys of `config.json`.
        where: That file, for error messages.

    Raises:
        CheckpointError: The method is not supported, or a tensor does not have its layout.
    """
    found = _find_method(settings, where)
    if found is None and (name := _quantized_tensor(file)):
        found = _find_older(Path(where).parent)
        if found is None:
            raise CheckpointError(
                f"{where}: has no 'quantization_config', although tensor {name:.200} is part of a quantized matrix; "
                "use the config.json of the same folder."
            )
    if found is None:
        return file
    method, config = found
    method.check(config)
    suffixes = tuple(f".{leaf}" for leaf in method.markers)
    names = dict.fromkeys(_strip(name, suffixes) for name in file.tensors if name.endswith(suffixes))
    matrices: dict[str, Matrix] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for name in names:
        leaves = ("weight", *method.markers, *method.parts)
        matrices[f"{name}.weight"] = method.read(Module(file, name, method.name), config)
        parts[f"{name}.weight"] = tuple(f"{name}.{leaf}" for leaf in leaves if f"{name}.{leaf}" in file.tensors)
    hidden = {part for group in parts.values() for part in group}
    plain = {name: info for name, info in file.tensors.items() if name not in hidden and not UNUSED.fullmatch(name)}
    _check_plain(file, plain, method)
    decoded = {name: _describe(matrix) for name, matrix in matrices.items()}
    return DequantizedFile(file, {**plain, **decoded}, matrices, parts)


def _find_method(settings: Mapping[str, Any], where: str) -> tuple[Method, ConfigReader] | None:
    """Return the method that a config names and its keys, or None if the tensors are not quantized or our own."""
    text = settings.get("text_config")
    for data in (settings, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "quantization"):
            if data.get(key) is None:
                continue
            config = ConfigReader(data, where).mapping(key)
            mlx_keys = key == "quantization" or "group_size" in config.data
            name = config.data.get("quant_method", "mlx" if mlx_keys else None)
            if name == QUANT_METHOD:
                return None
            if not isinstance(name, str) or name not in METHODS:
                raise _unsupported(where, name)
            return METHODS[name], config
    return None


def _find_older(folder: Path) -> tuple[Method, ConfigReader] | None:
    """Return the method and keys of a file beside `config.json`, as earlier releases of some libraries write it."""
    for name, method in OLDER.items():
        if not (folder / name).is_file():
            continue
        keys = read_json(folder / name)
        keys = keys.get("quantization", {}) if method == "modelopt" else keys
        method = "awq" if isinstance(keys, Mapping) and {"w_bit", "zero_point"} & keys.keys() else method
        described = {"quant_method": method, **keys} if isinstance(keys, Mapping) else keys
        return _find_method({"quantization_config": described}, str(folder / name))
    return None


def _unsupported(where: str, name: Any) -> CheckpointError:
    shown = repr(name)[:80] if isinstance(name, str) else "unknown"
    return CheckpointError(
        f"{where}: the quantization method {shown} is not supported; use the original model, a GGUF file of it, or one "
        f"quantized with {', '.join(METHODS)}."
    )


def _strip(name: str, suffixes: tuple[str, ...]) -> str:
    return next(name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix))


def _describe(matrix: Matrix) -> TensorInfo:
    nbytes = math.prod(matrix.shape) * DTYPES[matrix.encoding].itemsize
    return TensorInfo(matrix.shape, matrix.encoding, 0, nbytes)


def _check_plain(file: SafetensorsFile, plain: Mapping[str, TensorInfo], method: Method) -> None:
    """Raise if a tensor that is not decoded is part of a quantized matrix."""
    for name, info in plain.items():
        part = next((part for part in method.parts if name.endswith(f".{part}")), None)
        if part is None and name.endswith(".weight") and info.encoding not in ("F32", "F16", "BF16"):
            part = "weight"
        if part is not None:
            module = Module(file, name.removesuffix(f".{part}"), method.name)
            raise module.error(f"has a '{part}' of {info.encoding} and no '{method.markers[0]}'")


def _quantized_tensor(file: SafetensorsFile) -> str | None:
    """Return the name of a tensor of a quantized module, if there is one."""
    suffixes = tuple(f".{marker}" for method in METHODS.values() for marker in method.markers)
    return next((name for name in file.tensors if name.endswith(suffixes)), None)
