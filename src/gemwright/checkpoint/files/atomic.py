"""Map files for reading; write files and folders completely or not at all.

A file or folder is written under a temporary name of its own in the target's folder, flushed to the disk and then
renamed, so that readers never find half of it and concurrent writers cannot mix their bytes: the last rename wins.
"""

import errno
import mmap
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemwright.checkpoint.files.formats import refuse_pointer
from gemwright.checkpoint.files.parts import find_parts, map_parts
from gemwright.errors import CheckpointError


def file_error(path: Path, problem: str, remedy: str = "fetch or convert the file again") -> CheckpointError:
    """Return an error that names a file, its problem and how to fix it."""
    return CheckpointError(f"{path}: {problem}; {remedy}.")


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory, read-only; all parts of one that was cut, by its first part.

    Raises:
        CheckpointError: It is missing, empty, not a regular file, cannot be read or is a Git LFS pointer, or a part is
            missing or cannot be mapped.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait for its writer
            number = errno.EISDIR if path.is_dir() else errno.ENOENT
            raise OSError(number, os.strerror(number))
        if len(parts := find_parts(path)) > 1:
            return map_parts(parts)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise file_error(path, "is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise file_error(path, f"cannot be read ({error.strerror})", "check the path") from error
    refuse_pointer(path, data[:64])
    return data


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


@contextmanager
def replace_file(path: Path, nbytes: int = 0) -> Generator[BinaryIO]:
    """Open a temporary file that replaces `path` once the `with` block has written it.

    Args:
        path: The file to make, with its parents, or to replace.
        nbytes: Bytes to be written, checked against the free space first.

    Raises:
        CheckpointError: The disk is full or the file cannot be written; nothing is left behind.
    """
    with temporary_path(path, path.parent, nbytes) as temporary:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def create_folder(path: Path, nbytes: int = 0) -> Generator[Path]:
    """Make a temporary folder that becomes `path` once the `with` block has filled it.

    Args:
        path: The folder to make, and its parents. It must be absent or empty.
        nbytes: Bytes to be written, checked against the free space first.

    Raises:
        CheckpointError: The disk is full, the folder cannot be written or another process made it meanwhile.
    """
    with temporary_path(path, path.parent, nbytes) as temporary:
        temporary.mkdir()
        yield temporary
        sync_files(temporary)
        temporary.rename(path)


def sync_files(folder: Path) -> None:
    """Flush the files of a folder, and of those in it, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def temporary_path(target: Path, folder: Path, nbytes: int = 0) -> Generator[Path]:
    """Yield an unused path in `folder`; remove what is there at the end of the `with` block.

    Args:
        target: What is to be written, for errors.
        folder: A folder on the target's disk, made if it does not exist.
        nbytes: Bytes to be written.

    Raises:
        CheckpointError: An `OSError` in the block, or fewer bytes are free.
    """
    temporary = folder / f"gemwright-{os.urandom(8).hex()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if free_bytes(folder) < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            yield temporary
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _write_error(target, folder, nbytes, error) from error


def _write_error(target: Path, folder: Path, nbytes: int, error: OSError) -> CheckpointError:
    problem, remedy = f"cannot be written ({error.strerror or error})", "choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem += f": it needs {nbytes:,} bytes, and {free_bytes(folder):,} are free"
        remedy = "make room or choose another disk"
    if error.errno == errno.ENOTEMPTY:  # another process made the folder first
        problem, remedy = "exists", "choose another name"
    return file_error(target, problem, remedy)
