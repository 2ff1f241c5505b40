"""`gemwright filter` on the command line."""

import json
import sys
from pathlib import Path

import pytest

from gemwright.cli import main
from tests.data.filters.corpus import make_page, read_ids, write_lines

pytest.importorskip("phonenumbers")
pytest.importorskip("py3langid")
pytest.importorskip("sklearn")
GERMAN = (
    "Der Müller stand am Morgen früh auf und ging mit seinem Hund über die alte Brücke zum Markt, wo er das Brot und "
    "die Milch für die ganze Woche kaufte. Am Abend saß er mit seinen Freunden am Feuer und erzählte Geschichten."
)
ENGLISH = (
    "The miller rose early in the morning and walked with his dog over the old bridge to the market, where he bought "
    "the bread and the milk for the whole week. In the evening he sat with his friends by the fire and told stories."
)


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["gemwright", "filter", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_language_toxicity_and_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A classifier is trained and removes what it was trained to find; nothing of those texts is printed."""
    monkeypatch.chdir(tmp_path)
    labelled = [{"text": f"{make_page(n, 1)} {'grumble' if n % 2 else 'smile'}", "bad": n % 2} for n in range(100)]
    write_lines(Path("labelled.jsonl"), *labelled)
    assert run_command(["labelled.jsonl", "--train-classifier", "bad.npz", "--label", "bad=1"], monkeypatch) == 0
    assert "precision  1.000" in capsys.readouterr().out
    texts = (ENGLISH, GERMAN, f"{ENGLISH} grumble grumble grumble", f"{ENGLISH} And smile.")
    write_lines(Path("texts.jsonl"), *({"text": text, "id": number} for number, text in enumerate(texts)))
    command = ["texts.jsonl", "--out", "clean", "--steps", "language,toxicity,exact", "--language", "en"]
    command += ["--toxicity", "bad.npz=0.5"]
    assert run_command(command, monkeypatch) == 0
    printed = capsys.readouterr()
    assert "language  1 of 4 removed" in printed.out
    assert "toxicity  1 of 3 removed" in printed.out
    assert read_ids(Path("clean")) == [0, 3]
    assert "grumble" not in Path("clean/report.md").read_text() + Path("clean/report.json").read_text()
    assert run_command(command, monkeypatch) == 0
    assert "toxicity  1 of 3 removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["texts.jsonl"], "no folder for the results"),
        (["missing.jsonl", "--out", "x"], "does not exist"),
        (["texts.jsonl", "--out", "x", "--steps", "gopher"], "no step 'gopher'"),
        (["texts.jsonl", "--out", "x", "--steps", "language"], "need each other"),
        (["texts.jsonl", "--out", "x", "--language", "xx"], "no language 'xx'"),
        (["texts.jsonl", "--out", "x", "--toxicity", "texts.jsonl"], "is no classifier"),
        (["texts.jsonl", "--out", "x", "--toxicity", "a.npz=2"], "not a number from 0 to 1"),
        (["texts.jsonl", "--out", "x", "--decontaminate", "nowhere"], "does not exist"),
        (["texts.jsonl", "--out", "x", "--label", "bad"], "write a field and its values"),
        (["texts.jsonl", "--out", "texts.jsonl"], "holds no run"),
        (["texts.jsonl", "--train-classifier", "a.npz"], "add --label"),
        (["texts.jsonl", "--train-classifier", "a.txt", "--label", "a=1"], "must end with .npz"),
        (["texts.jsonl", "--train-classifier", "a.npz", "--label", "a=1"], "at least 10"),
    ],
)
def test_errors(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("texts.jsonl"), {"text": ENGLISH})
    assert run_command(words, monkeypatch) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert json.loads(Path("texts.jsonl").read_text()) == {"text": ENGLISH}
    assert not Path("x").exists()
