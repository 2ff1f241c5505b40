"""Records of benchmarks in the forms in which they are published become the fields of lm-eval's tasks."""

import bz2
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gemwright.errors import DataError
from gemwright.eval import benchmarks, records
from gemwright.eval.local import find_tasks, write_tasks

ABCD = ["A", "B", "C", "D"]
WORDS = ["red", "green", "blue", "grey"]
HUB = {"question": "Which?", "choices": {"text": WORDS, "label": ABCD}, "answerKey": "C"}
PIQA = {"goal": "Cut bread", "sol1": "with a knife", "sol2": "with a spoon", "label": 0}
WINOGRANDE = {
    "sentence": "The cup fell on the tray, so the _ broke.",
    "option1": "cup",
    "option2": "tray",
    "answer": "1",
}
SIQA = {"context": "Ann ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "2"}


def convert(tmp_path: Path, name: str, content: Any, function: Any) -> Any:
    """Write one record to a file and return what it becomes."""
    path = tmp_path / name
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(content)
    elif name.endswith(".bz2"):
        path.write_bytes(bz2.compress(content.encode()))
    else:
        path.write_text(json.dumps(content))
    (found,) = map(function, records.read(path))
    return found


@pytest.mark.parametrize(
    ("name", "content", "function", "expected"),
    [
        ("hub.jsonl", HUB, records.convert_arc, HUB),
        (
            "authors.jsonl",
            {
                "question": {
                    "stem": "Which?",
                    "choices": [{"text": word, "label": letter} for word, letter in zip(WORDS, ABCD, strict=True)],
                },
                "answerKey": "C",
            },
            records.convert_arc,
            HUB,
        ),
        ("foundry.jsonl", {"query": "Question: Which?", "choices": WORDS, "gold": 2}, records.convert_arc, HUB),
        ("table.csv", [["Which?", *WORDS, "C"]], records.convert_arc, HUB),
        (
            "named.csv",
            [["question", *ABCD, "answer"], ["Which?", *WORDS, "C"]],
            records.convert_mmlu,
            {"question": "Which?", "choices": WORDS, "answer": 2},
        ),
        ("hub.jsonl", PIQA, records.convert_piqa, PIQA),
        (
            "foundry.jsonl",
            {"query": "Question: Cut bread\nAnswer:", "choices": ["with a knife", "with a spoon"], "gold": 0},
            records.convert_piqa,
            PIQA,
        ),
        ("hub.jsonl", WINOGRANDE, records.convert_winogrande, WINOGRANDE),
        (
            "foundry.jsonl",
            {
                "context_options": ["The cup fell on the tray, so the cup", "The cup fell on the tray, so the tray"],
                "continuation": "broke.",
                "gold": 0,
            },
            records.convert_winogrande,
            WINOGRANDE,
        ),
        ("hub.jsonl", SIQA, records.convert_siqa, SIQA),
        (
            "boolq.jsonl",
            {"passage": "p", "question": "q", "title": "t", "answer": "False"},
            records.convert_boolq,
            {"passage": "p", "question": "q", "label": 0},
        ),
        (
            "trivia.jsonl",
            {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Ann", "Anna"]},
            records.convert_triviaqa,
            {"question": "Who", "answer": {"aliases": ["Ann", "Anna"]}},
        ),
        (
            "lambada.jsonl",
            {"context": "He sat on the", "continuation": "chair"},
            records.convert_lambada,
            {"text": "He sat on the chair"},
        ),
        (
            "h.txt.bz2",
            "ctx\n1\na\nb\nc\nd\n",
            records.convert_hellaswag,
            {"query": "ctx", "label": 1, "choices": [*"abcd"]},
        ),
        (
            "mgsm_en.tsv",
            [["How many?", "1,200"]],
            records.convert_mgsm,
            {"question": "How many?", "answer": None, "answer_number": 1200},
        ),
        ("bbh.json", {"examples": [{"input": "not True is", "target": "False"}]}, records.convert_bbh, None),
    ],
)
def test_forms(tmp_path: Path, name: str, content: Any, function: Any, expected: Any):
    expected = content["examples"][0] if expected is None else expected
    assert convert(tmp_path, name, content, function) == expected


def test_truthful_answers_come_first(tmp_path: Path):
    rows = [
        ["Type", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"],
        ["t", "Is it?", "It is", "It is; Yes", "No; Never"],
    ]
    found = convert(tmp_path, "TruthfulQA.csv", rows, records.convert_truthfulqa)
    assert found["mc1_targets"] == {"choices": ["It is.", "No.", "Never."], "labels": [1, 0, 0]}
    assert found["mc2_targets"] == {"choices": ["It is.", "Yes.", "No.", "Never."], "labels": [1, 1, 0, 0]}


def test_the_right_files_serve_a_task(tmp_path: Path):
    for name in ("arc/ARC-Easy_train.csv", "arc/arc_easy_test.jsonl", "piqa/valid.jsonl", "piqa/test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = {
        task.local.task: (task.items.name, task.examples and task.examples.name)
        for task in find_tasks(tmp_path, benchmarks.TASKS)
    }
    assert found == {"arc_easy": ("arc_easy_test.jsonl", "ARC-Easy_train.csv"), "piqa": ("valid.jsonl", None)}


def test_what_is_wrong_is_named(tmp_path: Path):
    (tmp_path / "piqa.jsonl").write_text('{"goal": "Cut bread", "sol1": "with a knife"}\n')
    with pytest.raises(DataError, match=r"piqa\.jsonl, line 1: there is no field sol2"):
        write_tasks(find_tasks(tmp_path, benchmarks.TASKS), tmp_path / "tasks")
