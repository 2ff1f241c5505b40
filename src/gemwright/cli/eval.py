"""`gemwright eval`: run benchmarks on a model."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError
from gemwright.runtime.folder_lock import lock_folder
from gemwright.runtime.installation import require_extra

if TYPE_CHECKING:
    from gemwright.eval.run import Result, Settings

PACKAGES = ("lm_eval",)
"""Packages of the extra `eval` that benchmarks need."""
LOCK = "benchmarks.lock"
"""A file of every folder of benchmarks, locked by the process that writes to it."""


def evaluate(
    model: o.ModelArgument,
    suite: Annotated[
        Literal["gemma1", "gemma2", "gemma3", "recurrentgemma", "codegemma", "paligemma", "safety"] | None,
        typer.Option(help="Benchmarks of a model report, each as the report ran it; or safety evaluations."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these benchmarks of the suite; or tasks of lm-eval.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of data files, instead of the hub (docs/eval.md).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the report and of all samples; a run in it is continued."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of items of a task, drawn with the seed.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Number of examples in each prompt. Default: the suite's.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap prompts in the chat template.")] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the items that --limit draws.")] = 0,
    adapter: o.AdapterOption = None,
    dtype: o.DTypeOption = None,
    threads: o.ThreadsOption = None,
    unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code", help="Run code that the model writes even where there is no sandbox."
        ),
    ] = False,
    shield: o.ShieldOption = None,
    policy: o.PolicyOption = None,
    judge: Annotated[
        str | None, typer.Option(metavar="URL#MODEL", help="Safety: endpoint that judges whether replies are harmful.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Safety: earlier report; exit with code 1 on a regression.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Safety: worsening that is no regression, as a share.")
    ] = 0.02,
) -> None:
    """Run benchmarks or safety evaluations.

    Benchmarks run with lm-eval; scores are shown beside the published ones.

    Run the same command again to continue after an interruption.
    """
    require_extra("eval", PACKAGES, "Evaluation")
    if suite is None and tasks is None:
        raise GemwrightError("There is nothing to run; add --suite NAME or --tasks A,B.")
    if out is None:
        raise GemwrightError("There is no folder for the results; add --out FOLDER.")
    render.status("Loading lm-eval ...")
    import_jax()
    from gemwright.eval import quiet

    quiet.silence(offline=data is not None)
    from gemwright.cli.loading import load
    from gemwright.eval.run import Settings

    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    if suite == "safety":
        if data is None:
            raise GemwrightError("The safety suites read local files; add --data FOLDER (docs/safety.md).")
        from gemwright.cli import eval_safety
        from gemwright.eval.harness import HarnessModel
        from gemwright.eval.made_with import describe

        before = None if against is None else eval_safety.read_earlier(against)  # before it may be replaced
        scorer = eval_safety.load_scorer(shield, policy, judge)
        loaded = load(model, dtype=dtype, variant=None, verbose=False, adapters=o.adapters(adapter))
        made_with = describe(model, o.adapters(adapter), dtype, chat=loaded.model.tuned)
        with lock_folder(out, "safety run", eval_safety.LOCK, eval_safety.LOCK):
            harness = HarnessModel(replace(loaded.model, name=model))  # the report shows the name that was given
            report = eval_safety.run(harness, data, out, names or (), limit, seed, scorer, made_with)
        if before is not None:
            raise typer.Exit(eval_safety.gate(before, report, tolerance))
        return
    _run_benchmarks(model, adapter, dtype, suite, names, data, out, shots, Settings(limit, seed, chat, unsafe_code))


def _run_benchmarks(
    model: str,
    adapter: list[str] | None,
    dtype: str | None,
    suite: str | None,
    names: list[str] | None,
    data: Path | None,
    out: Path,
    shots: int | None,
    settings: "Settings",
) -> None:
    """Run benchmarks one after another, and write the report after each."""
    from gemwright.cli.eval_report import ProgressLine, print_plan, print_result
    from gemwright.cli.loading import load
    from gemwright.eval.harness import HarnessModel
    from gemwright.eval.made_with import describe, find_variant
    from gemwright.eval.plan import make_plan
    from gemwright.eval.report import write_report
    from gemwright.eval.responses import Responses
    from gemwright.eval.run import run_benchmark

    made_with = describe(model, o.adapters(adapter), dtype, chat=settings.chat)
    with lock_folder(out, "benchmark run", LOCK, LOCK), closing(Responses(out, made_with)) as responses:
        plan = make_plan(suite, names, data, out, shots)
        print_plan(plan)
        loaded = load(model, dtype=dtype, variant=None, verbose=False, adapters=o.adapters(adapter))
        progress = ProgressLine()
        harness = HarnessModel(loaded.model, responses=responses, progress=progress)
        variant = find_variant(model, loaded.model.engine.config)
        results: list[Result] = []
        for benchmark in plan.benchmarks:
            progress.begin(benchmark.title)
            results.append(run_benchmark(harness, benchmark, plan.manager, out, settings))
            write_report(out, results, variant, made_with | {"limit": settings.limit, "seed": settings.seed})
            print_result(results[-1], variant)
    render.note(f"Report:  {out / 'report.md'}")
