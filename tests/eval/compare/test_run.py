"""Whole comparisons: tiny models, endpoints, a judge or a person, continued, changed and interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

import gemwright
from gemwright.cli import main
from gemwright.errors import GemwrightError
from gemwright.eval.compare.candidates import parse_candidate, parse_candidates
from gemwright.eval.compare.judge import parse_judge
from gemwright.eval.compare.run import Plan, compare
from gemwright.text.chat import GEMMA
from tests.eval.compare.stand_in import StandIn, serve
from tests.eval.compare.test_judge import read_replies
from tests.tiny.gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")
QUESTIONS = [{"id": f"q{number}", "category": "xyz"[number % 3], "prompt": f"the {number}"} for number in range(6)]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template=GEMMA.template)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return file


def answer_or_judge(body: Mapping[str, Any]) -> str:
    """Answer with the model's name as often as it says; judge that the answer with more letters is better."""
    if "judge" in body["model"]:
        left, right = map(len, read_replies(body))
        return "[[A]]" if left > right else "[[B]]" if right > left else "[[tie]]"
    number = int(body["messages"][-1]["content"].split()[-1])
    return body["model"] * (1 + (number + len(body["model"])) % 4)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(StandIn(answer_or_judge)) as stand_in:
        yield stand_in


class Loads:
    """Loads models and remembers which."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, dtype: str | None) -> gemwright.Model:
        self.names.append(name)
        return gemwright.load(name, dtype=dtype)


def run(plan: Plan, load: Loads | None = None) -> dict[str, Any]:
    compare(plan, load or Loads(), lambda *_: None, lambda _: None)
    return json.loads((plan.out / "report.json").read_text())


def test_models_of_this_package(tiny: Path, server: StandIn, tmp_path: Path):
    """Answers equal those of the model alone, a turn at a time; two settings of a model load it once."""
    turns = [["the hen", "and then"], ["a thing"]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"turns": turn}) + "\n" for turn in turns))
    candidates = parse_candidates([f"{tiny},temperature=0", f"{tiny},temperature=0,seed=3"])
    judge = parse_judge(f"{server.address}#judge", None)
    plan = Plan(candidates, tmp_path / "p.jsonl", tmp_path / "out", judge, max_tokens=6)
    load = Loads()
    report = run(plan, load)
    assert load.names == [str(tiny)]
    assert (report["duels"][0]["equal"], report["cut"]) == (2, {one.label: 2 for one in candidates})
    assert server.requests == []  # both are greedy, and equal answers are not judged
    records = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    greedy = {record["prompt"]: record["turns"] for record in records if record["candidate"].endswith("=3")}
    model = gemwright.load(tiny)
    talk = [{"role": "user", "content": "the hen"}]
    first = model.chat(talk, max_tokens=6, temperature=0).text.strip()
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "and then"}]
    assert greedy["1"] == [first, model.chat(talk, max_tokens=6, temperature=0).text.strip()]
    assert run(plan, load) == report
    assert len(load.names) == 1
    before = candidates[0].identity
    os.utime(tiny)
    assert candidates[0].identity != before  # other files under the same name give other answers


def test_a_base_model_continues_the_text(server: StandIn, tmp_path: Path):
    tiny = write_tiny_gguf(tmp_path / "base.gguf")
    (tmp_path / "p.txt").write_text("the hen and\n")
    judge = parse_judge(f"{server.address}#judge", None)
    candidates = parse_candidates([f"{tiny},temperature=0", f"{server.address}#model"])
    server.reply = lambda body: "[[tie]]"
    run(Plan(candidates, tmp_path / "p.txt", tmp_path / "out", judge, max_tokens=6))
    records = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    found = next(record["turns"] for record in records if "base.gguf" in record["candidate"])
    assert found == [gemwright.load(tiny).generate("the hen and", max_tokens=6, temperature=0).text.strip()]


def test_report_of_three_endpoints(prompts: Path, server: StandIn, tmp_path: Path):
    """The results are those computed from the rule by which the stand-in answers and judges."""
    names = ["a", "bb", "ccc"]
    judge = parse_judge(f"{server.address}#judge", None)
    candidates = parse_candidates([f"{server.address}#{name}" for name in names])
    report = run(Plan(candidates, prompts, tmp_path / "out", judge))
    lengths = [[len(name) * (1 + (number + len(name)) % 4) for name in names] for number in range(6)]
    for duel, (one, other) in zip(report["duels"], ((0, 1), (0, 2), (1, 2)), strict=True):
        signs = [(row[one] > row[other]) - (row[one] < row[other]) for row in lengths]
        assert [duel[name] for name in ("wins", "ties", "losses")] == [signs.count(sign) for sign in (1, 0, -1)]
        assert duel["rate"]["value"] == pytest.approx((signs.count(1) + signs.count(0) / 2) / 6)
        assert set(duel["categories"]) == {"x", "y", "z"}
        assert duel["unjudged"] == 0
    assert report["agreement"]["value"] == 1.0
    assert report["shown_first"]["value"] == 0.5
    assert report["longer"]["value"] == 1.0
    assert len(server.requests) == 6 * 3 + 2 * 18
    text = (tmp_path / "out" / "report.md").read_text()
    assert "judged by `judge`, each pair in both orders" in text
    assert ("There are no Bradley-Terry ratings" in text) == (report["ratings"] is None)
    for image in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / "out" / image).read_bytes().startswith(PNG)
    assert "win_rates.png" in text


def test_a_comparison_grows(prompts: Path, server: StandIn, tmp_path: Path):
    """More prompts, another model or another judge ask only for what is missing; changed prompts ask again."""
    labels = [f"{server.address}#{name}" for name in ("a", "bb", "ccc")]
    judge = parse_judge(f"{server.address}#judge", None)

    def count(number: int, limit: int | None, judge: Any = judge) -> int:
        before = len(server.requests)
        run(Plan(parse_candidates(labels[:number]), prompts, tmp_path / "out", judge, limit=limit))
        return len(server.requests) - before

    assert count(2, 2) == 4 + 4
    assert count(2, 3) == 2 + 2
    assert count(3, 3) == 3 + 12
    assert count(3, 3) == 0
    assert count(3, 3, parse_judge(f"{server.address}#judge", "Rhymes win.")) == 18
    prompts.write_text(prompts.read_text().replace('"the 0"', '"the 4"'))
    assert count(2, 3) == 2 + 2


def test_a_judge_that_fails_leaves_a_report(prompts: Path, server: StandIn, tmp_path: Path):
    judge = parse_judge(f"{server.address}#judge", None)
    plan = Plan(
        parse_candidates([f"{server.address}#{name}" for name in ("a", "bb")]), prompts, tmp_path / "out", judge
    )

    def fail_later(body: Mapping[str, Any]) -> Any:
        return 400 if "judge" in body["model"] and "the 5" in str(body) else answer_or_judge(body)

    server.reply = fail_later
    with pytest.raises(GemwrightError, match="status 400"):
        run(plan)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["duels"][0]["unjudged"] > 0
    server.reply = answer_or_judge
    assert run(plan)["duels"][0]["unjudged"] == 0


def test_folders_of_others_are_left_alone(prompts: Path, server: StandIn, tmp_path: Path):
    candidates = parse_candidates([f"{server.address}#a", f"{server.address}#bb"])
    with pytest.raises(GemwrightError, match="files that are not of a comparison"):
        run(Plan(candidates, prompts, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["a"], "two or more different"),
        (["a", "a"], "two or more different"),
        (["a", "b,tempature=0"], "did you mean temperature"),
        (["a", "b,temperature=warm"], "is not a number"),
        (["a", "http://host/v1"], "no endpoint"),
        (["a", "http://host/v1#m,dtype=float32"], "no option 'dtype'"),
        (["a", "b,key=KEY"], "no option 'key'"),
    ],
)
def test_refused_candidates(texts: list[str], problem: str):
    with pytest.raises(GemwrightError, match=problem):
        parse_candidates(texts)


def test_settings_of_candidates():
    found = parse_candidate("my,model,temperature=0.5,top_k=3,dtype=float32")
    assert (found.model, found.dtype) == ("my,model", "float32")
    assert found.sampling == {"temperature": 0.5, "top_k": 3}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gemwright", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def test_command_line(
    prompts: Path,
    server: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    models = [f"{server.address}#{name}" for name in ("a", "bb")]
    options = ("--prompts", prompts, "--out", tmp_path / "out")
    assert call(monkeypatch, *models, *options, "--judge", f"{server.address}#judge", "--limit", 4) == 0
    assert "| win rate |" in capsys.readouterr().out
    for wrong in (
        (*models, *options, "--rubric", prompts),
        (*models, *options, "--judge", "gemma-3-270m"),
        (
            *models,
            "--out",
            tmp_path / "new",
            "--prompts",
            tmp_path / "none.jsonl",
            "--judge",
            f"{server.address}#judge",
        ),
    ):
        assert call(monkeypatch, *wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_person_interrupts_and_continues(prompts: Path, server: StandIn, tmp_path: Path):
    """Two processes: the first is ended by Ctrl-C after two verdicts, the second by the last verdict."""
    models = [f"{server.address}#{name}" for name in ("a", "bb")]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gemwright", "compare", *models, "--prompts", str(prompts), "--out", str(out)]

    def judge_some(count: int, end: Callable[[subprocess.Popen[str]], None]) -> int:
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr
            address = next(line.split()[-1] for line in process.stderr if line.startswith("Judge the answers"))
            state = httpx.post(f"{address}next", json={"tab": "t"}).json()
            for _ in range(count):
                body = {"tab": "t", "pair": state["pair"], "verdict": "left"}
                state = httpx.post(f"{address}judge", json=body).json()
            end(process)
            return process.wait()

    assert judge_some(2, lambda process: process.send_signal(signal.SIGINT)) == 130
    report = json.loads((out / "report.json").read_text())
    assert report["shown_first"]["value"] == 1.0
    left = report["duels"][0]["unjudged"]
    assert judge_some(left, lambda process: None) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["duels"][0]["unjudged"] == 0
    assert report["setting"]["judge"] is None
    assert len(server.requests) == 12


def test_one_process_at_a_time(prompts: Path, server: StandIn, tmp_path: Path):
    gate = threading.Event()
    judge = parse_judge(f"{server.address}#judge", None)
    plan = Plan(
        parse_candidates([f"{server.address}#{name}" for name in ("a", "bb")]), prompts, tmp_path / "out", judge
    )
    server.reply = lambda body: answer_or_judge(body) if gate.wait(20) else ""
    other = threading.Thread(target=run, args=(plan,))
    other.start()
    while not server.requests:
        time.sleep(0.01)
    with pytest.raises(GemwrightError, match="Another comparison"):
        run(plan)
    gate.set()
    other.join()
