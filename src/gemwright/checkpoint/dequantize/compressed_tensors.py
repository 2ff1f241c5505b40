"""compressed-tensors: integers and small floats with scales per tensor, row, group or block.

Source: vllm-project/compressed-tensors 0.13 `compressors/quantized_compressors` (layouts), `quantization/quant_args.py`
(keys) and `quantization/lifecycle/forward.py` (equations).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.configs.reader import ConfigReader
from gemwright.checkpoint.dequantize.module import SCALES, Matrix, Module, block_size, read_group_index
from gemwright.checkpoint.dequantize.numbers import DTYPES, E2M1, Blocks, spread, unpack
from gemwright.errors import CheckpointError

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)
MAX_GROUPS = 64
"""Maximum number of groups of modules in a config; published models have one or two."""


def check(config: ConfigReader) -> None:
    """Check that the format can be decoded without the activations.

    Raises:
        CheckpointError: It cannot.
    """
    config.choice("format", FORMATS[0], *FORMATS[1:])
    config.mapping("sparsity_config").choice("format", None, "dense")
    if config.mapping("transform_config").data.get("config_groups"):
        raise config.error("transform_config", "absent: rotated weights are not supported")
    next(_schemes(config))


def _schemes(config: ConfigReader) -> Iterator[ConfigReader]:
    """Yield the keys of the weights of every group of modules."""
    groups = config.mapping("config_groups")
    if len(groups.data) > MAX_GROUPS:
        raise config.error("config_groups", f"at most {MAX_GROUPS} groups")
    schemes = [groups.mapping(name).mapping("weights") for name in groups.data]
    schemes = [scheme for scheme in schemes if scheme.data]
    if not schemes:
        raise config.error("config_groups", "a group of keys with the 'weights' of some modules")
    yield from schemes


def read(module: Module, config: ConfigReader) -> Matrix:
    """Return the matrix of a module: that of the first group whose layout its tensors have.

    The targets of a group are not matched: they are regular expressions of an untrusted file.
    """
    problem: CheckpointError | None = None
    for scheme in _schemes(config):
        try:
            return _read(module, scheme)
        except CheckpointError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _read(module: Module, scheme: ConfigReader) -> Matrix:
    kind = scheme.choice("type", "int", "float")
    if "weight_packed" not in module:
        return _read_numbers(module, scheme, "I8" if kind == "int" else "F8_E4M3")
    return _read_packed(module, scheme) if kind == "int" else _read_floats(module, scheme)


def _read_packed(module: Module, scheme: ConfigReader) -> Matrix:
    """Return a matrix of integers in words of 32 bits; zero points are packed along the rows."""
    bits = scheme.choice("num_bits", 8, 4, 2)
    per_word = 32 // bits
    rows, words = module.shape("weight_packed")
    packed = module.array("weight_packed", (rows, words), "I32")
    width = int(module.array("weight_shape", (2,), "I64", "I32")[1])
    if words != -(-width // per_word) or rows != module.array("weight_shape", (2,), "I64", "I32")[0]:
        raise module.error(f"has a 'weight_shape' that {rows} x {words} words of {bits}-bit numbers do not fill")
    scales = _read_scales(module, scheme, rows, width)
    zeros = None
    if "weight_zero_point" in module and not scheme.boolean("symmetric", True):
        zeros = module.array("weight_zero_point", (-(-rows // per_word), scales.scales.shape[1]), "I32")
    elif not scheme.boolean("symmetric", True):
        raise module.error("has no 'weight_zero_point'")

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        values = unpack(packed[start:stop], bits)[:, :width].astype(np.float32)
        if zeros is None:
            values -= 1 << bits - 1
        else:
            first = start // per_word
            part = unpack(zeros[first : -(-stop // per_word)].T, bits).T[start - first * per_word :][: stop - start]
            values -= Blocks(part, 1, scales.group, scales.columns).read(0, stop - start, width)
        values *= scales.read(start, stop, width)
        return values

    return Matrix((rows, width), module.encoding("weight_scale"), decode)


def _read_numbers(module: Module, scheme: ConfigReader, encoding: str) -> Matrix:
    """Return a matrix with one byte per number."""
    scheme.choice("num_bits", 8)
    rows, width = module.shape("weight")
    numbers = module.array("weight", (rows, width), encoding)
    scales = _read_scales(module, scheme, rows, width)
    zeros = None
    if "weight_zero_point" in module:
        shape = scales.scales.shape
        zeros = Blocks(module.array("weight_zero_point", shape, "I8", *SCALES), scales.height, scales.group)

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        values = numbers[start:stop].astype(np.float32)
        if zeros is not None:
            values -= zeros.read(start, stop, width)
        values *= scales.read(start, stop, width)
        return values

    return Matrix((rows, width), module.encoding("weight_scale"), decode)


def _read_scales(module: Module, scheme: ConfigReader, rows: int, width: int) -> Blocks:
    """Return the scales of a matrix, whose strategy may be implied by the group size."""
    group = scheme.data.get("group_size")
    implied = "tensor" if group is None else "channel" if group == -1 else "group"
    strategy = scheme.data.get("strategy") or implied
    height, columns = rows, None
    match strategy:
        case "tensor":
            return Blocks(module.scalar("weight_scale").reshape(1, 1), rows, width)
        case "channel":
            height, group = 1, width
        case "group":
            height, group = 1, scheme.integer("group_size")
        case "block":
            height, group = block_size(scheme, "block_structure")
        case _:
            raise scheme.error("strategy", "tensor, channel, group or block")
    groups = -(-width // group)
    scales = module.array("weight_scale", (-(-rows // height), groups), *SCALES)
    if "weight_g_idx" in module:
        columns = read_group_index(module, "weight_g_idx", width, groups)
    return Blocks(scales, height, group, columns)


def _read_floats(module: Module, scheme: ConfigReader) -> Matrix:
    """Return a matrix of E2M1 floats: NVFP4, whose scales have a common divisor, or MXFP4."""
    scheme.choice("num_bits", 4)
    group = scheme.choice("group_size", 16, 32)
    rows, packed_width = module.shape("weight_packed")
    packed = module.array("weight_packed", (rows, packed_width), "U8")
    width, shape = 2 * packed_width, (rows, -(-2 * packed_width // group))
    if group == 32:
        scales = module.array("weight_scale", shape, "U8", "F8_E8M0").view(DTYPES["F8_E8M0"])
        divisor = np.float32(1)
    else:
        scales = module.array("weight_scale", shape, "F8_E4M3")
        divisor = module.scalar("weight_global_scale")

    def decode(start: int, stop: int) -> NDArray[np.float32]:
        rows_scales = scales[start:stop].astype(np.float32) / divisor
        return E2M1[unpack(packed[start:stop], 4)] * spread(rows_scales, group, width)

    return Matrix((rows, width), "BF16", decode)
