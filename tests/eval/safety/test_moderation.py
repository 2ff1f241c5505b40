"""Moderation metrics against definitions written out, and the toxicity classifier against scikit-learn."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from gemwright.errors import DataError
from gemwright.eval.safety import moderation
from gemwright.eval.safety.records import list_sources
from gemwright.eval.safety.suite import Answer, Item, make_table
from gemwright.eval.safety.toxicity import LinearToxicity, train_toxicity
from tests.eval.safety.data import write_csv, write_lines


def test_yes_is_a_softmax_of_two():
    item = Item("0", facts={"label": 1})
    for logprobs in ([-1.0, -3.0], [-900.0, -5.0], [-2.5, -2.5]):
        found = moderation.score_yes(item, Answer(logprobs))
        assert found["yes"] == pytest.approx(softmax(logprobs)[0], abs=1e-12)


def test_metrics_by_definition():
    random = np.random.default_rng(0)
    labels = random.random(60) < 0.3
    scores = np.round(random.random(60) + 0.3 * labels, 1)  # with ties
    items = [Item(str(index)) for index in range(60)]
    table = make_table(items, [{"yes": s, "label": float(y)} for s, y in zip(scores, labels, strict=True)])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert moderation.roc_auc(table) == pytest.approx(np.mean(pairs))
    area, best, before = 0.0, 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        recall = (flagged & labels).sum() / labels.sum()
        precision = (flagged & labels).sum() / flagged.sum()
        area, before = area + (recall - before) * precision, recall
        best = max(best, 2 * precision * recall / (precision + recall) if recall else 0)
    assert moderation.average_precision(table) == pytest.approx(area)
    assert moderation.optimal_f1(table) == pytest.approx(best)


def test_forms_of_labels(tmp_path: Path):
    (tmp_path / "a").mkdir()
    lines = [{"prompt": "a hen", "S": 0, "H": 0}, {"prompt": "a cat", "S": 0, "V2": 1}]
    with gzip.open(tmp_path / "a" / "samples.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    assert [item.facts["label"] for item in moderation.read_moderation(list_sources(tmp_path / "a"))] == [0, 1]
    write_csv(tmp_path / "b" / "labeled.csv", [{"class": number, "tweet": "a hen"} for number in (0, 1, 2)])
    assert [item.facts["label"] for item in moderation.read_hate(list_sources(tmp_path / "b"))] == [1, 1, 0]
    rows = [{"user_input": "a hen", "toxicity": 1, "jailbreaking": 0}, {"text": "a cat", "toxicity_human": 3.0},
            {"test_case": "a dog", "label_gold": "non-hateful"}, {"text": "a cow", "toxicity": 0.7}]  # fmt: skip
    write_lines(tmp_path / "c" / "all.jsonl", rows)
    assert [item.facts["label"] for item in moderation.read_flagged(list_sources(tmp_path / "c"))] == [1, 0, 0, 1]
    write_lines(tmp_path / "d" / "all.jsonl", [{"prompt": "a hen"}])
    with pytest.raises(DataError, match="needs the labels"):
        list(moderation.read_moderation(list_sources(tmp_path / "d")))


def synthetic(count: int, seed: int) -> list[tuple[str, int, float]]:
    """Texts of two topics with a label and a score that follows the share of one topic."""
    random = np.random.default_rng(seed)
    texts: list[tuple[str, int, float]] = []
    for _ in range(count):
        share = random.random()
        words = [
            ("storm gale thunder" if random.random() < share else "calm sun breeze").split()[k % 3] for k in range(9)
        ]
        texts.append((" ".join(words), int(share > 0.5), float(np.clip(share + random.normal() * 0.05, 0, 1))))
    return texts


def test_toxicity_classifier(tmp_path: Path):
    """It learns the labels, and its agreement is what scikit-learn finds for the held-out third."""
    rows = synthetic(300, 0)
    write_csv(tmp_path / "hate-offensive" / "x.csv", [{"class": 2 - 2 * label, "tweet": t} for t, label, _ in rows])
    scored = synthetic(400, 1)
    records = [{"prompt": {"text": t, "toxicity": s}, "challenging": False} for t, _, s in scored]
    write_lines(tmp_path / "realtoxicityprompts" / "x.jsonl", records)
    classifier = train_toxicity(list_sources(tmp_path))
    assert classifier is not None
    assert classifier.agreement is not None
    held_out = np.random.default_rng(0).permutation(400) % 3 == 2
    target = np.asarray([s for _, _, s in scored])[held_out]
    found = np.asarray(classifier.score([t for t, _, _ in scored]))[held_out]
    assert classifier.agreement.n == held_out.sum()
    assert classifier.agreement.auc == pytest.approx(roc_auc_score(target >= 0.5, found))
    assert classifier.agreement.auc > 0.9
    assert classifier.agreement.error == pytest.approx(np.abs(found - target).mean())
    assert classifier.agreement.error < 0.15  # calibrated: 9 words with a share of p vary by 0.17 at most
    assert classifier.score(["", "calm sun"])[0] == 0


def test_without_labels_there_is_no_classifier(tmp_path: Path):
    assert train_toxicity(list_sources(tmp_path)) is None
    with pytest.raises(DataError, match="labelled texts of each class"):
        LinearToxicity(["a", "b"], [0, 1])
