"""lm-eval's tasks over files of a folder, so that they run without a network.

Records are written with the fields that the published task reads; prompts, choices and metrics are its own.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemwright.data.sources import Record
from gemwright.eval import records as r

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
        convert: Returns the fields of a record that the task reads.
        split: The split that the task is evaluated on: "test" or "validation".
        fields: Fields of the task that differ from the published ones.
    """

    task: str
    definition: str
    files: str
    convert: Callable[[Record], Mapping[str, Any]]
    split: str = "validation"
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class FoundTask:
    """A task and its files: that of the items, and that of the examples if there is one."""

    local: LocalTask
    items: Path
    examples: Path | None


def find_tasks(data: Path) -> list[FoundTask]:
    """Return the tasks whose items a folder has."""
    paths = [path for path in sorted(data.rglob("*")) if path.name.lower().endswith(_FILES) and path.is_file()]
    names = {path.relative_to(data).as_posix().lower(): path for path in paths if path.name != "ORIGIN.json"}
    found = [_find(task, names) for task in TASKS]
    return [*(task for task in found if task), *_find_mmlu(names), *_find_bbh(names), *_find_mgsm(names)]


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


def _find_mmlu(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each subject of MMLU: `SUBJECT_test.csv`, and `SUBJECT_dev.csv` for the examples."""
    development = {path.name.lower(): path for path in names.values()}
    for match, path in _match(names, r"(?:^|/)(\w+)_test\.csv$"):
        examples = development.get(f"{match[1]}_dev.csv")
        if examples is None:
            continue
        about = f"The following are multiple choice questions (with answers) about {match[1].replace('_', ' ')}.\n\n"
        fields = {"description": about, "fewshot_split": "dev"}
        definition = "mmlu/default/_default_template_yaml"
        yield FoundTask(LocalTask(f"mmlu_{match[1]}", definition, "", r.convert_mmlu, "test", fields), path, examples)


def _find_bbh(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each of BIG-Bench Hard: `bbh/NAME.json`. Its examples are in lm-eval's definition."""
    for match, path in _match(names, r"(?:bbh|big.?bench.?hard).*/(\w+)\.json$"):
        definition = f"bbh/cot_fewshot/{match[1]}.yaml"
        if (_published() / definition).is_file():
            yield FoundTask(LocalTask(f"bbh_cot_fewshot_{match[1]}", definition, "", r.convert_bbh, "test"), path, None)


def _find_mgsm(names: Mapping[str, Path]) -> Iterator[FoundTask]:
    """Yield a task for each language of MGSM: `mgsm_LANGUAGE.tsv`."""
    for match, path in _match(names, r"mgsm_([a-z]{2})\.\w+$"):
        definition = f"mgsm/direct/mgsm_direct_{match[1]}.yaml"
        if (_published() / definition).is_file():
            yield FoundTask(LocalTask(f"mgsm_direct_{match[1]}", definition, "", r.convert_mgsm, "test"), path, None)


def _match(names: Mapping[str, Path], pattern: str) -> Iterator[tuple[re.Match[str], Path]]:
    for name, path in names.items():
        if match := re.search(pattern, name):
            yield match, path


def _published() -> Path:
    """Return lm-eval's folder of tasks."""
    import lm_eval.tasks

    return Path(next(iter(lm_eval.tasks.__path__)))


def write_tasks(tasks: Iterable[FoundTask], folder: Path) -> list[str]:
    """Write the records and definitions of tasks into a folder, and return the tasks' names.

    The folder is for lm-eval's `--include_path`.

    Raises:
        DataError: A record is malformed.
    """
    published = _published()
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for found in tasks:
        local = found.local
        splits = {local.split: found.items}
        examples = str(local.fields.get("fewshot_split", "training"))
        if found.examples is not None:
            splits[examples] = found.examples
        files = {split: folder / f"{local.task}.{split}.jsonl" for split in splits}
        for split, file in files.items():
            _write(file, map(local.convert, r.read(splits[split])))
        definition = {
            "include": str(published / local.definition),
            "task": local.task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in files.items()}},
            **{f"{split}_split": (split if split in files else None) for split in ("training", "validation", "test")},
            **({} if found.examples else {"fewshot_split": local.split}),
            **{name: value for name, value in local.fields.items() if name != "fewshot_split" or found.examples},
        }
        (folder / f"{local.task}.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
        names.append(local.task)
    return names


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


TASKS: tuple[LocalTask, ...] = (
    LocalTask("arc_easy", "arc/arc_easy.yaml", r"arc.*easy", r.convert_arc, "test"),
    LocalTask("arc_challenge", "arc/arc_challenge.yaml", r"arc.*challenge", r.convert_arc, "test"),
    LocalTask("boolq", "super_glue/boolq/default.yaml", r"boolq", r.convert_boolq),
    LocalTask("commonsense_qa", "commonsense_qa/default.yaml", r"common.?sense.?qa", r.convert_arc),
    LocalTask("gsm8k", "gsm8k/gsm8k.yaml", r"gsm8k|grade.school.math", r.convert_gsm8k, "test"),
    LocalTask("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", r"gsm8k|grade.school.math", r.convert_gsm8k, "test"),
    LocalTask(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        r"hellaswag",
        r.convert_hellaswag,
        fields={"process_docs": None},  # the records are processed
    ),
    LocalTask("lambada_openai", "lambada/lambada_openai.yaml", r"lambada", r.convert_lambada, "test"),
    LocalTask("minerva_math500", "minerva_math/minerva_math500.yaml", r"math.?500", r.convert_math, "test"),
    LocalTask("nq_open", "nq_open/nq_open.yaml", r"nq.?open|natural.?questions", r.convert_nq_open),
    LocalTask("openbookqa", "openbookqa/openbookqa.yaml", r"open.?book.?qa", r.convert_openbookqa, "test"),
    LocalTask("piqa", "piqa/piqa.yaml", r"piqa", r.convert_piqa),
    LocalTask("social_iqa", "siqa/siqa.yaml", r"social.?i.?qa|siqa", r.convert_siqa),
    LocalTask("triviaqa", "triviaqa/default.yaml", r"trivia.?qa", r.convert_triviaqa),
    LocalTask("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", r"truthful.?qa", r.convert_truthfulqa),
    LocalTask("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", r"truthful.?qa", r.convert_truthfulqa),
    LocalTask("winogrande", "winogrande/default.yaml", r"winogrande", r.convert_winogrande),
)
"""Tasks and the files that serve them."""
