"""Run the suites whose files a folder has, suite by suite, so that an interrupted run is continued."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from gemwright.errors import DataError, GemwrightError
from gemwright.eval.safety.answers import EvaluatedModel, ask, fits
from gemwright.eval.safety.records import Source, list_sources, match
from gemwright.eval.safety.report import Finding, GroupFinding, SafetyReport, SuiteReport
from gemwright.eval.safety.suite import Answer, Item, ReplyScorer, Scorers, Suite, TextScorer, Values, make_table
from gemwright.eval.safety.suites import SUITES
from gemwright.eval.safety.toxicity import LinearToxicity, train_toxicity

SAMPLES = "samples"
"""Folder of the samples in the folder of results."""
MAX_GROUPS = 20
"""Number of groups up to which a suite reports them apart."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a suite, the number of its items that are done, and their number."""


def run_safety(
    model: EvaluatedModel,
    data: Path,
    out: Path,
    *,
    suites: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    toxicity: TextScorer | None = None,
    scorer: ReplyScorer | None = None,
    progress: Progress = lambda suite, done, total: None,
) -> SafetyReport:
    """Run suites on a model, and keep the answers in a folder, from which a second run continues.

    Args:
        model: A `gemwright.eval.harness.HarnessModel`.
        data: The folder of the sets; a suite without a file there is not run, and the report says so.
        out: The folder of the results.
        suites: Names of suites; all by default.
        limit: Maximum number of items of a suite, drawn by the seed.
        seed: Seed of the items and of drawn replies.
        toxicity: Scores toxic replies; by default a linear classifier trained on labelled sets in `data`.
        scorer: Scores harmful replies, beside the words of refusals.
        progress: Called on the way.

    Raises:
        GemwrightError: A name is unknown, a file is damaged, `limit` is not positive, or `out` has other files of the
            same name.
    """
    chosen = _choose(suites)
    if limit is not None and limit < 1:
        raise GemwrightError(f"The limit is {limit}; it is at least 1.")
    sources = list_sources(data)
    identity = _identify(model)
    scorers = Scorers(toxicity, scorer)
    reports: list[SuiteReport] = []
    missing: dict[str, str] = {}
    for suite in chosen:
        found = match(sources, suite.patterns)
        if not found:
            missing[suite.name] = f"no file {suite.patterns[0]}"
            continue
        if suite.needs_toxicity and scorers.toxicity is None:
            progress("training the scorer of toxicity", 0, 1)
            scorers = Scorers(train_toxicity(sources), scorer)
            if scorers.toxicity is None:
                missing[suite.name] = "no labelled texts for a scorer of toxicity"
                continue
        try:
            report = _run_suite(model, suite, found, out, limit, seed, scorers, identity, progress)
        except DataError as error:
            missing[suite.name] = str(error)
            continue
        if report is None:
            missing[suite.name] = f"no items in {found[0].name}"
        else:
            reports.append(report)
    if not reports:
        reason = next(iter(missing.values()), "nothing was asked for")
        raise GemwrightError(f"No safety suite could run on {data}: {reason}.")
    return SafetyReport(
        model=model.model.name,
        chat=model.model.tuned,
        limit=limit,
        seed=seed,
        suites=tuple(reports),
        missing=missing,
        scorers=_describe(scorers),
    )


def _choose(names: Sequence[str]) -> list[Suite]:
    for name in names:
        if name not in SUITES:
            raise GemwrightError(f"There is no safety suite {name!r}; choose among {', '.join(SUITES)}.")
    return [SUITES[name] for name in names] or list(SUITES.values())


def _identify(model: EvaluatedModel) -> str:
    """Return what changes when other weights are given under the same name: the likelihood of a sentence."""
    request = Instance("loglikelihood", {}, ("The sea is calm tonight,", " and the tide is full."), 0)
    ((logprob, _),) = model.loglikelihood([request], disable_tqdm=True)
    return f"{model.model.name} {model.model.engine.summary} {logprob:.2f}"


def _describe(scorers: Scorers) -> dict[str, Any]:
    described: dict[str, Any] = {"refusals": "words of refusals"}
    if scorers.toxicity:
        described["toxicity"] = scorers.toxicity.name
        agreement = scorers.toxicity.agreement if isinstance(scorers.toxicity, LinearToxicity) else None
        if agreement:
            described["agreement with Perspective"] = {
                "held-out texts": agreement.n,
                "ROC AUC": round(agreement.auc, 3),
                "Spearman": round(agreement.correlation, 3),
                "mean absolute difference": round(agreement.error, 3),
            }
    if scorers.replies:
        described["harmful replies"] = scorers.replies.name
    return described


