"""The package's own tasks in lm-eval's format: their folder, and how their local files are read."""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemwright.errors import DataError

DEFINITIONS: Final = Path(__file__).parent / "tasks"
"""Folder of the definitions, for `lm_eval --include_path`."""

Fields = dict[str, Any]
"""A record, with the fields that the task reads."""


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


@dataclass(frozen=True)
class OwnTask:
    """A task of this package, over files of a data folder.

    Attributes:
        task: Its name, which begins with `gemwright_`.
        files: Path of each split in the data folder.
        read: Yields the records of a file.
    """

    task: str
    files: Mapping[str, str]
    read: Callable[[Path], Iterator[Fields]] = read_lines


def make_task(name: str, file: str, read: Callable[[Path], Iterator[Fields]] = read_lines) -> OwnTask:
    """Return a task whose only split is a file of test records."""
    return OwnTask(f"gemwright_{name}", {"test": file}, read)


def find_own_tasks(tasks: Iterable[OwnTask], data: Path) -> list[OwnTask]:
    """Return the tasks whose files a folder has."""
    return [task for task in tasks if all((data / file).is_file() for file in task.files.values())]


def write_own_tasks(tasks: Iterable[OwnTask], data: Path, folder: Path) -> list[str]:
    """Write the records and definitions of tasks into a folder, and return the tasks' names.

    The folder is for lm-eval's `TaskManager(include_path=..., include_defaults=False)`.

    Raises:
        DataError: A record is malformed.
    """
    names: list[str] = []
    for task in tasks:
        files = {split: folder / f"{task.task}.{split}.jsonl" for split in task.files}
        for split, file in files.items():
            with file.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(record) + "\n" for record in task.read(data / task.files[split]))
        definition = {
            "include": str(DEFINITIONS / f"{task.task.removeprefix('gemwright_')}.yaml"),
            "task": task.task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
            "test_split": "test",
        }
        (folder / f"{task.task}.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
        names.append(task.task)
    return names
