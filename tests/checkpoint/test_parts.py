"""Files that were cut into parts of bytes are read as one, and as the whole file is."""

import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gemwright.checkpoint.files.atomic import map_file
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.files.npz import open_npz
from gemwright.checkpoint.files.parts import find_parts, is_part, pattern_of_parts
from gemwright.checkpoint.files.safetensors import open_safetensors
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.errors import CheckpointError
from tests.tiny.gguf import write_tiny_gguf

PAGE = mmap.PAGESIZE
STYLES = {
    "counted": [".part1of3", ".part2of3", ".part3of3"],
    "from zero": [".part00", ".part01", ".part02"],
    "from one": [".part1", ".part2", ".part3"],
    "letters": ["-split-a", "-split-b", "-split-c"],
    "words": ["-part-a", "-part-b", "-part-c"],
    "two letters": [".part_aa", ".part_ab", ".part_ac"],
    "split": [".aa", ".ab", ".ac"],
    "numbers": [".001", ".002", ".003"],
    "hyphens": ["-00001-of-00003", "-00002-of-00003", "-00003-of-00003"],
}


def cut(whole: Path, names: Sequence[str], sizes: Sequence[int]) -> list[Path]:
    """Cut a file into parts of some sizes in bytes and a last one with the rest, and remove it."""
    content, start = whole.read_bytes(), 0
    ends = [*np.cumsum(sizes), len(content)]
    for name, end in zip(names, ends, strict=True):
        (whole.parent / name).write_bytes(content[start:end])
        start = end
    whole.unlink()
    return [whole.parent / name for name in names]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "whole").mkdir()
    return write_tiny_gguf(tmp_path / "whole" / "tiny.gguf")


def cut_copy(whole: Path, suffixes: Sequence[str], sizes: Sequence[int] = (PAGE, 2 * PAGE)) -> list[Path]:
    folder = whole.parent.parent / "cut"
    folder.mkdir()
    copy = Path(shutil.copy(whole, folder))
    return cut(copy, [copy.name + suffix for suffix in suffixes], sizes)


@pytest.mark.parametrize("suffixes", STYLES.values(), ids=STYLES)
def test_parts_are_read_as_the_whole_file(whole: Path, suffixes: list[str]) -> None:
    parts = cut_copy(whole, suffixes)
    ours, theirs = open_gguf(parts[0]), open_gguf(whole)
    assert ours.tensors == theirs.tensors
    for name in theirs.tensors:
        np.testing.assert_array_equal(ours.raw(name), theirs.raw(name))
    assert open_checkpoint(parts[0]).config == open_checkpoint(whole).config
    assert open_checkpoint(parts[0].parent).config == open_checkpoint(whole).config
    assert find_parts(parts[0]) == parts
    with GgufPrefetch(locate(str(parts[0])), native=False) as read:
        assert read.file.result().tensors == theirs.tensors
    for later in parts[1:]:
        with pytest.raises(CheckpointError, match=rf"is not the first part of tiny\.gguf; give {parts[0].name}\.$"):
            open_checkpoint(later)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    rest=st.integers(1, 2 * PAGE),
    width=st.integers(1, 3),
    counted=st.booleans(),
)
def test_any_cut_at_pages_keeps_every_byte(
    tmp_path: Path, pages: list[int], rest: int, width: int, counted: bool
) -> None:
    folder = tmp_path / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = np.random.default_rng(rest).integers(0, 256, sum(pages) * PAGE + rest, np.uint8)
    (folder / "x.gguf").write_bytes(content.tobytes())
    end = f"of{len(pages) + 1}" if counted else ""
    names = [f"x.gguf.part{number:0{width}}{end}" for number in range(1, len(pages) + 2)]
    parts = cut(folder / "x.gguf", names, [count * PAGE for count in pages])
    mapped = map_file(parts[0])
    np.testing.assert_array_equal(np.frombuffer(mapped, np.uint8), content)
    assert mapped[PAGE - 1 : PAGE + 1] == content[PAGE - 1 : PAGE + 1].tobytes()
    assert sorted(folder.glob(pattern_of_parts(parts[-1].name))) == sorted(parts)


@pytest.mark.parametrize(
    "name", ["x.gguf", "x.gguf.part", "x.gguf.1", "x.gguf.gz", "x.gguf.xz", "x.gguf.sha256", "x.part1of2", "x.gguf.7z"]
)
def test_other_names_are_no_parts(name: str, tmp_path: Path) -> None:
    assert not is_part(Path(name))
    assert find_parts(tmp_path / name) == [tmp_path / name]


