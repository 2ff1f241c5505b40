"""`gemwright plan`: whether a job fits a machine, and how fast it can be."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError
from gemwright.runtime.installation import require_extra

if TYPE_CHECKING:
    from gemwright.plan.compile import Compiled
    from gemwright.plan.estimate import Estimate
    from gemwright.plan.job import Job

UTILIZATION = 0.55
"""Share of the peak that training reached on TPU v5e (PaliGemma's report, arXiv:2407.07726)."""
DAY, HOUR = 86400, 3600


def plan(
    model: o.ModelArgument,
    job: Annotated[
        str,
        typer.Option(
            metavar="[generate|serve|tune|train|pretrain]",
            help="Decode for one or for many; LoRA; all weights, after other training or from nothing.",
        ),
    ] = "generate",
    on: Annotated[
        str, typer.Option(metavar="MACHINE", help="this, a chip such as h100 or h100:8, or a TPU slice: v5e:16x16.")
    ] = "this",
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of sequences, over all chips.")] = None,
    length: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens of a sequence. Default: 2048.")] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, metavar="N", help="Tokens to train on, such as 6e12, for the days."),
    ] = None,
    mesh: o.MeshOption = None,
    compile_step: Annotated[
        bool, typer.Option("--compile", help="Compile the step ahead of time; a TPU needs pip install libtpu.")
    ] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Plan a job: its memory, time and chips, before renting them.

    MODEL is a published name, a path or a config. Nothing is downloaded.
    """
    import_jax()
    from gemwright.plan import compile as compiler
    from gemwright.plan import estimate, fit, hardware
    from gemwright.plan.job import make_job

    planned = make_job(job, _find_config(model), hardware.parse_machine(on), batch, length, mesh)
    needs = estimate.estimate(planned)
    compiled = None
    if compile_step:
        require_extra("train", ("optax",), "Compiling a step")
        render.status("Compiling ...")
        compiled = compiler.compile_job(planned)
    step = compiler.refine(needs, compiled) if compiled else needs
    seconds = estimate.times(planned, step)
    fitting = (compiled.total if compiled else needs.total) <= planned.machine.chip.memory
    change = None if fitting else fit.find_change(planned)
    if as_json:
        render.write_json(_document(planned, step, compiled, seconds, fitting, change))
        return
    render.facts(_describe(model, planned, step, compiled, seconds, tokens), render.out())
    chip = planned.machine.chip
    verdict = f"It {'fits' if fitting else 'does not fit'} into the {render.size(int(chip.memory))} of {chip.title}."
    render.write(f"{verdict}\n")
    if not fitting:
        render.write(f"The nearest change that makes it fit: {change or 'none that is known here'}.\n")


def _find_config(model: str):
    from gemwright.checkpoint.locate import locate
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.variants import VARIANTS

    if model in VARIANTS:
        return VARIANTS[model].config
    return open_checkpoint(locate(model)).config


def _describe(
    model: str,
    job: "Job",
    needs: "Estimate",
    compiled: "Compiled | None",
    seconds: dict[str, float],
    tokens: float | None,
) -> list[tuple[str, str]]:
    """Return the plan as names and texts."""
    chip, step, bound = job.machine.chip, max(seconds.values()), max(seconds, key=lambda name: seconds[name])
    sizes = ", ".join(f"{axis}={size}" for axis, size in job.mesh.items() if size > 1) or "one chip"
    facts = [
        ("job", f"{job.kind} {model}: {job.batch:,} x {job.length:,} tokens"),
        ("machine", f"{job.machine.chips:,} x {chip.title} ({sizes}); {chip.source}"),
        *((f"  {name}", render.size(int(nbytes))) for name, nbytes in needs.memory.items()),
        ("memory", f"{render.size(int(needs.total))} of a chip, estimated"),
    ]
    if compiled is not None:
        text = f"{render.size(compiled.total)} of a chip: {render.size(compiled.arguments)} of arguments and "
        text += f"{render.size(compiled.temporaries)} of temporaries, in {compiled.seconds:.0f} s"
        facts.append(("compiled", text))
    work = _describe_work(needs, compiled)
    facts += [(f"  {name}", f"{1000 * time:.3g} ms: {work[name]}") for name, time in seconds.items()]
    facts.append(("step", f"{1000 * step:.3g} ms at least, bound by {bound}: {needs.tokens / step:,.0f} tokens/s"))
    if tokens is not None:
        if not job.trains:
            raise GemwrightError("--tokens is the budget of a training; use it with the job tune or train.")
        days = tokens / needs.tokens * max(step, seconds["compute"] * needs.useful / UTILIZATION) / DAY
        hours = days * DAY / HOUR * job.machine.chips
        facts.append(("budget", f"{tokens:.3g} tokens: {days:,.1f} days, {hours:,.0f} chip-hours at {UTILIZATION:.0%}"))
    return facts


def _describe_work(needs: "Estimate", compiled: "Compiled | None") -> dict[str, str]:
    """Return what a chip does in each of the times of a step."""
    source = "estimated" if compiled is None else "compiled"
    links = f"{render.size(int(needs.links))} sent to other chips, {source}"
    if compiled is not None and compiled.collectives:
        links += f" ({', '.join(f'{name} {render.size(int(size))}' for name, size in compiled.collectives.items())})"
    return {
        "compute": f"{needs.flops:.3g} operations, {source}",
        "memory": f"{render.size(int(needs.traffic))} read and written, estimated",
        "links": links,
        "network": f"{render.size(int(needs.network))} sent to other slices, estimated",
    }


def _document(
    job: "Job",
    needs: "Estimate",
    compiled: "Compiled | None",
    seconds: dict[str, float],
    fitting: bool,
    change: str | None,
) -> dict[str, object]:
    """Return the plan as JSON."""
    return {
        "job": job.kind,
        "batch": job.batch,
        "length": job.length,
        "mesh": dict(job.mesh),
        "chip": job.machine.chip.title,
        "chips": job.machine.chips,
        "memory_bytes": {name: round(nbytes) for name, nbytes in needs.memory.items()},
        "flops": needs.flops,
        "useful_flops": needs.flops * needs.useful,
        "traffic_bytes": needs.traffic,
        "links_bytes": needs.links,
        "network_bytes": needs.network,
        "seconds": seconds,
        "tokens": needs.tokens,
        "compiled": None if compiled is None else {**asdict(compiled), "bytes": compiled.total},
        "fits": fitting,
        "change": change,
    }
