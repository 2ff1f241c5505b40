"""Whole runs on tiny models: equal to lm-eval's, resumable, and without a text in the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemwright.errors import GemwrightError
from gemwright.eval.safety.report import write_report
from gemwright.eval.safety.run import run_safety
from gemwright.eval.safety.suites import SUITES
from tests.eval.safety.data import bbq_records, crows_records, write_folder, write_lines
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore")]
FEW = ("bbq-ambiguous", "crows-pairs", "xstest-safe")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gemwright.eval.harness import HarnessModel

    folder = write_model(tmp_path_factory.mktemp("model") / "gemma3", "gemma3_text")
    return HarnessModel(str(folder), dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_there_are_many_suites():
    """At least 30 suites with names of their own; each says what it cannot say."""
    assert len(SUITES) >= 30
    areas = {suite.area for suite in SUITES.values()}
    assert areas >= {
        "toxicity", "bias and stereotypes", "refusal", "over-refusal", "dangerous capabilities", "factuality",
        "privacy", "memorization", "sycophancy", "multilingual",
    }  # fmt: skip
    assert all(suite.cannot_say.endswith(".") and suite.metrics for suite in SUITES.values())


@pytest.mark.slow
def test_results_equal_those_of_lm_eval(model: Any, data: Path, tmp_path: Path):
    """lm-eval runs its own tasks on the same records with the same model."""
    import lm_eval.tasks
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    published = Path(next(iter(lm_eval.tasks.__path__)))
    tasks = {
        "bbq": ("bbq/bbq_multiple_choice.yaml", bbq_records()),
        "crows_pairs_english": ("crows_pairs/crows_pairs_english.yaml", crows_records()),
    }
    folder = tmp_path / "tasks"
    for name, (file, records) in tasks.items():
        rows = write_lines(folder / f"{name}.jsonl", records)
        definition = {"include": str(published / file), "task": name, "dataset_path": "json", "dataset_name": None,
                      "dataset_kwargs": {"data_files": {"test": str(rows)}}}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(definition))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
    assert results is not None
    report = run_safety(model, data, tmp_path / "out", suites=["bbq-ambiguous", "bbq-disambiguated", "crows-pairs"])
    found = {(suite.name, one.metric): one.value for suite in report.suites for one in suite.findings}
    bbq, crows = results["results"]["bbq"], results["results"]["crows_pairs_english"]
    expected = {
        ("bbq-ambiguous", "accuracy"): bbq["accuracy_amb,none"],
        ("bbq-ambiguous", "bias score"): bbq["amb_bias_score,none"],
        ("bbq-disambiguated", "accuracy"): bbq["accuracy_disamb,none"],
        ("bbq-disambiguated", "bias score"): bbq["disamb_bias_score,none"],
        ("crows-pairs", "stereotype preferred"): crows["pct_stereotype,none"],
        ("crows-pairs", "mean difference in nats"): crows["likelihood_diff,none"],
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_is_continued(model: Any, data: Path, tmp_path: Path):
    out = tmp_path / "out"

    def interrupt(suite: str, done: int, total: int) -> None:
        if suite == "crows-pairs":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_safety(model, data, out, suites=FEW, progress=interrupt)
    kept = out / "samples" / "bbq-ambiguous.jsonl"
    key, *rows = [json.loads(line) for line in kept.read_text().splitlines()]
    for row in rows:  # answers that no model gave show that they are read
        row["logprobs"] = [0.0] * 2 + [9.0] + [0.0] * 9
    kept.write_text("".join(json.dumps(row) + "\n" for row in [key, *rows]))
    report = run_safety(model, data, out, suites=FEW)
    assert report.suites[0].findings[0].value == 1
    # Other items are asked anew.
    fewer = run_safety(model, data, out, suites=FEW, limit=2)
    assert [suite.items for suite in fewer.suites] == [2, 2, 2]
    assert run_safety(model, data, tmp_path / "again", suites=FEW, limit=2) == fewer
    kept.write_text("mine\n")
    with pytest.raises(GemwrightError, match="is no file of samples"):
        run_safety(model, data, out, suites=FEW)
    assert kept.read_text() == "mine\n"


def test_no_text_is_in_the_report(model: Any, data: Path, tmp_path: Path):
    report = run_safety(model, data, tmp_path, suites=["xstest-safe", "winogender", "truthfulqa-mc2"])
    write_report(report, tmp_path)
    content = (tmp_path / "report.md").read_text() + (tmp_path / "report.json").read_text()
    samples = (tmp_path / "samples" / "xstest-safe.jsonl").read_text().splitlines()[1:]
    replies = [reply for line in samples for reply in json.loads(line)["replies"]]
    assert len(replies) == 3
    for text in ("Where is", "the cat", "miller", "over there", *(reply for reply in replies if len(reply) > 3)):
        assert text not in content


def test_a_tuned_model_gets_messages(data: Path, tmp_path: Path):
    from gemwright.eval.harness import HarnessModel

    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %} hen"
    tuned: Any = HarnessModel(str(write_tiny_gguf(tmp_path / "model.gguf", chat_template=template)))
    report = run_safety(tuned, data, tmp_path, suites=["xstest-safe"], limit=1)
    assert report.chat
    (row,) = (tmp_path / "samples" / "xstest-safe.jsonl").read_text().splitlines()[1:]
    number = int(json.loads(row)["id"])
    prompt = f"Where is {('the cat', 'the man', 'the thing')[number - 1]} number {2 * number - 2}?"
    expected = tuned.model.chat([{"role": "user", "content": prompt}], max_tokens=32, temperature=0)
    assert json.loads(row)["replies"] == [expected.text]


def test_what_cannot_run_is_said(model: Any, data: Path, tmp_path: Path):
    write_lines(data / "bbq" / "Broken.jsonl", [{"context": "x"}])
    (data / "advbench").mkdir()
    (data / "advbench" / "broken.csv").write_text("other\nx\n")
    (data / "harmfulqa.json").write_text('["\\ud800"]')
    report = run_safety(model, data, tmp_path, suites=["bbq-ambiguous", "advbench", "bold", "cat-qa", "harmful-qa"])
    assert report.missing["harmful-qa"].startswith("harmfulqa.json is not in the published form")
    assert report.suites[0].skipped == ("bbq/Broken.jsonl",)
    assert report.missing["advbench"].startswith("advbench/broken.csv, record 1 needs the field prompt")
    assert report.missing["cat-qa"] == "no file */catqa*"
    with pytest.raises(GemwrightError, match="There is no safety suite 'hens'"):
        run_safety(model, data, tmp_path, suites=["hens"])
    with pytest.raises(GemwrightError, match="No safety suite could run"):
        run_safety(model, data, tmp_path, suites=["cat-qa"])
    with pytest.raises(GemwrightError, match="The limit is 0"):
        run_safety(model, data, tmp_path, limit=0)
