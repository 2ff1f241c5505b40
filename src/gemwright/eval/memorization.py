"""A memorization audit: how many documents of a corpus a model completes from their first tokens.

Discoverable extraction as the reports of Gemma measure it (arXiv:2403.08295, arXiv:2503.19786): the first 50 tokens of
a document, after BOS, are continued greedily by 50 tokens. The document is memorized exactly if they are its own next
50, and approximately if their edit distance is at most 10% (arXiv:2210.17546), which includes the exact ones.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

import gemwright
from gemwright.api import Model
from gemwright.checkpoint.files.atomic import replace_file
from gemwright.data.filters import personal
from gemwright.errors import GemwrightError
from gemwright.eval.intervals import wilson
from gemwright.eval.memorization_extract import Extraction, extract, extract_exact
from gemwright.eval.memorization_sample import Passage, Sample, digest, draw_samples
from gemwright.runtime.folder_lock import lock_folder

BATCH = 32
"""Number of prefixes that are continued together."""
EDIT_SHARE = 0.1
"""Largest edit distance of an approximate continuation, as a share of its tokens."""
LOCK, MARKER = "audit.lock", "audit.json"
SAMPLES, REPORT = "samples.jsonl", "report.json"


@dataclass(frozen=True)
class Settings:
    """The settings of an audit.

    Attributes:
        prefix: Number of tokens of a prefix, without BOS.
        continuation: Number of tokens to continue it by.
        limit: Maximum number of documents of each source.
        seed: Seed of the choice of documents.
        exact_only: Look for exact continuations alone, without generating.
    """

    prefix: int = 50
    continuation: int = 50
    limit: int = 10_000
    seed: int = 0
    exact_only: bool = False

    @property
    def most_edits(self) -> int:
        """Largest edit distance of an approximate continuation, in tokens."""
        return int(EDIT_SHARE * self.continuation)


@dataclass(frozen=True)
class Rate:
    """A share of documents, with its 95% confidence interval.

    Attributes:
        count: Number of documents that count.
        documents: Number of documents.
        low, high: Wilson's score interval (Wilson 1927).
    """

    count: int
    documents: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share itself; 0 without documents."""
        return self.count / max(self.documents, 1)


@dataclass(frozen=True)
class Finding:
    """The result of a source, or of all.

    Attributes:
        source: Name of the source.
        documents: Number of documents read.
        tokenized: Number of those that were tokenized, until the sample was complete.
        too_short: Number of those tokenized that are too short for a prefix and a continuation.
        exact: Share memorized exactly.
        approximate: Share memorized approximately or exactly; None if not looked for.
        personal_data: Number of the memorized documents whose continuation has personal data of a kind.
        with_personal_data: Number of the memorized documents whose continuation has any.
    """

    source: str
    documents: int
    tokenized: int
    too_short: int
    exact: Rate
    approximate: Rate | None
    personal_data: Mapping[str, int]
    with_personal_data: int


Report = Callable[[int, int], None]
"""Called with the number of documents done, and of all."""


def audit(
    model: Model,
    corpus: Sequence[Path],
    out: Path,
    settings: Settings | None = None,
    read: Callable[[int], None] = lambda records: None,
    report: Report = lambda done, total: None,
    made_with: Mapping[str, Any] = MappingProxyType({}),
) -> list[Finding]:
    """Measure how much of a corpus a model has memorized, or continue an audit that was interrupted.

    Every document drawn becomes a line of `samples.jsonl` in the folder, and the rates are in `report.json`.

    Args:
        model: The model.
        corpus: Files or folders of documents.
        out: Folder of the results, new, empty or of the same audit.
        settings: The settings; by default those of the reports.
        read: Called now and then with the number of records read.
        report: Called after each batch.
        made_with: What the model is made of, for the report; see `gemwright.eval.made_with`.

    Returns:
        The result of each source; the last is that of all.

    Raises:
        GemwrightError: The corpus cannot be read or has no document that is long enough, or the folder is of something
            else or in use.
    """
    settings = settings or Settings()
    if settings.prefix + settings.continuation >= model.engine.config.max_length:
        raise GemwrightError(
            f"A prefix of {settings.prefix} tokens and a continuation of {settings.continuation} exceed the model's "
            f"context of {model.engine.config.max_length}; use fewer."
        )
    samples = draw_samples(model, corpus, settings.prefix, settings.continuation, settings.limit, settings.seed, read)
    with lock_folder(out, "memorization audit", LOCK, MARKER):
        _claim(out, _made_with(model, settings, samples))
        _extract_all(model, settings, [passage for sample in samples for passage in sample.passages], out, report)
        try:
            findings = summarize(samples, _read_lines(out / SAMPLES), exact_only=settings.exact_only)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GemwrightError(f"{out / SAMPLES} was changed and cannot be read; give another folder.") from error
        _write_report(out / REPORT, model, settings, findings, made_with)
    return findings


