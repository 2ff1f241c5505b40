"""Quantized GGUF files: the encoding of each tensor, importance matrices, and models of every encoding."""

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

import gemwright
from gemwright import tree
from gemwright.checkpoint.configs.gguf import to_gguf
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files import ggml
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.imatrix import read_imatrix
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.mixtures import MIXTURES, choose_encoding
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.config import Config, Layer, Mlp
from gemwright.variants import VARIANTS
from tests.tiny.config import make_config
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.vocabulary import make_vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")


def encodings(dtype: str, variant: str, weighted: bool = False) -> dict[str, str]:
    """Return the encoding of each matrix of a variant by the name of its tensor."""
    config = replace(VARIANTS[variant].config, vision=None)
    return {
        tensor.name.removesuffix(".weight"): choose_encoding(dtype, path, tensor.shape[-1], config, weighted)
        for path, tensor in map_gguf(config).items()
        if len(tensor.shape) == 2
    }


def test_file_types_are_those_of_gguf() -> None:
    numbers = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in gguf.LlamaFileType}
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    for dtype, mixture in MIXTURES.items():
        assert mixture.file_type == numbers[names.get(dtype, dtype.upper())]


def test_the_published_q4_k_m_of_270m(demo_gguf: Path) -> None:
    """The demo's file was written by llama.cpp: its rows of 640 fall back to Q5_0 and Q8_0."""
    published = open_gguf(demo_gguf).tensors
    for name, encoding in encodings("q4_k_m", "gemma-3-270m").items():
        assert published[f"{name}.weight"].encoding == encoding, name


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("q4_k_m", {"attn_q": {"Q4_K"}, "attn_v": {"Q4_K", "Q6_K"}, "ffn_down": {"Q4_K", "Q6_K"}}),
        ("q5_k_m", {"attn_k": {"Q5_K"}, "attn_v": {"Q5_K", "Q6_K"}, "ffn_down": {"Q5_K", "Q6_K"}}),
        ("q4_k_s", {"attn_output": {"Q4_K"}, "attn_v": {"Q4_K", "Q5_K"}, "ffn_down": {"Q4_K", "Q5_K"}}),
        ("q3_k_m", {"attn_output": {"Q4_K"}, "attn_v": {"Q4_K", "Q5_K"}, "ffn_up": {"Q3_K"}}),
        ("q3_k_l", {"attn_output": {"Q5_K"}, "attn_v": {"Q5_K"}, "ffn_down": {"Q5_K"}}),
        ("q2_k", {"attn_output": {"Q3_K"}, "attn_v": {"Q3_K"}, "ffn_gate": {"Q2_K"}}),
        ("iq4_xs", {"attn_q": {"IQ4_XS"}, "attn_v": {"IQ4_XS"}, "ffn_down": {"IQ4_XS", "Q5_K"}}),
    ],
)
def test_the_mixtures_of_4b(dtype: str, expected: dict[str, set[str]]) -> None:
    made = encodings(dtype, "gemma-3-4b")
    assert made["token_embd"] == "Q6_K"
    for kind, kinds in expected.items():
        assert {encoding for name, encoding in made.items() if name.endswith(kind)} == kinds


def test_layers_with_more_bits() -> None:
    """Of 34 layers the first and last eighth, and every third between."""
    made = encodings("q4_k_m", "gemma-3-4b")
    layers = [layer for layer in range(34) if made[f"blk.{layer}.ffn_down"] == "Q6_K"]
    assert layers == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29, 30, 31, 32, 33]


@pytest.mark.parametrize(("dtype", "fallback"), [("q2_k", "IQ4_NL"), ("q3_k_s", "IQ4_NL"), ("iq4_xs", "IQ4_NL")])
def test_rows_that_are_no_multiple_of_256(dtype: str, fallback: str) -> None:
    made = Counter(e for name, e in encodings(dtype, "gemma-3-1b").items() if name.endswith(("attn_q", "ffn_up")))
    assert made.keys() == {fallback}