def _run_suite(
    model: EvaluatedModel,
    suite: Suite,
    sources: Sequence[Source],
    out: Path,
    limit: int | None,
    seed: int,
    scorers: Scorers,
    identity: str,
    progress: Progress,
) -> SuiteReport | None:
    everything, skipped = _read_items(suite, sources)
    items = everything
    if limit is not None and limit < len(everything):
        chosen = random.Random(f"{seed} {suite.name}").sample(range(len(everything)), limit)
        items = [everything[index] for index in sorted(chosen)]
    fitting = [item for item in items if fits(model, suite, item)]
    if not fitting:
        return None
    digest = _digest(fitting)
    key = {"suite": suite.name, "model": identity, "items": digest, "seed": seed, "tokens": suite.tokens}
    file = out / SAMPLES / f"{suite.name}.jsonl"
    progress(suite.name, 0, len(fitting))
    answers = _read_answers(file, key)
    if answers is None:
        answers = ask(model, suite, fitting, seed, lambda done: progress(suite.name, done, len(fitting)))
    values = suite.score(fitting, answers, scorers)
    _write_samples(file, key, fitting, answers, values)
    progress(suite.name, len(fitting), len(fitting))
    counts = len(everything), len(items) - len(fitting)
    return _summarize(suite, fitting, values, counts, skipped, digest)


def _read_items(suite: Suite, sources: Sequence[Source]) -> tuple[list[Item], list[str]]:
    """Return the items of a suite, and the files that are not in its form if others are.

    Raises:
        DataError: No file is in its form; the message says what the first one lacks.
    """
    try:
        return _read(suite, sources), []
    except DataError as error:
        skipped: list[str] = []
        for source in sources:
            try:
                _read(suite, [source])
            except DataError:
                skipped.append(source.name)
        rest = [source for source in sources if source.name not in skipped]
        if not rest:
            raise error from None
        return _read(suite, rest), skipped


def _read(suite: Suite, sources: Sequence[Source]) -> list[Item]:
    """Return the items of files; whatever is wrong with a file of somebody else is an error of data."""
    try:
        items = list(suite.read(sources))
        for item in items:
            json.dumps([item.pairs, item.prompt], ensure_ascii=False).encode()
        return items
    except DataError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise DataError(f"{sources[0].name} is not in the published form of {suite.name}; correct the file.") from None


def _digest(items: Sequence[Item]) -> str:
    """Return a hash of what is asked, by which two reports know that they asked the same."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.pairs, item.prompt], ensure_ascii=False).encode(errors="replace"))
    return digest.hexdigest()[:16]


def _read_answers(file: Path, key: dict[str, Any]) -> list[Answer] | None:
    """Return the answers of an earlier run with the same key, or None.

    Raises:
        GemwrightError: The file is not one of ours.
    """
    if not file.exists():
        return None
    try:
        first, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if first["suite"] != key["suite"]:
            raise KeyError
        return [Answer(row["logprobs"], row["replies"]) for row in rows] if first == key else None
    except (OSError, ValueError, KeyError, TypeError):
        raise GemwrightError(f"{file} is no file of samples; remove it or choose another folder.") from None


def _write_samples(
    file: Path, key: dict[str, Any], items: Sequence[Item], answers: Sequence[Answer], values: Sequence[Values]
) -> None:
    """Write the answers and values of a suite, beside the old file first, so that a file is always whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": item.id,
            "group": item.group,
            "values": {name: (value if value == value else None) for name, value in row.items()},
            "logprobs": list(answer.logprobs),
            "replies": list(answer.replies),
        }
        for item, answer, row in zip(items, answers, values, strict=True)
    ]
    beside = file.with_suffix(".part")
    beside.write_text("".join(json.dumps(row) + "\n" for row in [key, *rows]), encoding="utf-8")
    beside.replace(file)


def _summarize(
    suite: Suite,
    items: Sequence[Item],
    values: Sequence[Values],
    counts: tuple[int, int],
    skipped: Sequence[str],
    digest: str,
) -> SuiteReport | None:
    table = make_table(items, values)
    findings: list[Finding] = []
    for metric in suite.metrics:
        if found := metric.estimate(table):
            value, (low, high), n = found
            findings.append(Finding(metric.name, value, low, high, n, metric.better, metric.ideal, metric.percent))
    if not findings:
        return None
    metric = next(metric for metric in suite.metrics if metric.name == findings[0].metric)
    names = sorted({item.group for item in items} - {""})
    groups: list[GroupFinding] = []
    if 1 < len(names) <= MAX_GROUPS:
        for name in names:
            part = table.take(table.groups == name)
            # A group is shown without a bootstrap: its value and size.
            if not any(column not in part.columns for column in metric.needs):
                value = metric.compute(part)
                if value == value:
                    groups.append(GroupFinding(name, value, len(part.groups)))
    return SuiteReport(
        name=suite.name,
        area=suite.area,
        findings=tuple(findings),
        groups=tuple(groups),
        items=len(items),
        available=counts[0],
        left_out=counts[1],
        skipped=tuple(skipped),
        digest=digest,
        cannot_say=suite.cannot_say,
        published=dict(suite.published),
        protocol=suite.protocol,
    )
