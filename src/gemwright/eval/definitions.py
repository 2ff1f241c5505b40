"""The package's own tasks in lm-eval's format: their folder, and how their local files are read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from gemwright.data.sources import read_records
from gemwright.eval.local import LocalTask

Fields = dict[str, Any]
"""The fields of a record."""
DEFINITIONS: Final = Path(__file__).parent / "tasks"
"""Folder of the definitions, for `lm_eval --include_path`."""


def read_lines(file: Path) -> Iterator[Fields]:
    """Yield the records of a file that `gemwright.data` reads.

    Raises:
        DataError: A record is malformed.
    """
    return (dict(record.fields) for record in read_records([file]))


def make_task(
    name: str, files: str, read: Callable[[Path], Iterator[Fields]] = read_lines, definition: str | None = None
) -> LocalTask:
    """Return a task of this package, over a file of the data folder.

    Args:
        name: Its name after `gemwright_`.
        files: A pattern of the paths of its records; see `LocalTask`.
        read: Yields the records of a file.
        definition: Name of the YAML file, if not that of the task.
    """
    return LocalTask(f"gemwright_{name}", str(DEFINITIONS / f"{definition or name}.yaml"), files, read, "test")
