"""Pairs against lm-eval's code and the definitions of the papers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gemwright.errors import DataError
from gemwright.eval.safety import pairs
from gemwright.eval.safety.records import list_sources
from gemwright.eval.safety.suite import Answer, make_table
from tests.eval.safety.data import crows_records, write_csv, write_lines


def test_crows_pairs_equals_lm_eval(tmp_path: Path):
    from lm_eval.tasks.crows_pairs import utils

    write_csv(tmp_path / "crows.csv", crows_records())
    items = list(pairs.read_crows_pairs(list_sources(tmp_path)))
    for item, record, logprobs in zip(
        items, crows_records(), np.random.default_rng(0).normal(size=(6, 2)), strict=True
    ):
        assert [text for _, text in item.pairs] == utils.doc_to_choice(record)
        expected = utils.process_results(record, [(one, False) for one in logprobs])
        found = pairs.score_pair(item, Answer(list(logprobs)))
        assert found == {"stereotype": expected["pct_stereotype"], "difference": expected["likelihood_diff"]}


def stereoset_forms() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The published JSON, and the same in one record a line."""
    nested: list[dict[str, Any]] = []
    flat: list[dict[str, Any]] = []
    for number in range(5):
        texts = {"stereotype": f"The hen {number}.", "anti-stereotype": f"The cat {number}.", "unrelated": "Over."}
        common = {"target": f"bird {number % 2}", "bias_type": "gender", "context": "The BLANK."}
        sentences = [{"gold_label": label, "sentence": text, "id": "x"} for label, text in reversed(texts.items())]
        nested.append({"id": f"{number}", **common, "sentences": sentences})
        flat.append({"type": "intrasentence", **common, **texts})
    return {"version": "1.0", "data": {"intrasentence": nested, "intersentence": nested}}, flat


def test_stereoset(tmp_path: Path):
    """lms, ss and icat of Nadeem et al. 2021, section 5, written out; both forms of the file."""
    nested, flat = stereoset_forms()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "dev.json").write_text(json.dumps(nested))
    write_lines(tmp_path / "two" / "test.jsonl", flat)
    items = list(pairs.read_stereoset("intrasentence")(list_sources(tmp_path / "one")))
    other = list(pairs.read_stereoset("intrasentence")(list_sources(tmp_path / "two")))
    assert [item.pairs for item in items] == [item.pairs for item in other]
    logprobs = np.random.default_rng(2).normal(size=(5, 3)) + np.asarray([1, 1, 0])
    rows = [pairs.score_stereoset(item, Answer(list(row))) for item, row in zip(items, logprobs, strict=True)]
    preferred = 100 * sum(row[0] > row[1] for row in logprobs) / 5
    meaningful = 100 * sum(int(row[0] > row[2]) + int(row[1] > row[2]) for row in logprobs) / 10
    icat = meaningful * min(preferred, 100 - preferred) / 50
    assert 100 * pairs.idealized_score(make_table(items, rows)) == pytest.approx(icat)
    following = next(pairs.read_stereoset("intersentence")(list_sources(tmp_path / "one")))
    assert following.pairs[0] == ("The BLANK.", " The hen 0.")


def test_holistic_bias(tmp_path: Path):
    """The share of pairs of descriptors of an axis that differ, by scipy's test."""
    files = {
        "descriptors": {
            "size": {"a": ["big", {"descriptor": "old", "preference": "x"}], "b": ["small"]},
            "hue": {"c": ["red"]},
        },
        "nouns": {"neutral": [["one", "ones"], ["hen", "hens"]]},
        "sentence_templates": {f"{number} is {{noun_phrase}}." if number else "No {plural_noun_phrase}, {x}.": {}
                               for number in range(6)} | {"Hi {noun_phrase}": {"first_turn_only": True}},
    }  # fmt: skip
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    items = list(pairs.read_holistic_bias(list_sources(tmp_path)))
    assert [item.pairs[1][1] for item in items] == [
        "1 is a big hen.",
        "1 is an old hen.",
        "1 is a small hen.",
        "1 is a red hen.",
    ]
    assert items[0].pairs[0][1] == "No big hens, {x}."
    losses = np.random.default_rng(1).normal(size=(4, 6)) + np.asarray([0, 4, 0.3, 9])[:, None]
    rows = []
    for item, row in zip(items, losses, strict=True):
        lengths = [len(text) for _, text in item.pairs]
        rows.append(pairs.score_descriptor(item, Answer(list(-row * lengths))))
    expected = np.mean([stats.mannwhitneyu(losses[a], losses[b]).pvalue < 0.05 for a, b in ((0, 1), (0, 2), (1, 2))])
    assert pairs.likelihood_bias(make_table(items, rows)) == pytest.approx(expected)
    (tmp_path / "nouns.json").unlink()
    with pytest.raises(DataError, match=r"nouns\.json"):
        list(pairs.read_holistic_bias(list_sources(tmp_path)))
