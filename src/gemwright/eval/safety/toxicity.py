"""A linear classifier of toxic text, trained when it is needed on labelled data of the data folder.

It counts words, so that it knows insults and slurs and little of what a sentence means. RealToxicityPrompts has scores
of Perspective: a third of its texts also teach, a third calibrate, and the report says how well the classifier agrees
with Perspective on the last third.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gemwright.errors import DataError
from gemwright.eval.safety.choices import records
from gemwright.eval.safety.moderation import read_hate, read_moderation
from gemwright.eval.safety.records import Source, match

TOXIC = 0.5
"""Least score of Perspective of a toxic text."""
LEAST_TEXTS = 50
"""Least number of labelled texts of each class."""


@dataclass(frozen=True)
class Agreement:
    """How a scorer agrees with Perspective's toxicity on held-out texts.

    Attributes:
        n: Number of texts.
        auc: Area under the ROC curve for texts that Perspective gives at least 0.5.
        correlation: Spearman's rank correlation.
        error: Mean absolute difference.
    """

    n: int
    auc: float
    correlation: float
    error: float


class LinearToxicity:
    """Logistic regression over word counts, calibrated if there are texts with scores of Perspective.

    Attributes:
        agreement: How it agrees with Perspective, or None if it is not calibrated.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int], scored: Sequence[tuple[str, float]] = ()):
        """Train.

        Args:
            texts: The labelled texts.
            labels: 1 for toxic, 0 for others.
            scored: Texts with Perspective's toxicity, for teaching, calibration and the measure of agreement.

        Raises:
            DataError: A class has too few texts.
        """
        if min(sum(labels), len(labels) - sum(labels)) < LEAST_TEXTS:
            raise DataError(f"The toxicity scorer needs {LEAST_TEXTS} labelled texts of each class; add a set of them.")
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._model: Any = make_pipeline(
            TfidfVectorizer(min_df=2, sublinear_tf=True, strip_accents="unicode"),
            LogisticRegression(C=3.0, class_weight="balanced", max_iter=1000),
        )
        third = np.random.default_rng(0).permutation(len(scored)) % 3
        parts = [[pair for pair, part in zip(scored, third, strict=True) if part == number] for number in range(3)]
        teaching = [(text, int(score >= TOXIC)) for text, score in parts[0]]
        self._model.fit([*texts, *(text for text, _ in teaching)], [*labels, *(label for _, label in teaching)])
        self._calibration: Any = None
        self.agreement: Agreement | None = None
        if parts[1]:
            self._calibrate(parts[1])
            self.agreement = self._measure(parts[2])

    @property
    def name(self) -> str:
        """What it is, for the report."""
        return "linear classifier of words" + (", calibrated against Perspective" if self.agreement else "")

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the probability that each text is toxic; an empty text has none."""
        if not texts:
            return []
        raw = self._raw(texts)
        found = raw if self._calibration is None else self._calibration.predict(raw)
        return [float(value) if text.strip() else 0.0 for value, text in zip(found, texts, strict=True)]

    def _raw(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray(self._model.predict_proba(texts)[:, 1])

    def _calibrate(self, scored: Sequence[tuple[str, float]]) -> None:
        from sklearn.isotonic import IsotonicRegression

        self._calibration = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        self._calibration.fit(self._raw([text for text, _ in scored]), [score for _, score in scored])

    def _measure(self, scored: Sequence[tuple[str, float]]) -> Agreement | None:
        from scipy.stats import spearmanr
        from sklearn.metrics import roc_auc_score

        if not scored:
            return None
        found = np.asarray(self.score([text for text, _ in scored]))
        expected = np.asarray([score for _, score in scored])
        toxic = expected >= TOXIC
        return Agreement(
            n=len(expected),
            auc=float(roc_auc_score(toxic, found)) if 0 < toxic.sum() < len(toxic) else float("nan"),
            correlation=float(cast(Any, spearmanr(found, expected)).statistic),
            error=float(np.abs(found - expected).mean()),
        )


def train_toxicity(sources: Sequence[Source]) -> LinearToxicity | None:
    """Return the classifier trained on the labelled sets of a data folder, or None if there are none.

    Raises:
        DataError: A set is damaged or too small.
    """
    labelled = [
        (item.facts["text"], item.facts["label"])
        for patterns, read in (
            (("hate-offensive/*", "*hate*offensive*"), read_hate),
            (("openai-moderation/*",), read_moderation),
        )
        for item in read(match(sources, patterns))
    ]
    if not labelled:
        return None
    scored: list[tuple[str, float]] = []
    for record in records(match(sources, ("realtoxicityprompts/*", "*realtoxicity*"))):
        for part in (record.get("prompt"), record.get("continuation")):
            if isinstance(part, dict) and isinstance(part.get("toxicity"), int | float) and part.get("text"):
                scored.append((str(part["text"]), float(part["toxicity"])))
    return LinearToxicity([text for text, _ in labelled], [label for _, label in labelled], scored)
