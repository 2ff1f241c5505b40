"""Classifiers against scikit-learn's own pipeline, and files that are none."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from gemwright.data.filters import classifier
from gemwright.errors import DataError
from tests.data.filters.corpus import make_page

pytest.importorskip("sklearn")


def make_labelled(count: int) -> tuple[list[str], list[bool]]:
    """Return texts of which every third has one of a few words more often than others."""
    labels = [number % 3 == 0 for number in range(count)]
    texts = [f"{make_page(n, 2)} {'bitter sour' if labels[n] or n % 7 == 1 else 'sweet'}" for n in range(count)]
    return texts, labels


@pytest.fixture(scope="module")
def trained() -> tuple[classifier.Classifier, classifier.Quality]:
    return classifier.train(*make_labelled(300))


def test_scores_and_quality_are_those_of_scikit_learn(trained: tuple[classifier.Classifier, classifier.Quality]):
    """Probabilities within 1e-6 (the weights are stored in float32), precision and recall exactly."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_score, recall_score, roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline

    texts, labels = make_labelled(300)
    parts = train_test_split(texts, labels, test_size=0.2, random_state=0, stratify=labels)
    vectorizer = HashingVectorizer(n_features=1 << 18, ngram_range=(1, 2), strip_accents="unicode")
    pipeline = make_pipeline(vectorizer, LogisticRegression(C=10, class_weight="balanced", solver="liblinear"))
    pipeline.fit(parts[0], parts[2])
    expected = pipeline.predict_proba(parts[1])[:, 1]
    found, quality = trained
    np.testing.assert_allclose(found.score(parts[1]), expected, atol=1e-6)
    guesses = expected >= found.threshold
    assert quality.precision == precision_score(parts[3], guesses)
    assert quality.recall == recall_score(parts[3], guesses)
    assert quality.auc == pytest.approx(roc_auc_score(parts[3], expected))
    assert (quality.records, quality.positive) == (60, sum(parts[3]))


def test_saved_classifiers_are_equal(trained: tuple[classifier.Classifier, classifier.Quality], tmp_path: Path):
    classifier.save(trained[0], tmp_path / "a.npz")
    read = classifier.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.weights, trained[0].weights)
    assert (read.bias, read.threshold) == (trained[0].bias, trained[0].threshold)


class Trap:
    """A pickle that fails the test if it is read."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_other_files_are_refused(tmp_path: Path):
    arrays = io.BytesIO()
    np.savez(arrays, weights=np.array([Trap()], object), bias=0.0, threshold=0.5)
    short = io.BytesIO()
    np.savez(short, weights=np.zeros(3, np.float32), bias=0.0, threshold=0.5)
    files = (b"", b"PK\x03\x04", b"text", pickle.dumps(Trap()), arrays.getvalue(), short.getvalue())
    for number, content in enumerate(files):
        (tmp_path / f"{number}.npz").write_bytes(content)
        with pytest.raises(DataError, match="is no classifier"):
            classifier.load(tmp_path / f"{number}.npz")
    with pytest.raises(DataError, match="is no classifier"):
        classifier.load(tmp_path / "missing.npz")


def test_few_labels_are_refused():
    with pytest.raises(DataError, match="at least 10"):
        classifier.train(["a"] * 30, [True] * 5 + [False] * 25)
