import json
from pathlib import Path

import pytest

from gemwright.errors import DataError
from gemwright.eval.compare.prompts import Prompt, read_prompts

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_forms_of_prompts(tmp_path: Path):
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"uid": "x1", "prompt": "Who?"},
        {"instruction": "Sort."},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.csv").write_text("id,question,category\n7,Why?,facts\n")
    (tmp_path / "c.txt").write_text("One?\n\nTwo?\n")
    assert read_prompts(tmp_path / "a.jsonl") == [
        Prompt("81", ("Write.", "Again."), "writing"),
        Prompt("x1", ("Who?",)),
        Prompt("3", ("Sort.",)),
    ]
    assert read_prompts(tmp_path / "b.csv") == [Prompt("7", ("Why?",), "facts")]
    assert read_prompts(tmp_path / "c.txt") == [Prompt("1", ("One?",)), Prompt("2", ("Two?",))]
    assert [prompt.name for prompt in read_prompts(tmp_path / "a.jsonl", 2)] == ["81", "x1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"other": 1}', "line 1: there is no prompt"),
        ('{"turns": []}', "there is no prompt"),
        ('{"turns": "Who?"}', "there is no prompt"),
        ('{"turns": ["a", 1]}', "a turn is empty or not a text"),
        ('{"prompt": "  "}', "a turn is empty"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "line 2: the id '1' is that of an earlier record"),
        ("", "has no prompts"),
        ("[1]", "a record is a JSON object"),
    ],
)
def test_refused_prompts(text: str, problem: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=problem.replace("[", r"\[")):
        read_prompts(tmp_path / "a.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data sets")
def test_public_sets():
    questions = read_prompts(DATA / "mt-bench" / "question.jsonl")
    assert (len(questions), {len(prompt.turns) for prompt in questions}) == (80, {2})
    assert len({prompt.category for prompt in questions}) == 8
    assert len(read_prompts(DATA / "arena-hard" / "question.jsonl")) == 500
