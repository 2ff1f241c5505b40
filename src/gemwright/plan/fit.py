"""Whether a job fits its machine, and the nearest change that makes it fit."""

from collections.abc import Iterator
from dataclasses import replace

from gemwright.plan.estimate import estimate
from gemwright.plan.hardware import CHIPS, Machine
from gemwright.plan.job import Job
from gemwright.sharding import BATCH_AXES

MARGIN = 0.95
"""Share of a chip's memory that a job may take."""
MOST_CHIPS = 8192


def fits(job: Job) -> bool:
    """Return whether the estimate of a job fits into the memory of its chips."""
    return estimate(job).total <= MARGIN * job.machine.chip.memory


def find_change(job: Job) -> str | None:
    """Return the first of the nearest changes that makes a job fit, as words; None if none does."""
    return next((words for words, changed in changes(job) if fits(changed)), None)


def changes(job: Job) -> Iterator[tuple[str, Job]]:
    """Yield changes: of the batch, the mesh, the method, the length, the number of chips and the chip."""
    least = job.size(*BATCH_AXES) if job.trains else 1
    batch = job.batch
    while batch // 2 >= least and batch // 2 % least == 0:
        batch //= 2
        yield f"a batch of {batch:,}", replace(job, batch=batch)
    job = replace(job, batch=least)
    sizes = job.sizes
    while job.trains and sizes["fsdp"] % 2 == 0:
        sizes = {**sizes, "fsdp": sizes["fsdp"] // 2, "tensor": 2 * sizes["tensor"]}
        mesh = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        changed = replace(job, mesh=sizes)
        yield f"the mesh {mesh}", replace(changed, batch=changed.size(*BATCH_AXES))
    if job.kind == "train":
        yield "LoRA, the job tune", replace(job, kind="tune")
    if job.length >= 512:
        yield f"sequences of {job.length // 2:,} tokens", replace(job, length=job.length // 2)
    yield from _larger_machines(job)


def _larger_machines(job: Job) -> Iterator[tuple[str, Job]]:
    axis, machine = "fsdp" if job.trains else "tensor", job.machine
    chips = machine.chips
    while machine.chip.link and 2 * chips <= MOST_CHIPS:
        chips *= 2
        sizes = {**job.sizes, axis: job.sizes[axis] * chips // machine.chips}
        larger = replace(job, machine=Machine(machine.chip, (chips,)), mesh=sizes)
        yield f"{chips:,} chips", replace(larger, batch=larger.size(*BATCH_AXES) if job.trains else job.batch)
    for name, chip in sorted(CHIPS.items(), key=lambda item: item[1].memory):
        if chip.memory > machine.chip.memory:
            yield f"{chip.title} (--on {name})", replace(job, machine=replace(machine, chip=chip))
