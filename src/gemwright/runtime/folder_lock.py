"""A folder of results that one process at a time writes to."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gemwright.errors import GemwrightError

UNFINISHED = "gemwright-*.partial"
"""Files and folders whose writing was interrupted; see `checkpoint.files.atomic`."""


@contextmanager
def lock_folder(folder: Path, kind: str, lock: str, marker: str) -> Generator[None]:
    """Make a folder and hold its lock, which the system releases if the process ends in any way.

    Args:
        folder: The folder.
        kind: What it is the folder of, such as "run".
        lock: Name of the file that is locked.
        marker: A file that every folder of this kind has, once it has others; it may be the lock.

    Raises:
        GemwrightError: The folder has files of something else, cannot be written, or another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not path.match(UNFINISHED)}
        if names - {lock} and marker not in names:
            raise GemwrightError(f"{folder} has files that are not of a {kind}; give an empty or a new folder.")
        file = (folder / lock).open("a+")
    except OSError as error:
        raise GemwrightError(f"{folder} cannot be written ({error.strerror}); give another folder.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(20).strip() or "unknown"
            raise GemwrightError(
                f"Another {kind} writes to {folder} (process {owner}); wait for its end or give another folder."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
