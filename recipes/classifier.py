"""Tune the base 270M to judge texts by one policy, and measure it beside a bag of words on the same records.

python recipes/classifier.py labeled.jsonl --policy policy.toml --test other.jsonl --out hate
gemwright serve --model gemma-3-1b-it --shield hate/run/adapter --policy policy.toml

Files have JSON lines with a `text` and a `label`, 1 if the text breaks the policy and 0 if not. The policy file has one
policy for inputs. A part of the first file is held out; other files say what the classifier does elsewhere. No text is
printed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray

import gemwright
from gemwright.shield.classifier import Shield
from gemwright.shield.policy import Policy, read_policies
from gemwright.shield.prompt import NO, YES, write_question
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train

RECIPE = Recipe(learning_rate=1e-3, length=512, batch_size=1)
RECORDS = 500
HELD_OUT = 300
SEED = 0
RESAMPLES = 1000
"""Number of resamples for the interval of an area under the curve."""

Records = Sequence[dict[str, Any]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Tune a classifier for a policy.")
    parser.add_argument("data", type=Path, help="JSON lines with text and label")
    parser.add_argument("--policy", type=Path, required=True, help="file with one policy")
    parser.add_argument("--test", type=Path, action="append", default=[], help="other records; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="gemma-3-270m", help="path, name or hub id")
    parser.add_argument("--records", type=int, default=RECORDS, help="number of records to learn from")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="number of records to measure on")
    options = parser.parse_args()
    (policy,) = read_policies(options.policy)
    run(options.model, policy, options.data, options.test, options.out, options.records, options.held_out)


def run(
    model: str, policy: Policy, data: Path, tests: list[Path], out: Path, count: int, held_out: int
) -> dict[str, Any]:
    """Tune a model on a number of records, and return the areas under the curve."""
    records = read(data)
    records = [records[index] for index in np.random.default_rng(SEED).permutation(len(records))]
    training = records[held_out : held_out + count]
    sets = {"held out": records[:held_out]} | {test.stem: read(test) for test in tests}
    file = measure.write_records(out / "data" / "train.jsonl", [make_talk(policy, record) for record in training])
    adapter = train(prepare(model, file, out / "run", RECIPE, held_out=0.0), measure.report)
    scorers = {
        "before": lambda texts: judge(Shield(gemwright.load(model), (policy,)), texts),
        "after": lambda texts: judge(Shield(gemwright.load(adapter), (policy,)), texts),
        "bag of words": lambda texts: count_words(training, texts),
    }
    texts = [record["text"] for part in sets.values() for record in part]
    results: dict[str, Any] = {"training records": len(training)}
    print(f"\n{'area under the curve':24}" + "".join(f"{f'{name} ({len(part)})':>28}" for name, part in sets.items()))
    for name, score in scorers.items():
        scores = iter(np.split(score(texts), np.cumsum([len(part) for part in sets.values()])))
        results[name] = {each: interval(next(scores), [r["label"] for r in part]) for each, part in sets.items()}
        cells = [f"{area:.3f} ({low:.3f} to {high:.3f})" for area, low, high in results[name].values()]
        print(f"{name:24}" + "".join(f"{cell:>28}" for cell in cells), flush=True)
    (out / "run" / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def read(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def make_talk(policy: Policy, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a conversation: the question of the shield, and the answer to learn."""
    question = write_question(policy.guidelines["input"], record["text"])
    answer = YES if record["label"] else NO
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def judge(shield: Shield, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability that each text breaks the policy."""
    return np.array([max(shield.score(text).values()) for text in texts])


def count_words(training: Records, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the probabilities of a logistic regression over counts of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
    classifier.fit([record["text"] for record in training], [record["label"] for record in training])
    return classifier.predict_proba(list(texts))[:, 1]


def interval(scores: NDArray[np.float64], labels: Sequence[int]) -> tuple[float, float, float]:
    """Return the area under the ROC curve, with the 95% interval over resampled records."""
    numbers, found = np.random.default_rng(SEED), list[float]()
    given = np.asarray(labels, bool)
    while len(found) < RESAMPLES:
        drawn = numbers.integers(0, len(given), len(given))
        if 0 < given[drawn].sum() < len(given):
            found.append(area(scores[drawn], given[drawn]))
    low, high = np.quantile(found, (0.025, 0.975))
    return area(scores, given), float(low), float(high)


def area(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Return the probability that a text that breaks the policy scores higher than one that does not."""
    from scipy.stats import rankdata

    positive = int(labels.sum())
    rank = float(rankdata(scores)[labels].sum())
    return (rank - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


if __name__ == "__main__":
    main()
