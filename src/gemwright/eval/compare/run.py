"""A comparison from prompts to a report, in a folder in which it can be continued.

answers.jsonl and judgements.jsonl have what was made; report.md, report.json and plots are written from them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.eval.compare import plots, report
from gemwright.eval.compare.answers import Load, Progress, collect_answers
from gemwright.eval.compare.candidates import Candidate
from gemwright.eval.compare.judge import Judge, judge_pairs
from gemwright.eval.compare.page import PERSON, PageServer, Session
from gemwright.eval.compare.pairs import Pair, find_outcome, make_pairs
from gemwright.eval.compare.prompts import read_prompts
from gemwright.eval.compare.results import Results, summarize
from gemwright.eval.store import Records
from gemwright.runtime.folder_lock import lock_folder

LOCK = "comparison.lock"
"""A file of every folder of a comparison, locked by the process that writes to it."""
WAIT_SECONDS = 0.5
"""Time between two looks at whether a person has judged all pairs; Ctrl-C ends it at once."""


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        candidates: What is compared.
        prompts: File of the prompts.
        out: Folder of the results.
        judge: The model that judges; None for a person.
        max_tokens: Maximum number of tokens of an answer.
        limit: Number of prompts, the first of the file; None for all.
    """

    candidates: Sequence[Candidate]
    prompts: Path
    out: Path
    judge: Judge | None = None
    max_tokens: int = 512
    limit: int | None = None


def compare(plan: Plan, load: Load, progress: Progress, announce: Callable[[str], None]) -> Results:
    """Run a comparison to its end and write the report; what an earlier run made is used again.

    If it is interrupted while it judges, the report has what was judged.

    Args:
        plan: The comparison.
        load: Loads a model of this package by its name and data type.
        progress: Called with what is made, how many are done, and how many there are.
        announce: Called with the address of the page for the person who judges.

    Raises:
        GemwrightError: The prompts, a model, an endpoint or the folder cannot be used.
    """
    prompts = read_prompts(plan.prompts, plan.limit)
    labels = [candidate.label for candidate in plan.candidates]
    with lock_folder(plan.out, "comparison", LOCK, LOCK), Records(plan.out / "judgements.jsonl") as judgements:
        with Records(plan.out / "answers.jsonl") as kept:
            answers = collect_answers(prompts, plan.candidates, plan.max_tokens, kept, load, progress)
        pairs = make_pairs(prompts, labels, answers)

        def write_report() -> Results:
            by_person = [find_outcome(pair, PERSON, judgements.by_key) for pair in pairs]
            if plan.judge is None:
                results = summarize(prompts, labels, answers, by_person)
            else:
                judge = plan.judge.identity
                outcomes = [find_outcome(pair, judge, judgements.by_key) for pair in pairs]
                results = summarize(prompts, labels, answers, outcomes, by_person)
            _write(plan, results)
            return results

        try:
            if plan.judge is None:
                _ask_person(pairs, judgements, progress, announce)
            else:
                judge_pairs(plan.judge, pairs, judgements, progress)
        except BaseException:
            write_report()
            raise
        return write_report()


def _ask_person(
    pairs: Sequence[Pair], judgements: Records, progress: Progress, announce: Callable[[str], None]
) -> None:
    """Serve the page until all pairs are judged."""
    session = Session(pairs, judgements, lambda done, total: progress("Judged", done, total))
    if session.finished.is_set():
        return
    with PageServer(session) as server:
        announce(server.address)
        while not session.finished.wait(WAIT_SECONDS):
            pass


def _write(plan: Plan, results: Results) -> None:
    """Write report.md, report.json and the plots."""
    name = None if plan.judge is None else plan.judge.endpoint.model
    setting = report.Setting(plan.prompts.name, plan.max_tokens, name, date.today().isoformat())
    text = report.format_markdown(setting, results, plots.plot(results, plan.out))
    encoded = json.dumps(report.to_json(setting, results), indent=1, ensure_ascii=False)
    for file, content in (("report.md", text), ("report.json", f"{encoded}\n")):
        with replace_file(plan.out / file) as opened:
            opened.write(content.encode())
