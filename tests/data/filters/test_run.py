"""Whole runs: what stays, the report, the number of workers, and runs that are killed."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gemwright.data.filters.engines import Engine, run_locally
from gemwright.data.filters.recipe import Recipe
from gemwright.data.filters.run import WORK, plan, run
from gemwright.errors import DataError
from tests.data.filters.corpus import make_page, read_ids, read_output, write_corpus, write_lines

pytest.importorskip("phonenumbers")
pytest.importorskip("sklearn")
PART = 20_000
"""Bytes of a part, of which a corpus has about four."""
PAGES = 60
"""Number of pages of a corpus that stay."""


def ignore(stage: str, done: int, tasks: int) -> None:
    """Ignore the progress of a run."""


def filter_file(path: Path, out: Path, recipe: Recipe = Recipe(), engine: Engine | None = None, **options: Any) -> Any:  # noqa: B008
    return run(plan([path], out, recipe, **options), engine or run_locally(1), ignore)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "pages.jsonl", PAGES)


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, bytes]:
    """What a run writes that is not interrupted, with one worker."""
    out = corpus.parent / "expected"
    filter_file(corpus, out, part_bytes=PART)
    return read_output(out)


def test_what_stays(corpus: Path, expected: dict[str, bytes]):
    out = corpus.parent / "expected"
    assert read_ids(out) == [
        *range(PAGES)
    ]  # of equal and similar records the first; the others of the corpus are pages
    report = json.loads(expected["report.json"])
    steps = {step["step"]: step for step in report["steps"]}
    assert (report["records"], report["kept"]) == (85, PAGES)
    assert steps["read"]["reasons"] == {"this is not valid JSON": 1}
    assert steps["gopher-quality"]["reasons"] == {"fewer than 50 words": 6}
    assert (steps["personal"]["edited"], steps["personal"]["found"]) == (6, {"EMAIL": 6})
    assert steps["exact"]["removed"] == 6
    assert steps["minhash"]["removed"] == 12  # those that differ in a word, and those with an address at the end
    assert sum(step["removed"] for step in steps.values()) == 85 - PAGES


def test_each_removed_record_is_explained(corpus: Path, expected: dict[str, bytes]):
    removed = [json.loads(line) for line in expected["removed.jsonl"].splitlines()]
    lines = corpus.read_text().splitlines()
    kept = {number: number for number in range(1, len(lines) + 1)}
    for entry in removed:
        kept.pop(entry["line"])
        if entry["step"] == "exact":
            text, because = (
                json.loads(lines[n - 1])["text"] for n in (entry["line"], int(entry["because"].split()[-1]))
            )
            assert text == because
    assert [json.loads(lines[number - 1])["id"] for number in kept] == [*range(PAGES)]
    report = expected["report.md"].decode()
    assert "| exact | 78 | 6 (7.7%) | 0 |" in report
    assert "because of `" in report
    assert "@mail.example.com" not in report


def test_unchanged_records_keep_their_bytes(corpus: Path, expected: dict[str, bytes]):
    lines = set(corpus.read_bytes().splitlines())
    for name, content in expected.items():
        if name.startswith("data"):
            assert set(content.splitlines()) <= lines


def test_workers_do_not_change_the_output(corpus: Path, expected: dict[str, bytes], tmp_path: Path):
    filter_file(corpus, tmp_path / "out", engine=run_locally(2), part_bytes=PART)
    assert read_output(tmp_path / "out") == expected


def test_parts_do_not_change_what_stays(corpus: Path, tmp_path: Path):
    for number, part in enumerate((7_000, 1 << 20)):
        filter_file(corpus, tmp_path / str(number), part_bytes=part)
        assert read_ids(tmp_path / str(number)) == [*range(PAGES)]


def test_shares_do_not_change_what_stays(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gemwright.data.filters.run.SHARE_BYTES", 30_000)
    planned = plan([corpus], tmp_path / "out", Recipe(), part_bytes=PART)
    assert planned.shares() == 4
    run(planned, run_locally(1), ignore)
    assert read_ids(tmp_path / "out") == [*range(PAGES)]


SCRIPT = """
import sys
from pathlib import Path
from gemwright.data.filters.engines import run_locally
from gemwright.data.filters.recipe import Recipe
from gemwright.data.filters.run import plan, run
planned = plan([Path(sys.argv[1])], Path(sys.argv[2]), Recipe(), part_bytes=int(sys.argv[3]))
run(planned, run_locally(1), lambda *_: None)
"""


def kill_and_continue(corpus: Path, out: Path, after: list[str]) -> None:
    """Run, kill the process with SIGKILL once each of some files exists, and run again to the end."""
    command = [sys.executable, "-c", SCRIPT, str(corpus), str(out), str(PART)]
    for name in after:
        process = subprocess.Popen(command)
        while not (out / WORK / name).exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "report.json").exists()
    subprocess.run(command, check=True)


def test_killed_run_continues_with_the_same_bytes(corpus: Path, expected: dict[str, bytes], tmp_path: Path):
    kill_and_continue(corpus, tmp_path / "out", ["screen/00001.json", "write/00002.json"])
    assert read_output(tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_run_continues_from_everywhere(corpus: Path, expected: dict[str, bytes], tmp_path: Path):
    stages = (("screen", 4), ("compare", 15), ("join", 1), ("write", 4))
    names = ["plan.json", *(f"{stage}/{task:05d}.json" for stage, tasks in stages for task in range(0, tasks, 4))]
    kill_and_continue(corpus, tmp_path / "out", names)
    assert read_output(tmp_path / "out") == expected


def test_killed_worker_is_an_error_that_says_what_to_do(corpus: Path, expected: dict[str, bytes], tmp_path: Path):
    import multiprocessing

    from gemwright.errors import GemwrightError

    def kill_one(stage: str, done: int, tasks: int) -> None:
        for process in multiprocessing.active_children()[:1]:
            os.kill(process.pid or 0, signal.SIGKILL)

    planned = plan([corpus], tmp_path / "out", Recipe(), part_bytes=PART)
    with pytest.raises(GemwrightError, match="was killed, perhaps for want of memory"):
        run(planned, run_locally(2), kill_one)
    run(planned, run_locally(1), ignore)
    assert read_output(tmp_path / "out") == expected


def test_finished_run_is_not_repeated(corpus: Path, tmp_path: Path):
    first = filter_file(corpus, tmp_path / "out", part_bytes=PART)

    def fail(*_: Any) -> None:
        raise AssertionError

    assert filter_file(corpus, tmp_path / "out", engine=fail, part_bytes=PART) == first


def test_other_folders_and_runs_are_refused(corpus: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no run"):
        filter_file(corpus, tmp_path / "full")
    filter_file(corpus, tmp_path / "out", part_bytes=PART)
    with pytest.raises(DataError, match="other data or settings"):
        filter_file(corpus, tmp_path / "out", Recipe(personal="remove"), part_bytes=PART)
    (tmp_path / "out" / "report.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        filter_file(corpus, tmp_path / "out", part_bytes=PART)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_malformed_lines_are_counted(tmp_path: Path):
    page = json.dumps({"text": make_page(0)})
    deep = '{"text": ' + "[" * 5000 + "]" * 5000 + "}"
    bad = ("[]", '{"text": 3}', '{"other": "x"}', '{"text": "\\ud800"}', '{"text": "a\\u0000b"}', "{", deep)
    path = write_lines(tmp_path / "pages.jsonl", *bad, "", page)
    path.write_bytes(
        path.read_bytes() + b'{"text": "\xff"}\n' + b'{"text": "' + b"x" * (17 << 20) + b'"}\n' + page.encode()
    )
    report = filter_file(path, tmp_path / "out")
    read = report["steps"][0]
    assert (read["seen"], read["removed"], report["kept"]) == (11, 9, 1)
    assert len(read["reasons"]) == 6
    places = [json.loads(line)["line"] for line in (tmp_path / "out" / "removed.jsonl").read_text().splitlines()]
    assert places == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]


def test_conversations_are_edited_inside_and_not_judged_as_pages(tmp_path: Path):
    talk = [{"role": "user", "content": "Mail me at ann@example.com."}, {"role": "assistant", "content": "Done."}]
    path = write_lines(tmp_path / "chats.jsonl", {"messages": talk, "source": "ann@example.com"})
    report = filter_file(path, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "data" / "chats-00000.jsonl").read_text())
    assert record == {
        "messages": [{"role": "user", "content": "Mail me at [EMAIL]."}, talk[1]],
        "source": "ann@example.com",  # no text that is learned
    }
    assert {step["step"]: step["seen"] for step in report["steps"]}["gopher-quality"] == 0


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv", ".json", ".txt"])
def test_other_formats(ending: str, tmp_path: Path):
    pages = [make_page(number) for number in range(4)]
    path = tmp_path / f"pages{ending}"
    if ending == ".jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps({"text": page}) + "\n" for page in pages).encode()))
    elif ending == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "id"], *((page, number) for number, page in enumerate(pages))])
    elif ending == ".json":
        path.write_text(json.dumps([{"text": page} for page in pages]))
    else:
        path.write_text(pages[0])
    report = filter_file(path, tmp_path / "out")
    written = tmp_path / "out" / "data" / f"pages-00000{'.jsonl.gz' if ending == '.jsonl.gz' else '.jsonl'}"
    data = gzip.decompress(written.read_bytes()) if ending == ".jsonl.gz" else written.read_bytes()
    assert [json.loads(line)["text"] for line in data.splitlines()] == pages[: report["records"]]


def test_precision_and_recall_of_labels(tmp_path: Path):
    """Against counts by hand: 2 of 3 removed are labelled bad, of 4 labelled."""
    records = [{"text": make_page(number), "bad": number < 2} for number in range(5)]
    records += [{"text": f"Short {number}.", "bad": number < 2} for number in range(3)]
    report = filter_file(
        write_lines(tmp_path / "x.jsonl", *records),
        tmp_path / "out",
        Recipe(steps=("gopher-quality",), label=("bad", ("True",))),
    )
    step = report["steps"][1]
    assert (step["precision"], step["recall"]) == (2 / 3, 2 / 4)
    assert step["precision_interval"] == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson's, by statsmodels 0.14
    assert (
        "| gopher-quality | 0.667 | 0.208 to 0.939 | 0.500 | 0.150 to 0.850 |"
        in (tmp_path / "out/report.md").read_text()
    )


def test_evaluation_sets_are_found_in_texts(tmp_path: Path):
    items = [" ".join(make_page(number, 3).split()[:length]) for number, length in ((100, 30), (101, 9), (102, 5))]
    sets = tmp_path / "sets"
    sets.mkdir()
    (sets / "a.jsonl").write_text(json.dumps({"question": items[0], "more": {"x": [items[1]]}}) + "\n")
    (sets / "b.csv").write_text(f'1,"{items[2]}"\n')
    texts = [make_page(number) for number in range(5)]
    words = items[0].lower().split()
    contaminated = {
        0: " ".join(words[3:16]),  # 13 words of an item
        1: items[1].upper().replace(".", " !"),  # all of a short item, however written
        2: " ".join(words[3:15]),  # 12 words of a long item are not enough
        3: items[2],  # too short to be looked for
    }
    records = [
        {"text": f"{text} {contaminated.get(number, '')} {text}", "id": number} for number, text in enumerate(texts)
    ]
    report = filter_file(
        write_lines(tmp_path / "x.jsonl", *records),
        tmp_path / "out",
        Recipe(steps=("decontamination",)),
        evaluation=[sets],
    )
    assert read_ids(tmp_path / "out") == [2, 3, 4]
    step = report["steps"][1]
    assert (step["files"], step["items"], step["items_too_short"]) == (2, 4, 2)


@pytest.mark.filterwarnings("ignore")
def test_stages_run_on_datatrove(corpus: Path, expected: dict[str, bytes], tmp_path: Path):
    """Its executors, of which those for Slurm and Ray take the same arguments, do the same stages."""
    executors = pytest.importorskip("datatrove.executor.local")

    def execute(stage: Any, progress: Any) -> None:
        executors.LocalPipelineExecutor([stage], stage.tasks, 1, str(tmp_path / "logs" / stage.name)).run()

    filter_file(corpus, tmp_path / "out", engine=execute, part_bytes=PART)
    assert read_output(tmp_path / "out") == expected
