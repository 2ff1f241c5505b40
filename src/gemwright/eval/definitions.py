"""The package's own tasks in lm-eval's format: their folder, and how their local files are read."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from gemwright.errors import DataError
from gemwright.eval.local import LocalTask

Fields = dict[str, Any]
"""The fields of a record."""
DEFINITIONS: Final = Path(__file__).parent / "tasks"
"""Folder of the definitions, for `lm_eval --include_path`."""


def read_lines(file: Path) -> Iterator[Fields]:
    """Yield the records of a JSONL file, which may be compressed with gzip.

    Raises:
        DataError: A line is no JSON object.
    """
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: {error}; write one JSON object on each line.") from error
            if not isinstance(record, dict):
                raise DataError(f"{file}, line {number}: expected a JSON object.")
            yield record


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