def test_safetensors_and_npz_in_parts(tmp_path: Path) -> None:
    values = {"a": np.arange(PAGE, dtype=np.float32), "b": np.ones((3, PAGE), np.float32)}
    save_file(values, tmp_path / "model.safetensors")
    expected = load_file(tmp_path / "model.safetensors")
    parts = cut(tmp_path / "model.safetensors", [f"model.safetensors.part{i}" for i in range(3)], (PAGE, PAGE))
    file = open_safetensors(parts[0])
    assert all(np.array_equal(file.read(name), expected[name]) for name in values)
    np.savez(tmp_path / "w.npz", **values)
    first = cut(tmp_path / "w.npz", ["w.npz-split-a", "w.npz-split-b"], [3 * PAGE])[0]
    assert np.array_equal(open_npz(first).read("b"), values["b"])


def test_parts_in_the_folders_of_numbered_packages(whole: Path) -> None:
    parts = cut_copy(whole, STYLES["from zero"])
    for number, part in enumerate(parts, 1):
        folder = part.parent / f"weights_part{number}" / "data"
        folder.mkdir(parents=True)
        parts[number - 1] = part.rename(folder / part.name)
    assert find_parts(parts[0]) == parts
    assert open_gguf(parts[0]).tensors == open_gguf(whole).tensors


def test_links_to_parts_as_in_the_hub_s_cache(whole: Path) -> None:
    parts = cut_copy(whole, STYLES["counted"])
    blobs = whole.parent / "blobs"
    blobs.mkdir()
    for index, part in enumerate(parts):
        part.symlink_to(part.rename(blobs / f"{index}"))
    assert open_gguf(parts[0]).tensors == open_gguf(whole).tensors


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(whole: Path, missing: int) -> None:
    parts = cut_copy(whole, STYLES["counted"])
    parts[missing].unlink()
    given = parts[0] if missing else parts[1]
    with pytest.raises(CheckpointError, match=rf"of tiny\.gguf, of which part {missing + 1} is missing; put all"):
        open_checkpoint(given)


def test_a_missing_last_part_without_a_count_is_a_short_file(whole: Path) -> None:
    parts = cut_copy(whole, STYLES["from one"])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"part1: ends inside"):
        open_checkpoint(parts[0])


def test_parts_of_other_sizes_come_with_the_command_that_joins_them(whole: Path) -> None:
    parts = cut_copy(whole, ["-split-a", "-split-b"], [PAGE + 1])
    with pytest.raises(CheckpointError, match=rf"sizes are not multiples of {PAGE} bytes; join them") as raised:
        open_checkpoint(parts[0])
    command = re.search(r": (cat .*)\.$", str(raised.value))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True, cwd=parts[0].parent)
    assert parts[0].with_name("tiny.gguf").read_bytes() == whole.read_bytes()


def test_python_without_ctypes_is_one_sentence(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = cut_copy(whole, STYLES["letters"])
    monkeypatch.setitem(sys.modules, "ctypes", None)
    with pytest.raises(CheckpointError, match="as this Python has no ctypes; join them in their folder: cat tiny"):
        open_gguf(parts[0])


@pytest.mark.parametrize("kind", ["pointer", "empty", "pipe", "folder", "unreadable"])
def test_a_part_that_is_none(whole: Path, kind: str) -> None:
    parts = cut_copy(whole, STYLES["counted"])
    parts[1].unlink()
    if kind == "folder":
        parts[1].mkdir()
    if kind == "pipe":
        os.mkfifo(parts[1])
    if kind == "unreadable":
        parts[1].symlink_to(parts[1])
    if kind == "empty":
        parts[1].touch()
    if kind == "pointer":
        parts[1].write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + bytes(PAGE - 43))
    with pytest.raises(CheckpointError, match=r"LFS pointer|not multiples|part 2 is missing"):
        open_gguf(parts[0])


def mapped_parts() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/cut/tiny.gguf" in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the maps of a process")
def test_the_map_lives_as_long_as_an_array_in_it(whole: Path) -> None:
    parts = cut_copy(whole, STYLES["counted"])
    file = open_gguf(parts[0])
    name = next(iter(file.tensors))
    array, expected = file.raw(name), open_gguf(whole).raw(name)
    file.release(name)
    del file
    for part in parts:
        part.unlink()
    assert len(mapped_parts()) == 3
    np.testing.assert_array_equal(array, expected)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    del array
    assert mapped_parts() == []


USE = """
import os, resource, sys
from pathlib import Path
from gemwright.checkpoint.files.atomic import map_file
data = map_file(Path(sys.argv[1]))
child = os.fork()
if not child:
    os._exit(0 if data[:4] == b"GGUF" and data[-1:] == data[len(data) - 1:] else 1)
assert os.waitpid(child, 0)[1] == 0
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
map_file(Path(sys.argv[1]))
"""


def test_a_fork_reads_the_parts_and_a_limit_of_addresses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(1 << 26))
    first = cut(tmp_path / "x.gguf", ["x.gguf.part1of2", "x.gguf.part2of2"], [1 << 25])[0]
    done = subprocess.run([sys.executable, "-c", USE, first], capture_output=True, text=True, check=False)
    assert re.search(r"CheckpointError: .*part1of2: cannot be read \(Cannot allocate memory\); check", done.stderr)
