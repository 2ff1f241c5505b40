"""Compile the steps of published training runs and of decoding, ahead of time and without the hardware.

    .venv/bin/python bench/plan.py [--minutes 15] [--only TEXT]      # or: make bench-plan

Needs `pip install libtpu`. Each step is compiled by `gemwright plan --compile --json` in its own process, with a limit
of minutes; results are appended to `bench/.cache/plan.jsonl`, and those that are there are not compiled again.
Prints tables, and draws docs/images/plan.png.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gemwright.plan.estimate import estimate, times
from gemwright.plan.hardware import parse_machine
from gemwright.plan.job import Job, make_job
from gemwright.variants import VARIANTS

HERE = Path(__file__).parent
RESULTS = HERE / ".cache" / "plan.jsonl"
CHART = HERE.parent / "docs" / "images" / "plan.png"
GB, MS = 1e9, 1e3
LATE = "not compiled in"
"""Beginning of the error of a compilation that took too long, which the next run tries again."""

Plan: TypeAlias = dict[str, Any]
"""The JSON of `gemwright plan`, or only `error`."""


@dataclass(frozen=True)
class Case:
    """A job as `gemwright plan` takes it."""

    model: str
    job: str
    on: str
    batch: int
    length: int
    mesh: str | None = None

    @property
    def title(self) -> str:
        """The case in words."""
        return f"{self.job} {self.model}, {self.batch:,} x {self.length:,}, {self.on}" + (
            f", {self.mesh}" if self.mesh else ""
        )

    @property
    def arguments(self) -> list[str]:
        """The arguments of `gemwright plan`."""
        mesh = ["--mesh", self.mesh] if self.mesh else []
        return [self.model, "--job", self.job, "--on", self.on, "--batch", str(self.batch), "--length",
                str(self.length), *mesh]  # fmt: skip

    def make(self) -> Job:
        """Return the job."""
        return make_job(
            self.job, VARIANTS[self.model].config, parse_machine(self.on), self.batch, self.length, self.mesh
        )


RUNS = [
    Case("gemma-7b", "train", "v5e:16x16", 16, 8192, "fsdp=16,tensor=16"),
    Case("paligemma-3b-224", "train", "v5e:16x16", 8192, 384, "data=2,fsdp=128"),
    Case("gemma-2b", "train", "v5e:16x16x2", 512, 8192, "slice=2,fsdp=256"),
    Case("gemma-2-2b", "train", "v5e:16x16x2", 512, 8192, "slice=2,fsdp=256"),
    Case("gemma-2-9b", "train", "v5p:8x16x32", 1024, 8192, "data=2,fsdp=512,tensor=4"),
    Case("gemma-2-27b", "train", "v5p:8x24x32", 768, 8192, "fsdp=768,tensor=8"),
    Case("recurrentgemma-9b", "train", "v5e:16x16", 256, 2048, "fsdp=256"),
    Case("gemma-7b", "train", "v5e:16x16", 256, 2048),
]
"""Training steps in the layouts of the reports; see docs/scale.md for what they do not say."""
DECODED = ["gemma-2b", "gemma-7b", "gemma-2-2b", "gemma-2-9b", "gemma-2-27b", "recurrentgemma-9b", "paligemma-3b-224"]
DECODING = [
    Case(model, "serve", f"{chip}:{'2x4' if (model, chip) == ('gemma-2-27b', 'v5e') else '2x2'}", 16, 2048)
    for model in DECODED
    for chip in ("v5e", "v6e")
]
SWEEP = {
    "gemma-2b": "fsdp={0}",
    "gemma-7b": "fsdp={1},tensor=16",
    "gemma-2-2b": "fsdp={0}",
    "gemma-2-9b": "fsdp={2},tensor=4",
}
"""Meshes of a slice by its number of chips, and by a sixteenth and a fourth of it."""
SLICES = {64: "8x8", 128: "8x16", 256: "16x16"}
PUBLISHED = Case("paligemma-3b-224", "train", "v5e:16x16", 8192, 384, "data=2,fsdp=128")
PUBLISHED_RATE, PUBLISHED_SHARE = 5189, 0.55
"""Tokens a second of a chip, and share of its peak (arXiv:2407.07726)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="limit of each compilation")
    parser.add_argument("--only", default="", help="compile only the cases whose title has this text")
    options = parser.parse_args()
    cases = [*DECODING, *RUNS]
    found = read_results()
    for case in cases:
        if case.title not in found and options.only in case.title:
            print(f"compiling {case.title}", file=sys.stderr)
            found[case.title] = compile_case(case, options.minutes)
            if LATE not in found[case.title].get("error", ""):
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps({"case": case.title, "plan": found[case.title]}) + "\n")
    show_training(RUNS, found)
    show_decoding(DECODING, found)
    show_published()
    draw(found)


