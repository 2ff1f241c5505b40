"""A job's step compiled ahead of time, for a TPU slice that is not there, or for the devices of this machine."""

import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from gemwright import sharding, tree
from gemwright.errors import GemwrightError
from gemwright.model import transformer
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights, ParamSpec, param_specs
from gemwright.model.state import DecodeState, abstract_state, divided_shapes
from gemwright.plan.estimate import Estimate
from gemwright.plan.hardware import Machine
from gemwright.plan.job import Job
from gemwright.plan.program import count
from gemwright.train.objectives.image_text import ImageText
from gemwright.train.objectives.objective import NEXT_TOKEN, lora_shapes, weight_shapes
from gemwright.train.optimizer import make_optimizer
from gemwright.train.program import compile_step
from gemwright.train.recipe import Recipe
from gemwright.train.step import describe_state
from gemwright.typing import Array

STEPS = 1000
"""Number of steps of the schedule, which does not change the program's needs."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step, for one chip.

    Attributes:
        arguments: Bytes of weights, states and batch.
        temporaries: Bytes of gradients and activations.
        seconds: Duration of the compilation.
        flops: Floating-point operations, without those inside kernels.
        collectives: Bytes that collectives send, by their name.
        has_kernels: Whether attention is a kernel, whose operations the program's text does not tell.
    """

    arguments: int
    temporaries: int
    seconds: float
    flops: float
    collectives: Mapping[str, float]
    has_kernels: bool

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return self.arguments + self.temporaries


def compile_job(job: Job) -> Compiled:
    """Compile a step of a job.

    Raises:
        GemwrightError: The compiler is not installed, does not know the machine, or refuses the program, such as for
            want of memory.
    """
    begin = time.monotonic()
    mesh = sharding.make_mesh(job.mesh, find_devices(job.machine))
    try:
        with sharding.use(mesh):
            compiled = _compile_training(job) if job.trains else _compile_decoding(job)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise GemwrightError(f"The compiler refuses the step: {reason:.400}; make it smaller.") from error
    analysis: Any = compiled.memory_analysis()
    arguments, temporaries = int(analysis.argument_size_in_bytes), int(analysis.temp_size_in_bytes)
    counts = count(compiled.as_text() or "")
    seconds = time.monotonic() - begin
    return Compiled(arguments, temporaries, seconds, counts.flops, counts.collectives, counts.has_kernels)


def refine(needs: Estimate, compiled: Compiled) -> Estimate:
    """Return an estimate with the compiler's operations and bytes to other chips in place of its own.

    Traffic with a chip's own memory stays an estimate: the compiler does not say how much of it a cache saves. The
    operations of attention in a kernel do, too.
    """
    links = sum(compiled.collectives.values()) if needs.links else 0.0
    flops = compiled.flops + (needs.attention if compiled.has_kernels else 0.0)
    return replace(needs, flops=flops or needs.flops, links=links)


def find_devices(machine: Machine) -> Sequence[Any]:
    """Return the devices of a slice that is not there, or those of this machine.

    Raises:
        GemwrightError: The compiler is not installed or does not know the machine.
    """
    if machine.chip.topology is None:
        if machine.chips > len(jax.devices()) or machine.chip.source != "measured":
            raise GemwrightError(
                f"A step for {machine.chip.title} can be compiled only on it; leave out --compile, or give a TPU."
            )
        return jax.devices()[: machine.chips]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so several processes may compile
    from jax.experimental import topologies

    name = f"{machine.chip.topology}:{'x'.join(map(str, machine.shape))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=machine.slices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise GemwrightError(
            f"{name} cannot be compiled for ({reason:.200}); give a slice that exists, and install the compiler with "
            "pip install libtpu."
        ) from error
    if len(found.devices) != machine.chips:
        raise GemwrightError(
            f"The compiler makes {len(found.devices):,} devices of the {machine.chips:,} chips of {name}; leave out "
            "--compile, or give another TPU, such as v5p."
        )
    return found.devices


def _compile_training(job: Job) -> jax.stages.Compiled:
    method = "full" if job.kind == "train" else "lora"
    dtype = "float32" if job.machine.chip.itemsize == 4 else "bfloat16"
    recipe = Recipe(method=method, dtype=dtype, remat="layers", batch_size=job.batch, length=job.length, rank=job.rank)
    optimizer, frozen = make_optimizer(recipe, STEPS), None
    tower = job.has_tower
    trained: Any = weight_shapes(job.config, "float32", tower=tower)
    if method == "lora":
        frozen = weight_shapes(job.config, dtype, tower=tower)
        trained = lora_shapes(job.config, recipe)
    state = describe_state(optimizer, trained, recipe)
    return compile_step(job.config, recipe, optimizer, state, frozen, ImageText() if tower else NEXT_TOKEN)


def _compile_decoding(job: Job) -> jax.stages.Compiled:
    dtype = jnp.float32 if job.machine.chip.itemsize == 4 else jnp.bfloat16

    def place(_: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding.sharding_of(spec.axes, spec.shape))

    params = tree.map_with_path(place, param_specs(job.config))
    state = divided_shapes(abstract_state(job.config, job.batch, job.length, "bfloat16"))
    tokens = jax.ShapeDtypeStruct(
        (job.batch, 1), jnp.int32, sharding=sharding.sharding_of(("batch", None), (job.batch, 1))
    )
    function = jax.jit(functools.partial(_decode, job.config), donate_argnums=1)
    return function.lower(params, state, tokens).compile()


def _decode(
    config: Config, params: ModelWeights, state: DecodeState, tokens: Array
) -> tuple[Array, DecodeState | None]:
    """Return the likeliest next token of each sequence, and the state after the tokens."""
    hidden, state_after = transformer.forward(config, params, tokens, state)
    return jnp.argmax(transformer.logits(config, params, hidden[:, -1:]), axis=-1), state_after