def test_an_importance_matrix_spares_the_first_layers_more_bits() -> None:
    assert encodings("q4_0", "gemma-3-4b", weighted=True)["blk.0.ffn_down"] == "Q4_1"
    assert encodings("q4_0", "gemma-3-4b")["blk.0.ffn_down"] == "Q4_0"
    assert encodings("iq4_xs", "gemma-3-4b", weighted=True)["blk.0.ffn_down"] == "IQ4_XS"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("source") / "source.gguf")


@pytest.mark.parametrize("dtype", [name for name in MIXTURES if name not in ("float32", "float16", "bfloat16")])
def test_gguf_py_reads_what_is_written(dtype: str, source: Path, tmp_path: Path) -> None:
    convert(source, path := tmp_path / "model.gguf", "gguf", dtype)
    file = open_gguf(path)
    assert file.metadata["general.file_type"] == MIXTURES[dtype].file_type
    original = open_gguf(source)
    for tensor in gguf.GGUFReader(path).tensors:
        values, shape = quants.dequantize(tensor.data, tensor.tensor_type), file.tensors[tensor.name].shape
        np.testing.assert_array_equal(file.read(tensor.name), values.reshape(shape))
        error = np.square(values.reshape(shape) - original.read(tensor.name)).sum()
        assert error <= 0.15 * np.square(original.read(tensor.name)).sum()


def wide_config() -> Config:
    """Return a model with 28 matrices in its layers, whose rows have 256 values."""
    config = make_config()
    layers: list[Layer] = []
    for layer in config.layers * 2:
        mixer = replace(layer.mixer, head_dim=128, query_scalar=128)
        layers.append(replace(layer, mixer=mixer, mlp=Mlp(256)))
    return replace(config, width=256, layers=tuple(layers), tied=True)


