"""recipes/classifier.py: its measures against scikit-learn's, and a run on a tiny model."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemwright
from gemwright.shield.policy import Policy
from gemwright.shield.prompt import encode_prompt
from tests.documents import ROOT
from tests.shield.conftest import write_policies

pytestmark = pytest.mark.usefixtures("quick_compilation")
POLICY = Policy("hen", {"input": "no hen"})


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.delitem(sys.modules, "measure", raising=False)
    return runpy.run_path(str(ROOT / "recipes" / "classifier.py"))


def test_area_is_that_of_scikit_learn(recipe: dict[str, Any]):
    from sklearn.metrics import roc_auc_score

    numbers = np.random.default_rng(0)
    for _ in range(20):
        labels, scores = numbers.integers(0, 2, 40), numbers.integers(0, 9, 40) / 8  # with ties
        assert recipe["area"](scores, labels.astype(bool)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    area, low, high = recipe["interval"](scores, labels.tolist())
    assert low < area < high


def test_records_ask_what_the_shield_asks(recipe: dict[str, Any], model: gemwright.Model):
    talk = recipe["make_talk"](POLICY, {"text": "the\nhen", "label": 1})["messages"]
    assert talk[1]["content"] == "Yes"
    assert model.encode_chat(talk[:1]) == encode_prompt(model, "no hen", "the\nhen")


@pytest.mark.slow
def test_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A tiny model learns the policy of its records, as the held-out records show."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    words = ["and", "the", "on", "in", "her"]
    records = [
        {"text": f"{words[n % 5]} {words[n // 5 % 5]} {'hen' if n % 2 else 'man'}", "label": n % 2} for n in range(60)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for name in ("data.jsonl", "other.jsonl"):
        (tmp_path / name).write_text(lines)
    policy = write_policies(tmp_path / "policy.toml", POLICY)
    options = {"policy": policy, "test": tmp_path / "other.jsonl", "out": tmp_path / "out", "model": folder}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    arguments = ["classifier.py", str(tmp_path / "data.jsonl"), *given, "--records", "30", "--held-out", "20"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "recipes" / "classifier.py"), run_name="__main__")
    results = json.loads((tmp_path / "out" / "run" / "results.json").read_text())
    assert results["training records"] == 30
    for name in ("before", "after", "bag of words"):
        assert results[name].keys() == {"held out", "other"}
    assert results["bag of words"]["other"][0] > 0.95
    printed = capsys.readouterr().out
    assert f"{results['after']['other'][0]:.3f}" in printed
    assert not any(record["text"] in printed for record in records)
