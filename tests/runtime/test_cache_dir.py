"""The folder of caches, its size, and who may use it."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gemwright.runtime import cache_dir


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gemwright"


def _write(path: Path, size: int, age: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches", "HOME": "/home/ada"}, "/caches/gemwright"),
        ({"XDG_CACHE_HOME": "caches", "HOME": "/home/ada"}, "/home/ada/.cache/gemwright"),
        ({"HOME": "/home/ada"}, "/home/ada/.cache/gemwright"),
        ({"HOME": "relative"}, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/gemwright"),
        ({"HOME": ""}, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/gemwright"),
        ({}, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/gemwright"),
    ],
    ids=str,
)
def test_the_folder_is_absolute(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache_dir.cache_folder()) == expected


def test_a_user_without_a_home_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = cache_dir.cache_folder()
    assert folder == tmp_path / f"gemwright-{os.getuid()}"
    assert cache_dir.writable(folder / "xla")
    cache_dir.ensure_home()
    assert Path("~").expanduser() == folder
    folder.chmod(0o777)  # another user could exchange compiled programs
    assert not cache_dir.writable(folder / "xla")
    monkeypatch.delenv("HOME")
    cache_dir.ensure_home()
    assert Path("~").expanduser() != folder
    assert Path("~").expanduser().parent == tmp_path
    folder.chmod(0o700)
    (folder / "linked").symlink_to(tmp_path)
    assert not cache_dir.writable(folder / "linked")


def test_relative_folders_of_the_environment_are_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "relative")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    cache_dir.ensure_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.getuid()).pw_dir
    assert "XDG_CACHE_HOME" not in os.environ


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run as another user")
def test_an_unknown_user_has_no_traceback():
    code = (
        "import os, pwd\nfrom gemwright.runtime import cache_dir\n"
        "os.setuid(54321)\nprint(cache_dir.cache_folder())\n"  # who may not read Python's own files
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    root = Path(cache_dir.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(root)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip().endswith("gemwright-54321"), done.stderr


def test_a_cache_is_cut_to_the_files_read_last(caches: Path):
    files = [_write(caches / "xla" / f"{age}", 100, age) for age in range(10)]
    other = _write(caches / "xla" / "folder" / "other", 1000, 99)
    cache_dir.trim(caches / "xla", 1000)
    assert all(file.exists() for file in files)
    cache_dir.trim(caches / "xla", 900)
    assert [file.exists() for file in files] == [True] * 4 + [False] * 6
    assert other.exists()
    cache_dir.trim(caches / "missing", 0)


def test_caches_have_a_size_and_are_cleared(caches: Path, tmp_path: Path):
    _write(caches / "xla" / "program", 100, 0)
    _write(caches / "tokenizers" / "tokenizer", 30, 0)
    ours = [_write(caches / "gemma-terms-shown", 5, 0), _write(tmp_path / "mine", 7, 0)]
    (caches / "xla" / "link").symlink_to(ours[1])
    assert cache_dir.cache_bytes() == {"xla": 100, "tokenizers": 30}
    assert cache_dir.clear_caches() == 130
    assert cache_dir.cache_bytes() == {"xla": 0, "tokenizers": 0}
    assert all(file.exists() for file in ours)
    assert cache_dir.clear_caches() == 0
