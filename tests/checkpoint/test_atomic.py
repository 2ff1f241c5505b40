"""Files and folders are written completely or not at all, and files of others are never touched."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemwright.checkpoint.files.atomic import create_folder, free_bytes, map_file, replace_file
from gemwright.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replace_file(path, 3) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    with create_folder(tmp_path / "deep" / "folder", 3) as temporary:
        (temporary / "file").write_bytes(b"new")
        assert not (tmp_path / "deep" / "folder").exists()
    assert (tmp_path / "deep" / "folder" / "file").read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["folder"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with replace_file(tmp_path / "file"):
            pass
        with create_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("write", [replace_file, create_folder])
def test_a_failure_removes_its_own_temporaries_only(write: Any, failure: BaseException, tmp_path: Path) -> None:
    (tmp_path / "target.partial").write_bytes(b"of the user")
    (tmp_path / "gemwright-0123456789abcdef.partial").write_bytes(b"of a killed process")

    def fail() -> None:
        with write(tmp_path / "target") as made:
            if write is create_folder:
                (made / "file").write_bytes(b"half")
            raise failure

    with pytest.raises(CheckpointError if isinstance(failure, OSError) else type(failure)) as raised:
        fail()
    if isinstance(failure, OSError):
        message = f"{tmp_path}/target: cannot be written (Input/output error); choose another place."
        assert str(raised.value) == message
    assert names(tmp_path) == ["gemwright-0123456789abcdef.partial", "target.partial"]
    assert (tmp_path / "target.partial").read_bytes() == b"of the user"


@pytest.mark.parametrize("write", [replace_file, create_folder])
def test_free_space_is_checked_before_writing(write: Any, tmp_path: Path) -> None:
    message = r"cannot be written \(No space left on device\): it needs 1,152,921,504,606,846,976 bytes, and [\d,]+ are"
    with pytest.raises(CheckpointError, match=message), write(tmp_path / "target", 1 << 60):
        pytest.fail("nothing may be written")
    assert not names(tmp_path)


def test_the_last_of_two_writers_of_a_file_wins(tmp_path: Path) -> None:
    with replace_file(tmp_path / "file") as first:
        first.write(b"first")
        with replace_file(tmp_path / "file") as second:
            second.write(b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_the_last_of_two_writers_of_a_folder_is_refused(tmp_path: Path) -> None:
    def write_both() -> None:
        with create_folder(tmp_path / "target") as first:
            (first / "file").write_bytes(b"first")
            with create_folder(tmp_path / "target") as second:
                (second / "file").write_bytes(b"second")

    with pytest.raises(CheckpointError, match=r"target: exists; choose another name\.$"):
        write_both()
    assert (tmp_path / "target" / "file").read_bytes() == b"second"
    assert names(tmp_path) == ["target"]


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    message = r"cannot be written \(File name too long\); choose another place\.$"
    with pytest.raises(CheckpointError, match=message), replace_file(tmp_path / ("x" * 256)):
        pass
    assert not names(tmp_path)


FULL = """
import sys
from pathlib import Path
import numpy as np
from gemwright.checkpoint.files.atomic import create_folder, replace_file
from gemwright.checkpoint.files.gguf import GgufTensor, write_gguf
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, write_safetensors

folder, VALUES = Path(sys.argv[1]), np.ones(100_000, np.uint8)

def fill():
    '''Fill the disk, as another program may do after the free space was checked.'''
    try:
        (folder / "other").write_bytes(bytes(1_000_000))
    except OSError:
        pass
    return VALUES.astype(np.float32)

def write_file():
    with replace_file(folder / "target", 100_000) as file:
        fill()
        file.write(VALUES)

def write_folder():
    with create_folder(folder / "target", 100_000) as temporary:
        fill()
        (temporary / "file").write_bytes(VALUES)

def gguf():
    write_gguf(folder / "target", {}, [GgufTensor("t", (100_000,), "F32", (fill() for _ in range(1)))])

def safetensors():
    write_safetensors(folder, [SafetensorsTensor("t", (100_000,), np.dtype(np.float32), fill)])

try:
    globals()[sys.argv[2]]()
except ValueError as error:
    print(error, sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.parametrize("write", ["write_file", "write_folder", "gguf", "safetensors"])
def test_a_disk_that_fills_up_is_one_sentence(write: str, tmp_path: Path) -> None:
    """On a tmpfs of half a megabyte, which a user may mount in a user namespace."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    mount = 'mount -t tmpfs -o size=500k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL, write]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(
        f"{tmp_path}{'' if write == 'safetensors' else '/target'}: cannot be written (No space"
    )
    assert "are free; make room or choose another disk." in done.stdout
    assert done.stdout.endswith("['other']\n")


TERMINATED = """
import sys, time
from pathlib import Path
from gemwright import cli
from gemwright.checkpoint.files.atomic import create_folder, replace_file
from gemwright.cli import app

def command(**_):
    with replace_file(Path(sys.argv[1]) / "file") as file, create_folder(Path(sys.argv[1]) / "folder"):
        file.write(bytes(99))
        print("ready", flush=True)
        time.sleep(60)

app.app = command
cli.main()
"""


def test_a_command_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TERMINATED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(names(tmp_path)) == 2
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert not names(tmp_path)


def test_free_bytes_of_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    expected = shutil.disk_usage(tmp_path).free
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(expected, rel=0.1)


def test_a_mapped_file_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    mapped = map_file(tmp_path / "file")
    assert mapped[:] == b"bytes"
    with pytest.raises(TypeError):
        mapped[0] = 0


def test_a_file_that_cannot_be_mapped_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with pytest.raises(CheckpointError, match=r"empty: is empty; fetch or convert the file again\.$"):
        map_file(tmp_path / "empty")
    missing, folder = "No such file or directory", "Is a directory"
    for name, reason in {"missing": missing, "pipe": missing, ".": folder}.items():
        with pytest.raises(CheckpointError, match=rf"cannot be read \({reason}\); check the path\.$"):
            map_file(tmp_path / name)