def read_results() -> dict[str, Plan]:
    """Return the plans of the cases that were compiled before, by title."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {line["case"]: line["plan"] for line in lines}


def compile_case(case: Case, minutes: float) -> Plan:
    """Compile a step in a process."""
    command = [sys.executable, "-m", "gemwright", "plan", *case.arguments, "--compile", "--json"]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"{LATE} {minutes:g} minutes"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {**json.loads(done.stdout), "took": time.monotonic() - begin}


def show_training(cases: Sequence[Case], found: dict[str, Plan]) -> None:
    """Print the table of training steps."""
    print("\n| training step | on | estimated | compiled | fits | step | tokens/s a chip | MFU | took |")
    print("|---|---|---:|---:|---|---:|---:|---:|---:|")
    for case in cases:
        job, plan = case.make(), found.get(case.title, {"error": "not compiled"})
        needs = estimate(job)
        if "error" in plan:
            print(f"| {case.model}, {case.batch:,} x {case.length:,} | {layout(case)} | {needs.total / GB:.2f} GB "
                  f"| {plan['error']:.80} |")  # fmt: skip
            continue
        low, high = bounds(plan)
        rate = plan["tokens"] / plan["chips"] / high, plan["tokens"] / plan["chips"] / low
        peak = job.machine.chip.flops
        share = needs.flops * needs.useful / peak / high, needs.flops * needs.useful / peak / low
        print(f"| {case.model}, {case.batch:,} x {case.length:,} | {layout(case)} | {needs.total / GB:.2f} GB "
              f"| {plan['compiled']['bytes'] / GB:.2f} GB | {'yes' if plan['fits'] else 'no'} "
              f"| {MS * low:,.0f} to {MS * high:,.0f} ms | {rate[0]:,.0f} to {rate[1]:,.0f} "
              f"| {share[0]:.0%} to {share[1]:.0%} | {plan['compiled']['seconds']:.0f} s |")  # fmt: skip


def show_decoding(cases: Sequence[Case], found: dict[str, Plan]) -> None:
    """Print the table of decoding steps."""
    print("\n| decoding step | on | estimated | compiled | fits | step | tokens/s | took |")
    print("|---|---|---:|---:|---|---:|---:|---:|")
    for case in cases:
        job, plan = case.make(), found.get(case.title, {"error": "not compiled"})
        total = estimate(job).total / GB
        if "error" in plan:
            print(
                f"| {case.model}, {case.batch} x {case.length:,} | {case.on} | {total:.2f} GB | {plan['error']:.80} |"
            )
            continue
        low, high = bounds(plan)
        print(f"| {case.model}, {case.batch} x {case.length:,} | {case.on} | {total:.2f} GB "
              f"| {plan['compiled']['bytes'] / GB:.2f} GB | {'yes' if plan['fits'] else 'no'} "
              f"| {MS * low:.2f} to {MS * high:.2f} ms | {plan['tokens'] / high:,.0f} to {plan['tokens'] / low:,.0f} "
              f"| {plan['compiled']['seconds']:.0f} s |")  # fmt: skip


def bounds(plan: Plan) -> tuple[float, float]:
    """Return the seconds of a step if computing, reading and sending overlap wholly, and if they do not at all."""
    seconds = plan["seconds"].values()
    return max(seconds), sum(seconds)


def layout(case: Case) -> str:
    """Return the machine and its mesh."""
    return f"{case.on}, {case.mesh}" if case.mesh else case.on


def show_published() -> None:
    """Print what PaliGemma's published speed is of the peak, by the operations counted here."""
    job = PUBLISHED.make()
    needs, peak = estimate(job), job.machine.chip.flops
    each = needs.flops * job.machine.chips / needs.tokens
    seconds = times(job, needs).values()
    tokens = needs.tokens / job.machine.chips
    print(
        f"\nPaliGemma, {PUBLISHED_RATE:,} tokens/s a chip published at {PUBLISHED_SHARE:.0%}: by the operations of a "
        f"token, {each / 1e9:.1f}e9, {PUBLISHED_RATE * each / peak:.0%} of the peak with those computed twice and "
        f"{PUBLISHED_RATE * each * needs.useful / peak:.0%} without; the estimate is {tokens / sum(seconds):,.0f} to "
        f"{tokens / max(seconds):,.0f} tokens/s at 100%."
    )


def draw(found: dict[str, Plan]) -> None:
    """Draw step time and memory against chips: estimates as lines, compiled steps as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chart, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    counts = [64, 128, 256, 512, 1024, 2048, 4096]
    for number, (model, mesh) in enumerate(SWEEP.items()):
        jobs = [scale(model, mesh, chips) for chips in counts]
        needs = [estimate(job) for job in jobs]
        color = f"C{number}"
        seconds = [times(job, each).values() for job, each in zip(jobs, needs, strict=True)]
        low, high = [MS * max(each) for each in seconds], [MS * sum(each) for each in seconds]
        left.plot(counts, low, "-", color=color, label=model)
        left.fill_between(counts, low, high, color=color, alpha=0.15)
        right.plot(counts, [each.total / GB for each in needs], "-", color=color)
        for case in RUNS:
            plan = found.get(case.title, {"error": ""})
            if case.model == model and case.on.startswith("v5e") and case.length == 8192 and "error" not in plan:
                left.plot(plan["chips"], MS * bounds(plan)[0], "o", color=color)
                right.plot(plan["chips"], plan["compiled"]["bytes"] / GB, "o", color=color)
    right.axhline(parse_machine("v5e").chip.memory / GB, color="gray", linestyle=":")
    for axes, title in (
        (left, "Step, ms; shaded: if nothing overlaps"),
        (right, "Memory of a chip, GB; dotted: of TPU v5e"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_ylim(0, None)
        axes.set_xlabel("chips, TPU v5e")
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    left.legend(frameon=False)
    chart.savefig(CHART, dpi=130)


def scale(model: str, mesh: str, chips: int) -> Job:
    """Return a training step on v5e with a sequence of 8,192 tokens for each part of the batch."""
    each = min(chips, max(SLICES))
    slices = chips // each
    on = f"v5e:{SLICES[each]}x{slices}"
    text = f"slice={slices}," + mesh.format(each, each // 16, each // 4)
    return make_job("train", VARIANTS[model].config, parse_machine(on), None, 8192, text)


if __name__ == "__main__":
    main()
