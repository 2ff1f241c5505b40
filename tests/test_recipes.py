"""Run the recipes with a tiny model, and test their measures."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemwright
from gemwright.generate.output import Completion
from gemwright.text.chat import GEMMA
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train
from tests.documents import ROOT
from tests.tiny.gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")
FOLDER = ROOT / "recipes"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template=GEMMA.template)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "measure", raising=False)


def run_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def reply(tokens: list[int], finish_reason: Any = "length") -> Completion:
    return Completion("", tokens, [], [], finish_reason, 1)


@pytest.mark.slow
def test_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--steps", 2, "--pictures", 12, "--test", 2)
    run_recipe("shapes.py", monkeypatch, "--out", tmp_path, *options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 2
    assert 0 <= results["after"]["mean intersection over union"] <= 1
    record = json.loads((tmp_path / "train" / "records.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "train" / record["image"]).exists()
    assert record["suffix"].count("<loc") == 4
    assert (tmp_path / "boxes.png").exists()


@pytest.mark.slow
def test_gsm8k(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    records = [{"question": f"the hen {'and ' * n}", "answer": f"in the.\n#### {n}"} for n in range(1, 13)]
    data = write(tmp_path / "train.jsonl", records)
    run_recipe(
        "gsm8k.py", monkeypatch, data, "--out", tmp_path / "out", "--model", tiny, "--minutes", 0.4, "--held-out", 3
    )
    parts = [(tmp_path / "out" / "data" / name).read_text().splitlines() for name in ("train.jsonl", "test.jsonl")]
    assert [len(part) for part in parts] == [9, 3]
    assert sorted(map(json.loads, [*parts[0], *parts[1]]), key=str) == sorted(records, key=str)
    results = json.loads((tmp_path / "out" / "run" / "results.json").read_text())
    name = "loss of the answers (nats per token)"
    assert results["steps"] == 2
    assert results["after"][name] < results["before"][name]
    assert f"{results['after'][name]:.4f}" in capsys.readouterr().out


def test_chat(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    rows = "".join(f'"the hen {"and " * n}","","in the {n}","open_qa"\n' for n in range(8))
    (tmp_path / "dolly.csv").write_text(f"instruction,context,response,category\n{rows}")
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": "the " * (n + 1)} for n in range(4)]
    long = [turns[0], turns[1], {"role": "user", "content": "x" * 2000}, turns[3]]
    talks = write(tmp_path / "talks.jsonl", [{"messages": turns}, {"messages": long}])
    arguments = (tmp_path / "dolly.csv", talks, "--out", tmp_path / "out", "--model", tiny, "--minutes", 0.4)
    run_recipe("chat.py", monkeypatch, *arguments, "--held-out", 2)
    training, test = (
        [json.loads(line)["messages"] for line in (tmp_path / "out" / "data" / name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    )
    assert len(test) == 2
    assert not {talk[0]["content"] for talk in test} & {talk[0]["content"] for talk in training}
    assert max(len(talk) for talk in training) == 4
    assert not any("x" * 2000 in str(talk) for talk in training)
    results = json.loads((tmp_path / "out" / "run" / "results.json").read_text())
    assert len(results["replies"]) == 2
    assert results["before"].keys() == results["after"].keys()
    assert "replies that end by themselves" in capsys.readouterr().out


@pytest.mark.slow
def test_preferences(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    talk = "\n\nHuman: the {0}\n\nAssistant: {1}"
    asked = ["hen " * n for n in range(1, 13)]
    records = [{"chosen": talk.format(q, "in the hat"), "rejected": talk.format(q, "x")} for q in asked]
    arguments = (write(tmp_path / "pairs.jsonl", records), "--out", tmp_path / "out", "--model", tiny)
    run_recipe("preferences.py", monkeypatch, *arguments, "--steps", 2, "--held-out", 4)
    written = capsys.readouterr().out
    for name in ("reward", "dpo"):
        results = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert results["pairs"] == 4
        assert results["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert results["before"]["chosen answer has the higher reward"][0] == 0.5
        assert results["after"]["loss"] < results["before"]["loss"]
        assert f"{results['after']['loss']:.4f}" in written


@pytest.mark.slow
def test_distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(random.choice(syllables, random.integers(1, 4))) for _ in range(500)]
    lines = [" ".join(random.choice(words, 40)) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    arguments = (tmp_path / "text.txt", "--out", tmp_path / "out", "--steps", 2, "--teacher-steps", 3, "--seeds", 0, 1)
    run_recipe("distill.py", monkeypatch, *arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tokens"] == 2 * 16 * 64
    assert {len(losses) for losses in results["losses"].values()} == {2}
    printed = capsys.readouterr().out
    assert f"{results['losses']['distilled'][1]:.4f}" in printed
    run_recipe("distill.py", monkeypatch, *arguments)
    assert "step 2/2" not in capsys.readouterr().out, "a finished run is not repeated"


def test_loss_of_answers_is_that_of_the_training(tiny: Path, tmp_path: Path):
    """The loss through inference equals the held-out loss before the first step."""
    records = [{"question": f"the hen {'and ' * n}", "answer": f"in the {n}."} for n in range(5)]
    data, steps = write(tmp_path / "data.jsonl", records), []
    train(prepare(tiny, data, tmp_path / "out", Recipe(steps=1, length=64, batch_size=2), held_out=data), steps.append)
    loss = runpy.run_path(str(FOLDER / "measure.py"))["answer_loss"](gemwright.load(tiny, dtype="float32"), data)
    assert steps[0].step == 0
    assert loss == pytest.approx(steps[0].held_out, rel=1e-5)


def test_final_number():
    final_number = runpy.run_path(str(FOLDER / "gsm8k.py"))["final_number"]
    texts = {"a\n#### 72": 72, "#### 1,050\n": 1050, "#### -3.5": -3.5, "#### 72 b": None, "72": None, "####": None}
    assert {text: final_number(text) for text in texts} == texts


def test_repeating():
    is_repeating = runpy.run_path(str(FOLDER / "measure.py"))["is_repeating"]
    assert is_repeating(reply([1, 2, 9, 7, 8, 7, 8, 7, 8]))
    assert is_repeating(reply([5, 5, 5]))
    assert not is_repeating(reply([7, 8, 7, 8, 7, 8], "stop"))
    assert not is_repeating(reply([7, 8, 7, 8, 1, 7, 8]))
    assert not is_repeating(reply([]))


def test_paragraphs_are_the_text():
    paragraphs = runpy.run_path(str(FOLDER / "recurrent.py"))["paragraphs"]
    text = "".join(f"{'word ' * (n % 9)}\n" for n in range(500)) + "end"
    parts = paragraphs(text, 200)
    assert "".join(parts) == text
    assert all(200 <= len(part) < 300 for part in parts[:-1])


def test_gaps_are_statements_inside_functions():
    from gemwright.text.tokenizer import Tokenizer
    from tests.tiny.vocabulary import make_vocabulary

    text = "def f(x):\n    first = x\n    if x:\n        return first + 100\n    other = 100  # é\n    return other\n"
    find_gaps = runpy.run_path(str(FOLDER / "pretrain.py"))["find_gaps"]
    gaps = find_gaps([{"path": "a.py", "text": f"import os\n\n\n{text}"}], Tokenizer(make_vocabulary()), 10)
    assert {gap.parts.middle for gap in gaps} == {"    if x:\n        return first + 100\n", "    other = 100  # é\n"}
    assert {"".join(gap.parts) for gap in gaps} == {text}


def test_a_trained_vocabulary_is_one_of_gemma(tmp_path: Path):
    from gemwright.data.infill import TOKENS
    from gemwright.text.tokenizer import Tokenizer
    from gemwright.text.vocabulary import Vocabulary

    nothing = runpy.run_path(str(FOLDER / "nothing.py"))
    text = "".join(f"def f{n}(x):\n    return x + {n * n} + value_{n % 7}\n" for n in range(400))
    file = nothing["train_vocabulary"]([text], 335, tmp_path / "tokenizer.model")
    vocabulary = Vocabulary.from_sentencepiece(file)
    assert vocabulary.pieces[:4] == ("<pad>", "<eos>", "<bos>", "<unk>")
    tokenizer = Tokenizer(vocabulary)
    for token in (TOKENS.prefix, TOKENS.middle, TOKENS.suffix, TOKENS.separator, "<start_of_turn>", "<end_of_turn>"):
        assert tokenizer.is_control(tokenizer.id_of(token))
    sample = "def f(x):\r\n\n\n        return 12345  # é😀 \u3000<|fim_prefix|>\t\t\n  "
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
    pieces = [tokenizer.pieces[token] for token in tokenizer.encode("12345        x\n\n")]
    assert [piece for piece in pieces if piece.isdigit()] == ["1", "2", "3", "4", "5"]
    assert "\u2581" * 8 in pieces
    assert "\n\n" in pieces


@pytest.mark.slow
def test_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run_recipe("grpo.py", monkeypatch, "--out", tmp_path, "--steps", 2, "--tuning", 2)
    files = [(tmp_path / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("test", "tuning", "practice")]
    assert len({*files[0], *files[1], *files[2]}) == sum(map(len, files))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 2
    assert [row["seed"] for row in results["rows"]] == [0, 1, 2]
    assert all(row["largest difference to the engine"] < 1e-4 for row in results["rows"])
    assert {"reward.png", "kl.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "reward, last 10 steps" in capsys.readouterr().out
