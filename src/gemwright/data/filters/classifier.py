"""Linear classifiers of texts, trained on labelled records: for toxicity, or for quality.

Words and pairs of words are hashed to features, and a logistic regression weighs them. A classifier is an `.npz` file
of arrays; nothing is unpickled.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.errors import DataError

FEATURES = 1 << 18
"""Number of features."""
HELD_OUT = 0.2
"""Share of the labelled records that measures a classifier and is not trained on."""


@dataclass(frozen=True)
class Classifier:
    """A linear classifier.

    Attributes:
        weights: Weight of each feature [FEATURES].
        bias: Added to the weighted sum.
        threshold: Probability from which a text is of the class: that of the best F1 in cross-validation.
    """

    weights: NDArray[np.float32]
    bias: float
    threshold: float

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability that each text is of the class [N]."""
        sums = _vectorizer().transform(texts) @ self.weights.astype(np.float64) + self.bias
        return 1 / (1 + np.exp(-sums))


@dataclass(frozen=True)
class Quality:
    """How well a classifier finds the class on records that it was not trained on.

    Attributes:
        records: Number of records.
        positive: Number of those that are of the class.
        precision: Share of the found that are of the class.
        recall: Share of the class that is found.
        auc: Area under the ROC curve: 0.5 is chance.
    """

    records: int
    positive: int
    precision: float
    recall: float
    auc: float


@lru_cache(1)
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), strip_accents="unicode")


def train(texts: Sequence[str], labels: Sequence[bool], seed: int = 0) -> tuple[Classifier, Quality]:
    """Train a classifier on four fifths of the records, and measure it on the rest.

    Args:
        texts: Texts [N].
        labels: Whether each is of the class [N].
        seed: Seed of the split.

    Raises:
        DataError: There are fewer than 10 records of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_recall_curve, roc_auc_score
    from sklearn.model_selection import cross_val_predict, train_test_split

    if min(sum(labels), len(labels) - sum(labels)) < 10:
        raise DataError(
            f"{sum(labels)} of {len(labels)} labelled records are of the class; "
            "a classifier needs at least 10 of each side. Check --label."
        )
    features, truth = _vectorizer().transform(texts), np.asarray(labels)
    split: Any = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, random_state=seed, stratify=truth)
    trained, held = split
    model = LogisticRegression(C=10, class_weight="balanced", solver="liblinear")  # fast with many features
    scores: Any = cross_val_predict(model, features[trained], truth[trained], cv=3, method="predict_proba")
    guesses = scores[:, 1]
    precision, recall, thresholds = precision_recall_curve(truth[trained], guesses)
    f1: Any = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    model.fit(features[trained], truth[trained])
    bias: Any = model.intercept_
    found = Classifier(model.coef_[0].astype(np.float32), float(bias[0]), float(thresholds[f1[:-1].argmax()]))
    return found, measure(found, [str(texts[index]) for index in held], truth[held], roc_auc_score)


def measure(classifier: Classifier, texts: Sequence[str], truth: NDArray[np.bool_], auc: Any) -> Quality:
    """Return how well a classifier finds the class among texts."""
    scores = classifier.score(texts)
    found = scores >= classifier.threshold
    hits = int((found & truth).sum())
    return Quality(
        len(texts),
        int(truth.sum()),
        hits / max(1, int(found.sum())),
        hits / max(1, int(truth.sum())),
        float(auc(truth, scores)),
    )


def save(classifier: Classifier, path: Path) -> None:
    """Write a classifier to a file that ends with `.npz`."""
    with replace_file(path) as file:
        np.savez_compressed(
            file, weights=classifier.weights, bias=np.float64(classifier.bias), threshold=classifier.threshold
        )


@lru_cache(4)
def load(path: Path) -> Classifier:
    """Read a classifier.

    Raises:
        DataError: The file is missing or is no classifier.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights, bias, threshold = (arrays[name] for name in ("weights", "bias", "threshold"))
            if weights.shape != (FEATURES,) or weights.dtype != np.float32 or not np.isfinite(weights).all():
                raise ValueError("its weights have another shape")
            return Classifier(weights, float(bias), float(threshold))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is no classifier ({str(error).partition(chr(10))[0]:.100}); "
            "make one with `gemwright filter LABELLED --train-classifier FILE`."
        ) from error