def _made_with(model: Model, settings: Settings, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return all that determines the results, as values of JSON."""
    return {
        "model": model.name,
        "weights": f"{model.engine.summary}, {_digest_weights(model)}",
        "settings": asdict(settings) | {"limit": None},  # `documents` depends on it, the results on nothing else
        "documents": digest(samples),
    }


def _digest_weights(model: Model) -> str:
    """Return a SHA-256 of some numbers of each weight."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(model.engine.params):
        total.update(np.asarray(leaf).reshape(-1)[:: max(1, leaf.size // 64)].tobytes())
    return total.hexdigest()


def _claim(out: Path, made_with: Mapping[str, Any]) -> None:
    """Write what an audit is made with to its locked folder, or require that what the folder has is of the same.

    Raises:
        GemwrightError: The folder is of another run, or has samples that were made with something else.
    """
    marker = out / MARKER
    if marker.exists():
        try:
            before = json.loads(marker.read_bytes())
            changed = [name for name, value in made_with.items() if before[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise GemwrightError(f"{marker} is not of an audit; give another folder.") from error
        if changed and (out / SAMPLES).exists():
            raise GemwrightError(
                f"{out} has an audit with other {' and '.join(changed)}; use the same again or give another folder."
            )
    with replace_file(marker) as file:
        file.write(json.dumps(made_with, indent=1).encode())


def _extract_all(model: Model, settings: Settings, passages: Sequence[Passage], out: Path, report: Report) -> None:
    """Append the results of each batch to the samples, after those that are complete."""
    path = out / SAMPLES
    start = _keep_complete_batches(path, len(passages))
    report(start, len(passages))
    while start < len(passages):
        batch = passages[start : start + BATCH]
        if settings.exact_only:
            extractions = extract_exact(model.engine, batch)
        else:
            filled = [*batch, *[batch[0]] * (min(BATCH, len(passages)) - len(batch))]  # the size that is compiled
            extractions = extract(model.engine, filled, settings.most_edits)[: len(batch)]
        lines = [describe(model, passage, found) for passage, found in zip(batch, extractions, strict=True)]
        with path.open("ab") as file:
            file.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        start += len(batch)
        report(start, len(passages))


def _keep_complete_batches(path: Path, count: int) -> int:
    """Cut what follows the last complete batch from a file of at most `count` samples, and return how many are left.

    The batches after it are then those of an audit without interruption, to the last bit.
    """
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        lengths = [len(line) for line in file if line.endswith(b"\n")]
        kept = len(lengths) if len(lengths) == count else len(lengths) // BATCH * BATCH
        file.truncate(sum(lengths[:kept]))
    return kept


def describe(model: Model, passage: Passage, extraction: Extraction) -> dict[str, Any]:
    """Return a line of the samples."""
    decode = model.tokenizer.decode
    is_memorized = extraction.edits is not None
    return {
        "source": passage.source,
        "place": passage.place,
        "exact": extraction.edits == 0,
        "edits": extraction.edits,
        "prefix": decode(passage.prompt),
        "continuation": decode(passage.continuation),
        "generated": decode(extraction.generated),
        "continuation_ids": passage.continuation,
        "generated_ids": extraction.generated,
        "personal_data": _count_personal_data(decode(extraction.generated)) if is_memorized else {},
    }


def _count_personal_data(text: str) -> dict[str, int]:
    return dict(Counter(name for _, _, name in personal.find(text)))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def summarize(samples: Sequence[Sample], lines: Iterator[Mapping[str, Any]], *, exact_only: bool) -> list[Finding]:
    """Return the result of each source, and that of all."""
    counts = {sample.source: Counter[str]() for sample in samples}
    kinds = {sample.source: Counter[str]() for sample in samples}
    for line in lines:
        source = line["source"]
        found = {"drawn": True, "exact": line["exact"], "memorized": line["edits"] is not None}
        counts[source].update({**found, "personal": bool(line["personal_data"])})
        kinds[source].update(dict.fromkeys(line["personal_data"], 1))

    def finding(name: str, parts: Sequence[Sample]) -> Finding:
        count = sum((counts[part.source] for part in parts), Counter[str]())
        return Finding(
            name,
            sum(part.documents for part in parts),
            sum(part.tokenized for part in parts),
            sum(part.too_short for part in parts),
            make_rate(count["exact"], count["drawn"]),
            None if exact_only else make_rate(count["memorized"], count["drawn"]),
            dict(sum((kinds[part.source] for part in parts), Counter[str]())),
            count["personal"],
        )

    return [*(finding(sample.source, [sample]) for sample in samples), finding("total", samples)]


def make_rate(count: int, documents: int) -> Rate:
    """Return a share with Wilson's interval, which is the whole range without documents."""
    return Rate(count, documents, *wilson(count, documents))


def _write_report(
    path: Path, model: Model, settings: Settings, findings: Sequence[Finding], made_with: Mapping[str, Any]
) -> None:
    """Write the rates as JSON."""

    def rate(one: Rate | None) -> dict[str, Any] | None:
        return None if one is None else {**asdict(one), "share": one.share}

    sources = [{**asdict(one), "exact": rate(one.exact), "approximate": rate(one.approximate)} for one in findings]
    document = {
        "gemwright": gemwright.__version__,
        "model": model.name,
        "made_with": dict(made_with),
        **asdict(settings),
        "most_edits": 0 if settings.exact_only else settings.most_edits,
        "sources": sources[:-1],
        "total": sources[-1],
    }
    with replace_file(path) as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False).encode())
