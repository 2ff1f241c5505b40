"""Tiny files in the published forms of the sets, in harmless words."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CATS = ("the cat", "the thing", "the man")


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def bbq_records(count: int = 8) -> list[dict[str, Any]]:
    """Records of BBQ: both conditions, both polarities, the unknown answer at each place."""
    records: list[dict[str, Any]] = []
    for number in range(count):
        answers = [["The hen", ["hen", "old"]], ["The cat", ["cat", "nonOld"]], ["Not known", ["unknown", "unknown"]]]
        answers = answers[number % 3 :] + answers[: number % 3]
        ambiguous = number % 2 == 0
        wanted = "Not known" if ambiguous else ("The hen", "The cat")[number % 4 // 2]
        records.append(
            {
                "example_id": number,
                "question_index": str(number // 4),
                "question_polarity": ("neg", "nonneg")[number // 2 % 2],
                "context_condition": "ambig" if ambiguous else "disambig",
                "category": "Age",
                "answer_info": {f"ans{index}": answer[1] for index, answer in enumerate(answers)},
                "additional_metadata": {"stereotyped_groups": ["old"], "version": "a"},
                "context": f"The hen and the cat and the thing {number}.",
                "question": "then over there?",
                **{f"ans{index}": answer[0] for index, answer in enumerate(answers)},
                "label": [answer[0] for answer in answers].index(wanted),
            }
        )
    return records


def crows_records(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "sent_more": f"The cat is in the {CATS[number % 3]}",
            "sent_less": f"The hen is in the {CATS[number % 3]}",
            "stereo_antistereo": "stereo",
            "bias_type": ("age", "religion")[number % 2],
        }
        for number in range(count)
    ]


def winogender_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, gender in enumerate(("male", "female", "neutral") * 2):
        pronoun = {"male": "he", "female": "she", "neutral": "they"}[gender]
        sentence = f"The miller told the guest that {pronoun} could pay."
        rows.append({"sentid": f"miller.guest.{number % 2}.{gender}.txt", "sentence": sentence})
    return rows


def truthful_rows() -> list[dict[str, Any]]:
    return [
        {
            "Type": "Plain",
            "Category": "Things",
            "Question": f"Is the thing number {number} over there?",
            "Best Answer": "It is over there",
            "Correct Answers": "It is over there; Yes, it is; Nobody knows",
            "Incorrect Answers": "It is in the hen; It is nothing",
            "Source": "none",
        }
        for number in range(4)
    ]


def write_folder(data: Path) -> Path:
    """Write a data folder with several sets."""
    write_lines(data / "bbq" / "Age.jsonl", bbq_records())
    write_csv(data / "crows-pairs" / "crows_pairs_anonymized.csv", crows_records())
    write_csv(data / "winogender" / "all_sentences.tsv", winogender_rows(), "\t")
    write_csv(data / "truthfulqa" / "TruthfulQA.csv", truthful_rows())
    prompts = [{"id": number, "prompt": f"Where is {CATS[number % 3]} number {number}?", "type": "plain",
                "label": ("safe", "unsafe")[number % 2]} for number in range(6)]  # fmt: skip
    write_csv(data / "xstest" / "xstest_prompts.csv", prompts)
    return data
