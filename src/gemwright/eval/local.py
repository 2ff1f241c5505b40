"""lm-eval's tasks over files of a folder, so that they run without a network.

Records are written with the fields that the published task reads; prompts, choices and metrics are its own.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EVALUATION = ("test", "validation", "valid", "val", "dev")
_TRAINING = ("train", "efficientqa")
_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".txt.bz2")


@dataclass(frozen=True)
class LocalTask:
    """Where the records of a task are, and how they are read.

    Attributes:
        task: lm-eval's name.
        definition: The published task's YAML file, in lm-eval's folder of tasks.
        files: A pattern of the paths, in the data folder and in lower case, that belong to the benchmark.
        read: Yields the fields that the task reads, of each record of a file.
        split: The split that the task is evaluated on: "test" or "validation".
        fields: Fields of the task that differ from the published ones.
    """

    task: str
    definition: str
    files: str
    read: Callable[[Path], Iterator[Mapping[str, Any]]]
    split: str = "validation"
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class FoundTask:
    """A task and its files: that of the items, and that of the examples if there is one."""

    local: LocalTask
    items: Path
    examples: Path | None


Finder = Callable[[Mapping[str, Path]], Iterator[FoundTask]]
"""Yields tasks of which there are many, given the files by their paths in the data folder, in lower case."""


def find_tasks(data: Path, tasks: Iterable[LocalTask], finders: Iterable[Finder] = ()) -> list[FoundTask]:
    """Return the tasks whose items a folder has."""
    paths = [path for path in sorted(data.rglob("*")) if path.name.lower().endswith(_FILES) and path.is_file()]
    names = {path.relative_to(data).as_posix().lower(): path for path in paths if path.name != "ORIGIN.json"}
    found = [_find(task, names) for task in tasks]
    return [*(task for task in found if task), *(task for finder in finders for task in finder(names))]


def _find(task: LocalTask, names: Mapping[str, Path]) -> FoundTask | None:
    """Return a task with its files: items are those of the split that comes first in the names, or without a split."""
    own = {name: path for name, path in names.items() if re.search(task.files, name)}
    examples = [path for name, path in own.items() if any(word in name.rpartition("/")[2] for word in _TRAINING)]
    items = [path for path in own.values() if path not in examples]
    if not items:
        return None

    def rank(path: Path) -> int:
        words = re.split(r"[^a-z]+", path.name.lower())
        order = _EVALUATION if task.split == "test" else (*_EVALUATION[1:], "test")
        return next((index for index, word in enumerate(order) if word in words), len(order))

    return FoundTask(task, min(items, key=rank), examples[0] if examples else None)


def write_tasks(tasks: Iterable[FoundTask], folder: Path) -> list[str]:
    """Write the records and definitions of tasks into a folder, and return the tasks' names.

    The folder is for lm-eval's `--include_path`.

    Raises:
        DataError: A record is malformed.
    """
    import lm_eval.tasks

    published = Path(next(iter(lm_eval.tasks.__path__)))
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for found in tasks:
        local = found.local
        splits = {local.split: found.items}
        examples = str(local.fields.get("fewshot_split", "training"))
        if found.examples is not None or "fewshot_split" in local.fields:
            splits[examples] = found.examples or found.items
        files = {split: folder / f"{local.task}.{split}.jsonl" for split in splits}
        for split, file in files.items():
            _write(file, local.read(splits[split]))
        definition = {
            "include": str(published / local.definition),
            "task": local.task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in files.items()}},
            **{f"{split}_split": (split if split in files else None) for split in ("training", "validation", "test")},
            **({} if examples in splits else {"fewshot_split": local.split}),
            **local.fields,
        }
        (folder / f"{local.task}.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
        names.append(local.task)
    return names


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