@pytest.fixture(scope="module")
def every_encoding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file whose matrices have an encoding each, and one with the same values in float32."""
    place, config, random = tmp_path_factory.mktemp("encodings"), wide_config(), np.random.default_rng(0)
    known = [name for name in gguf.GGMLQuantizationType.__members__ if name in ggml.ENCODINGS]
    metadata = to_gguf(config) | make_vocabulary().gguf_metadata()
    tensors: list[GgufTensor] = []
    blocks: dict[str, tuple[str, np.ndarray]] = {}
    for path, tensor in map_gguf(config).items():
        values = np.full(tensor.shape, tensor.offset, np.float32)
        if len(tensor.shape) == 2 and path != "embed":
            encoding = known[len(blocks) % len(known)]
            raw = sensible_blocks(encoding, values.size)
            ggml.decode(encoding, raw, values)
            blocks[tensor.name] = encoding, raw
        elif path == "embed":
            values = random.normal(size=tensor.shape).astype(np.float32)
        tensors.append(GgufTensor(tensor.name, tensor.shape, "F32", [values]))
    assert {encoding for encoding, _ in blocks.values()} == set(known)
    write_gguf(place / "decoded.gguf", metadata, tensors)
    reader, writer = gguf.GGUFReader(place / "decoded.gguf"), gguf.GGUFWriter(place / "stored.gguf", "gemma3")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == 9 else None)
    for tensor in reader.tensors:
        encoding, raw = blocks.get(tensor.name, ("F32", tensor.data))
        rows = raw.reshape(int(tensor.shape[1]), -1) if tensor.name in blocks else raw
        writer.add_tensor(tensor.name, rows, raw_dtype=gguf.GGMLQuantizationType[encoding])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place / "stored.gguf", place / "decoded.gguf"


def sensible_blocks(encoding: str, count: int) -> np.ndarray:
    """Return random blocks of `count` values of about 0.05."""
    e, random = ggml.ENCODINGS[encoding], np.random.default_rng(0)
    if e.block.names is None:
        return ggml.encode(encoding, random.normal(0, 0.05, (1, count)))
    blocks = random.integers(0, 256, (count // e.elements, e.block.itemsize), np.uint8).view(e.block)[:, 0]
    for name in {"d", "dmin", "m"} & set(e.block.names):
        blocks[name] = 16 if encoding == "NVFP4" else 1e-4
    if encoding == "MXFP4":
        blocks["e"] = 122
    if encoding == "IQ1_M":  # a nibble of the scale in each number
        blocks["scales"] = blocks["scales"] & 0x0FFF | np.array([0, 0, 0xC, 0], np.uint16) << 12
    return blocks.view(np.uint8)


def test_a_file_of_every_encoding_has_its_decoded_weights(every_encoding: tuple[Path, Path]) -> None:
    checkpoints = [open_checkpoint(path) for path in every_encoding]
    leaves = [tree.flatten(load_weights(c.file, c.mapping, c.config, "float32")) for c in checkpoints]
    for path, weight in leaves[0].items():
        assert np.isfinite(weight).all()
        assert np.abs(weight).max() < 5
        np.testing.assert_array_equal(weight, leaves[1][path])


def test_a_file_of_every_encoding_scores_as_its_decoded_weights(every_encoding: tuple[Path, Path]) -> None:
    """As stored, where the encodings without native kernels are decoded, and those with them round activations."""
    stored, decoded = (gemwright.load(path).score("the and then " * 4) for path in every_encoding)
    np.testing.assert_allclose(stored.logprobs, decoded.logprobs, atol=0.1)


def legacy_imatrix(entries: dict[str, np.ndarray], calls: int = 2) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, sums in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, len(sums))]
        parts.append(sums.astype("<f4").tobytes())
    return b"".join(parts) + struct.pack("<ii", calls, 4) + b"text"


SUMS = {"blk.0.attn_q.weight": np.arange(1, 33, dtype=np.float32), "output.weight": np.full(32, 3, np.float32)}


def write_gguf_imatrix(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, sums in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", sums[None])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_both_formats_of_importance_matrices(tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(legacy_imatrix(SUMS))
    for path in (tmp_path / "imatrix.dat", write_gguf_imatrix(tmp_path / "imatrix.gguf")):
        importance = read_imatrix(path)
        assert importance.keys() == SUMS.keys()
        for name, sums in SUMS.items():
            np.testing.assert_allclose(importance[name], sums / sums.mean(), rtol=1e-6)


def test_an_importance_matrix_lowers_the_weighted_error(source: Path, tmp_path: Path) -> None:
    sums = np.where(np.arange(32) % 4, 0.01, 100).astype(np.float32)
    (tmp_path / "imatrix.dat").write_bytes(legacy_imatrix({"blk.0.attn_q.weight": sums}))
    original, errors = open_gguf(source).read("blk.0.attn_q.weight"), []
    for name, imatrix in (("plain", None), ("weighted", tmp_path / "imatrix.dat")):
        convert(source, tmp_path / f"{name}.gguf", "gguf", "q4_k_m", imatrix=imatrix)
        made = open_gguf(tmp_path / f"{name}.gguf").read("blk.0.attn_q.weight")
        errors.append((np.square(made - original) * sums).sum())
    assert errors[1] < 0.95 * errors[0]


def test_an_importance_matrix_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(legacy_imatrix({"blk.0.attn_q.weight": np.ones(64)}))
    with pytest.raises(CheckpointError, match=r"64 columns for tensor blk\.0\.attn_q.*; choose one of this model"):
        convert(source, tmp_path / "made.gguf", "gguf", "q4_k_m", imatrix=tmp_path / "imatrix.dat")
    with pytest.raises(CheckpointError, match="no use for float16; choose a quantized dtype"):
        convert(source, tmp_path / "made.gguf", "gguf", "float16", imatrix=tmp_path / "imatrix.dat")
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.dat"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 64, legacy_imatrix(SUMS)[:100], legacy_imatrix({"t": np.array([1, np.nan])}),
     legacy_imatrix({"t": np.array([1.0, -1.0])}), struct.pack("<ii", 1, 2**31 - 1)],
)  # fmt: skip
def test_damaged_importance_matrices(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"imatrix\.dat"):
        read_imatrix(tmp_path / "imatrix.dat")


@pytest.fixture(scope="module")
def imatrices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    place = tmp_path_factory.mktemp("imatrices")
    return place / "mutated", [legacy_imatrix(SUMS), write_gguf_imatrix(place / "imatrix.gguf").read_bytes()]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_importance_matrices(imatrices: tuple[Path, list[bytes]], data: st.DataObject) -> None:
    path, originals = imatrices
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        importance = read_imatrix(path)
    except CheckpointError:
        return
    for values in importance.values():
        assert np.isfinite(values).all()
        assert (values > 0).all()
