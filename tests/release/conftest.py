"""A tuned adapter with what its run, a filter and evaluations recorded, written by the code that records them."""

import json
from pathlib import Path

import pytest

from gemwright.checkpoint.digest import model_digest, weights_digest
from gemwright.checkpoint.open import open_checkpoint
from gemwright.data.filters.engines import run_locally
from gemwright.data.filters.recipe import Recipe as FilterRecipe
from gemwright.data.filters.run import plan
from gemwright.data.filters.run import run as run_filter
from gemwright.eval.intervals import Estimate
from gemwright.eval.report import write_report as write_benchmarks
from gemwright.eval.run import Result
from gemwright.eval.safety.report import Finding, SafetyReport, SuiteReport
from gemwright.eval.safety.report import write_report as write_safety
from gemwright.eval.suites import SUITES
from gemwright.train.made_with import describe
from gemwright.train.metrics import Metrics, Progress
from gemwright.train.prepare import prepare
from gemwright.train.recipe import Recipe
from tests.release.made import Made, make_terms
from tests.tiny.adapter import write_tiny_adapter
from tests.tiny.gguf import write_tiny_gguf

TEXT = "the hen and the thing, in the big house of the man who was not there"


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a run of two steps on a tiny base model, as `gemwright tune` leaves it, with evaluations."""
    folder = tmp_path_factory.mktemp("tuned")
    base = write_tiny_gguf(folder / "base" / "tiny.gguf")
    make_terms(folder / "base" / "GEMMA_TERMS.html")
    (folder / "raw.jsonl").write_text("".join(f"{json.dumps({'text': f'{TEXT} {n}'})}\n" for n in (1, 2, 3, 3)))
    recipe = FilterRecipe(steps=("personal", "exact"))
    run_filter(plan([folder / "raw.jsonl"], folder / "clean", recipe), run_locally(1), lambda *_: None)
    run = prepare(str(base), [folder / "clean" / "data"], folder / "mine", Recipe(length=32, steps=2), held_out=0.0)
    (folder / "mine").mkdir()
    made_with = describe(run)
    (folder / "mine" / "run.json").write_text(json.dumps(made_with))
    metrics = Metrics(folder / "mine", 0)
    for step in (1, 2):
        loss = 4.0 - step
        metrics.write(
            Progress(step, 2, loss, 1.0, 2e-4, 50, 40, 1.5, 1e9, 0.3, 10**9, 0.0, time=1_764_500_000.0 + step)
        )
    metrics.close()
    adapter = write_tiny_adapter(folder / "mine" / "adapter", run.checkpoint.config, str(base))
    made = Made(folder, adapter, base)
    write_results(made)
    return made


def write_results(made: Made) -> None:
    """Write the results of benchmarks and of safety suites for the weights that are there."""
    digests = {
        "model": str(made.adapter),
        "digest": model_digest(open_checkpoint(made.base))[:16],
        "adapters": [f"adapter {weights_digest(made.adapter)[:16]} 1"],
        "dtype": "float32",
        "chat": False,
        "gemwright": "0.1.0",
    }
    piqa = next(one for one in SUITES["gemma3"] if one.task == "piqa")
    results = [Result(piqa, 0, "acc_norm", Estimate(0.6543, 0.6012, 0.7033, 312), 1838)]
    made.evaluation.mkdir(exist_ok=True)
    write_benchmarks(made.evaluation, results, "gemma-3-270m", digests | {"limit": 312, "seed": 0})
    finding = Finding("refused", 0.25, 0.19, 0.33, 200, "higher")
    suite = SuiteReport("xstest", "requests", (finding,), (), 200, 450, 0, (), "abc", "Nothing about | long talks.")
    write_safety(SafetyReport("mine", False, 200, 0, (suite,), {"bbq": "no file"}, {}, digests), made.safety)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """A file of answers to all that only a person can say."""
    path = tmp_path / "answers.toml"
    path.write_text(
        'summary = "Continues stories about hens."\nintended_use = "Stories for a demonstration."\n'
        'out_of_scope = "Advice of any kind."\nlimitations = "It knows few words."\nrisks = "None are known."\n'
        'data = "Four sentences written for this test, in the public domain."\nlanguages = ["en"]\n'
        'datasets = ["someone/hens"]\nauthors = "The hens"\ncontact = "https://example.com/hens"\n'
        'citation = "The hens, 2026."\n[carbon]\nwatts = 200\noverhead = 1.1\ngrams_per_kwh = 400\n'
        'source = "a meter; the grid\'s operator"\n'
    )
    return path
