"""lm-eval's tasks over files of a folder, so that they run without a network.

Records are written with the fields that the published task reads; prompts, choices and metrics are its own.
"""

import bz2
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class LocalTask:
    """Where the records of a task are.

    Attributes:
        task: lm-eval's name.
        definition: The published task's YAML file, in lm-eval's folder of tasks.
        files: Path of each split in the data folder.
        read: Yields the records of a file with the fields of the published data.
        fields: Fields of the task that differ, such as the split that examples are taken from.
    """

    task: str
    definition: str
    files: Mapping[str, str]
    read: Callable[[Path], Iterator[Record]]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


def find_tasks(data: Path) -> list[LocalTask]:
    """Return the tasks whose test files a folder has."""
    return [task for task in (*TASKS, *_mmlu(data)) if all((data / file).is_file() for file in task.files.values())]


def write_tasks(tasks: Iterable[LocalTask], data: Path, folder: Path) -> list[str]:
    """Write the records and definitions of tasks into a folder, and return the tasks' names.

    The folder is for lm-eval's `TaskManager(include_path=..., include_defaults=False)`.
    """
    import lm_eval.tasks

    published = Path(next(iter(lm_eval.tasks.__path__)))
    names: list[str] = []
    for task in tasks:
        files = {split: folder / f"{task.task}.{split}.jsonl" for split in task.files}
        for split, file in files.items():
            _write(file, task.read(data / task.files[split]))
        definition = {
            "include": str(published / task.definition),
            "task": task.task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
            **{f"{split}_split": (split if split in files else None) for split in ("training", "validation", "test")},
            **task.fields,
        }
        (folder / f"{task.task}.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
        names.append(task.task)
    return names


def _write(file: Path, records: Iterable[Record]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _read_lines(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _choices(texts: list[str]) -> Record:
    return {"text": texts, "label": list(_LETTERS[: len(texts)])}


def _read_arc(file: Path) -> Iterator[Record]:
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as lines:
            for question, *options, answer in csv.reader(lines):
                yield {"question": question, "choices": _choices(options), "answerKey": answer}
        return
    for record in _read_lines(file):
        question = str(record["query"]).removeprefix("Question: ")
        yield {"question": question, "choices": _choices(record["choices"]), "answerKey": _LETTERS[record["gold"]]}


def _read_openbookqa(file: Path) -> Iterator[Record]:
    for record in _read_lines(file):
        choices, answer = _choices(record["choices"]), _LETTERS[record["gold"]]
        yield {"question_stem": record["query"], "choices": choices, "answerKey": answer}


def _read_commonsense_qa(file: Path) -> Iterator[Record]:
    for record in _read_lines(file):
        question = record["question"]
        texts = [choice["text"] for choice in question["choices"]]
        yield {"question": question["stem"], "choices": _choices(texts), "answerKey": record["answerKey"]}


def _read_hellaswag(file: Path) -> Iterator[Record]:
    """Read the form of six lines: context, number of the right ending, four endings."""
    with bz2.open(file, "rt", encoding="utf-8") as lines:
        while record := [line.rstrip("\n") for line in islice(lines, 6)]:
            query, label, *endings = record
            yield {"query": query, "label": int(label), "choices": endings}


def _read_boolq(file: Path) -> Iterator[Record]:
    for record in _read_lines(file):
        label = int(str(record["answer"]) == "True")
        yield {"passage": record["passage"], "question": record["question"], "label": label}


def _read_triviaqa(file: Path) -> Iterator[Record]:
    for record in _read_lines(file):
        question = str(record["context"]).removeprefix("Question: ").removesuffix("\nAnswer:").removesuffix("?")
        aliases = list(dict.fromkeys([record["answer"], *record["aliases"]]))
        yield {"question": question, "answer": {"aliases": aliases}}


def _read_lambada(file: Path) -> Iterator[Record]:
    for record in _read_lines(file):
        yield {"text": f"{record['context']} {record['continuation']}"}


def _read_mmlu(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8", newline="") as lines:
        for question, *options, answer in csv.reader(lines):
            yield {"question": question, "choices": options, "answer": _LETTERS.index(answer)}


def _mmlu(data: Path) -> Iterator[LocalTask]:
    """Yield a task for each subject of MMLU."""
    for file in sorted(data.glob("mmlu/test/*_test.csv")):
        subject = file.name.removesuffix("_test.csv")
        files = {"test": f"mmlu/test/{file.name}", "dev": f"mmlu/dev/{subject}_dev.csv"}
        fields = {"description": f"The following are multiple choice questions (with answers) about {subject}.\n\n"}
        fields["description"] = fields["description"].replace("_", " ")
        yield LocalTask(f"mmlu_{subject}", "mmlu/default/_default_template_yaml", files, _read_mmlu, fields)


_FROM_VALIDATION = {"fewshot_split": "validation"}
TASKS = (
    LocalTask(
        "arc_easy",
        "arc/arc_easy.yaml",
        {"test": "arc/arc_easy_test.jsonl", "training": "arc/ARC-Easy_train.csv"},
        _read_arc,
    ),
    LocalTask(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        {"test": "arc/arc_challenge_test.jsonl", "training": "arc/ARC-Challenge_train.csv"},
        _read_arc,
    ),
    LocalTask(
        "boolq", "super_glue/boolq/default.yaml", {"validation": "boolq/dev.jsonl"}, _read_boolq, _FROM_VALIDATION
    ),
    LocalTask(
        "commonsense_qa",
        "commonsense_qa/default.yaml",
        {"validation": "commonsenseqa/dev_rand_split.jsonl", "training": "commonsenseqa/train_rand_split.jsonl"},
        _read_commonsense_qa,
    ),
    LocalTask("gsm8k", "gsm8k/gsm8k.yaml", {"test": "gsm8k/test.jsonl", "training": "gsm8k/train.jsonl"}, _read_lines),
    LocalTask(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        {"validation": "hellaswag/hellaswag_val_full.txt.bz2"},
        _read_hellaswag,
        {"process_docs": None, **_FROM_VALIDATION},  # the records are processed
    ),
    LocalTask("lambada_openai", "lambada/lambada_openai.yaml", {"test": "lambada/lambada_openai.jsonl"}, _read_lambada),
    LocalTask(
        "nq_open",
        "nq_open/nq_open.yaml",
        {"validation": "nq-open/NQ-open.dev.jsonl", "training": "nq-open/NQ-open.efficientqa.dev.1.1.jsonl"},
        _read_lines,
    ),
    LocalTask("openbookqa", "openbookqa/openbookqa.yaml", {"test": "openbookqa/test.jsonl"}, _read_openbookqa),
    LocalTask(
        "triviaqa",
        "triviaqa/default.yaml",
        {"validation": "triviaqa/triviaqa_sm_sub.jsonl"},
        _read_triviaqa,
        _FROM_VALIDATION,
    ),
)
"""Tasks and the files that serve them."""
