"""The goodput of Gemma 7B's run on 4,096 chips of TPU v5e: arithmetic, and a simulation of failures that checks it.

    python recipes/goodput.py --out goodput

Prints what a step sends and reads, the size and time of a checkpoint, the best interval between checkpoints and the
goodput, by the formulas and by simulation; writes goodput.png.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from gemwright.plan.estimate import estimate, times
from gemwright.plan.goodput import HOUR, Failures, best_interval, goodput, mean_time_between, simulate
from gemwright.plan.hardware import parse_machine
from gemwright.plan.job import make_job
from gemwright.variants import VARIANTS

TOKENS = 6e12
UTILIZATION = 0.55
HOST_CHIPS = 4
HOST_NETWORK = 12.5e9
"""Bytes a second of a host of v5e: 100 Gbit/s (docs.cloud.google.com/tpu/docs/v5e)."""
STORAGE = 100e9
"""Bytes a second that the storage takes from all hosts: an assumption."""
INTERRUPTIONS, CHIP_HOURS = 419, 16384 * 54 * 24
"""Of Llama 3 405B on 16,384 H100: unexpected interruptions in 54 days (arXiv:2407.21783, section 3.3.4)."""
RESTART = 600.0
"""Seconds to notice a failure, start again, compile and load: an assumption."""
PAUSE = 5.0
"""Seconds in which steps wait while a checkpoint is copied to the hosts: an assumption."""
CHECKSUMS = 1e9
"""Bytes a second of SHA-256 in the process that writes the checksums of a checkpoint: an assumption."""
SAVE_EVERY = 50
"""Steps between checkpoints of `gemwright train`."""
SEEDS = 8


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint beside failures of some rate."""

    name: str
    failures: Failures


def main() -> None:
    """Print the arithmetic and the goodput, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path())
    out = parser.parse_args().out
    machine = parse_machine("v5e:16x16x16")
    mesh, batch = "slice=16,data=16,tensor=16", 2048
    job = make_job("train", VARIANTS["gemma-7b"].config, machine, batch, 8192, mesh)
    needs = estimate(job)
    seconds = times(job, needs)
    step = max(seconds["compute"] * needs.useful / UTILIZATION, *seconds.values())
    hosts = machine.chips // HOST_CHIPS
    print(f"mesh {mesh}, {batch:,} x {job.length:,} tokens a step, {hosts:,} hosts")
    print(f"  sent in the slice     {needs.links / 1e9:8.2f} GB of a chip  {seconds['links'] * 1e3:8.0f} ms")
    print(f"  sent between slices   {needs.network / 1e9:8.2f} GB of a chip  {seconds['network'] * 1e3:8.0f} ms")
    print(f"  step                  {step:8.2f} s   {TOKENS / needs.tokens * step / 86400:8.1f} days of steps")
    data = 4 * needs.tokens / step
    print(f"  data, 4 bytes a token {data / hosts / 1e3:8.1f} kB/s of a host; {data / 1e6:.1f} MB/s if each reads all")
    size = 12 * sum(_parameters())
    write = max(size / hosts / HOST_NETWORK, size / STORAGE)
    print(f"  checkpoint            {size / 1e9:8.1f} GB, {size / hosts / 1e6:.0f} MB of a host, {write:.2f} s")
    between = mean_time_between(machine.chips, INTERRUPTIONS, CHIP_HOURS)
    print(f"  between failures      {between / HOUR:8.1f} hours")
    cases = [
        Case("in the background", Failures(between, RESTART, PAUSE, write)),
        Case("in the background, checksums", Failures(between, RESTART, PAUSE, write + size / CHECKSUMS)),
        Case("steps wait", Failures(between, RESTART, PAUSE + write)),
        Case("steps wait, 10 x the failures", Failures(between / 10, RESTART, PAUSE + write)),
    ]
    report(cases, step)
    plot(cases, out / "goodput.png")


def _parameters() -> list[int]:
    """Return the sizes of the weights of Gemma 7B."""
    from gemwright import tree
    from gemwright.model.stack import stacked_specs

    return [spec.size for spec in tree.flatten(stacked_specs(VARIANTS["gemma-7b"].config)).values()]


def report(cases: list[Case], step: float) -> None:
    """Print the best intervals and the goodput by the formula and by simulation."""
    print(f"{'checkpoints':32}{'interval':>10}{'steps':>8}{'formula':>10}{'simulated':>11}{'every 50':>14}")
    for case in cases:
        interval = best_interval(case.failures)
        mean = simulated(case.failures, interval)
        text = f"{case.name:32}{interval / 60:6.1f} min{round(interval / step):8,}"
        often = goodput(case.failures, SAVE_EVERY * step)
        print(f"{text}{goodput(case.failures, interval):10.2%}{mean:11.2%}{often:14.2%}")


def simulated(failures: Failures, interval: float) -> float:
    """Return the mean goodput of simulated runs, each of 2,000 times that between failures."""
    return statistics.fmean(simulate(failures, interval, 2000 * failures.between, seed) for seed in range(SEEDS))


def plot(cases: list[Case], path: Path) -> None:
    """Draw goodput by interval: lines by the formula, points by simulation."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for case in cases:
        intervals = [60 * 2 ** (power / 4) for power in range(-4, 33)]
        (line,) = axes.semilogx([i / 60 for i in intervals], [100 * goodput(case.failures, i) for i in intervals])
        points = intervals[::4]
        found = [100 * simulated(case.failures, interval) for interval in points]
        axes.plot([i / 60 for i in points], found, "o", color=line.get_color(), label=case.name)
    axes.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:g}")
    axes.set(xlabel="minutes between checkpoints", ylabel="goodput, %", ylim=(50, 100))
    axes.set_title("Gemma 7B on 4,096 chips: lines by the formula, points by simulation", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
