"""The reader opens any bytes or raises CheckpointError, in bounded memory."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.errors import CheckpointError

SMALL = safetensors.numpy.save(
    {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((2, 1), ml_dtypes.bfloat16),
        "c": np.zeros(3, np.float16),
        "d": np.arange(2),
    },
    {"format": "pt"},
)
PANELS = safetensors.numpy.save({"a": np.arange(320, dtype=np.uint8)}, {"a": "Q4_0 3 32"})  # one block of 288 bytes
INDEX = json.dumps({"metadata": {"total_size": 46}, "weight_map": dict.fromkeys("abcd", "one.safetensors")}).encode()

SETTINGS = settings(
    max_examples=200,
    deadline=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def survives(path: Path, opened: Path | None = None) -> bool:
    """Open and read everything; return whether the file was accepted."""
    budget = 1_000_000 + 100 * path.stat().st_size
    tracemalloc.start()
    try:
        file = open_safetensors(opened or path)
        for name, info in file.tensors.items():
            assert file.raw(name).nbytes == info.nbytes
            if info.encoding in ("F32", "F16", "BF16") or info.panels:
                assert file.read(name).shape == info.shape
                file.read_rows(name, 0, 1) if info.shape else None
    except CheckpointError as error:
        assert str(error).startswith(str(path.parent))  # noqa: PT017
        assert len(str(error)) < len(str(path)) + 500  # noqa: PT017
        return False
    else:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < budget, f"{peak} bytes for a file of {path.stat().st_size}"


def accepted_by_the_package(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw a file with some bytes changed, removed or added, most often in the part that is parsed."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        data[at : at + size] = draw(
            st.binary(max_size=8) | st.sampled_from([b'"', b"9", b"-", b"[", b"}", b",", b"e9"])
        )
    return bytes(data)


def test_the_unchanged_seed_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(SMALL)
    (tmp_path / "model.safetensors.index.json").write_bytes(INDEX)
    assert survives(tmp_path / "one.safetensors")
    assert survives(tmp_path / "model.safetensors.index.json", tmp_path)
    (tmp_path / "panels.safetensors").write_bytes(PANELS)
    assert open_safetensors(tmp_path / "panels.safetensors").tensors["a"].shape == (3, 32)
    assert survives(tmp_path / "panels.safetensors")


@SETTINGS
@given(data=mutated(SMALL))
def test_mutated_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    if survives(path):
        assert accepted_by_the_package(data), "looser than the safetensors package"


@SETTINGS
@given(data=mutated(PANELS))
def test_mutated_panels(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    if survives(path):
        assert accepted_by_the_package(data), "looser than the safetensors package"


@SETTINGS
@given(description=st.text(max_size=12) | st.from_regex(r"(Q8_0|Q4_0|F32) \d{1,10} \d{1,10}", fullmatch=True))
def test_descriptions_of_panels(tmp_path: Path, description: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(320, np.uint8)}, {"a": description}))
    if survives(path):
        encoding, rows, width = description.split(" ")
        assert (encoding, int(width)) == ("Q4_0", 32)
        assert 0 < int(rows) <= 16


@SETTINGS
@given(data=st.binary(max_size=200))
def test_random_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    survives(tmp_path / "model.safetensors")


@SETTINGS
@given(data=mutated(INDEX))
def test_mutated_indices(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "one.safetensors").write_bytes(SMALL)
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    survives(tmp_path / "model.safetensors.index.json", tmp_path)


numbers = st.integers(0, 40) | st.integers() | st.sampled_from([1 << 63, (1 << 63) - 1, -(1 << 63)])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "U8", "F4", "F6_E2M3", "C64", "F33"]) | values,
        "shape": st.lists(numbers, max_size=70) | values,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | values,
    },
    optional={"more": values},
)


@settings(SETTINGS, max_examples=150)
@given(
    header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), entries | values, max_size=4),
    data=st.binary(max_size=40),
)
def test_absurd_headers(tmp_path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + data
    (tmp_path / "model.safetensors").write_bytes(whole)
    if survives(tmp_path / "model.safetensors"):
        assert accepted_by_the_package(whole), "looser than the safetensors package"


sound_tensors = st.tuples(
    st.sampled_from([("F32", 4), ("BF16", 2), ("F16", 2), ("U8", 1)]), st.lists(st.integers(0, 3), max_size=4)
)


@SETTINGS
@given(described=st.lists(sound_tensors, max_size=5), order=st.randoms(use_true_random=False))
def test_sound_headers_are_accepted(tmp_path: Path, described: Any, order: Any) -> None:
    header, end = {}, 0
    for i, ((dtype, itemsize), shape) in enumerate(described):
        begin, end = end, end + itemsize * int(np.prod(shape))
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    items = list(header.items())
    order.shuffle(items)
    text = json.dumps(dict(items)).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(end)
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert survives(tmp_path / "model.safetensors")
    assert accepted_by_the_package(whole)


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"1,", b'"x",', b'"",', b"[[[[", b'{"a":', b"1" * 4000 + b","])
def test_large_hostile_headers_stay_within_bounds(tmp_path: Path, filling: bytes) -> None:
    text = b'{"a":[' + filling * (4_000_000 // len(filling)) + b"1]}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert not survives(path)
