"""A job and how its machine shares the work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast, get_args

from gemwright.errors import GemwrightError
from gemwright.families import find_family
from gemwright.model.config import Config
from gemwright.plan.hardware import Machine
from gemwright.sharding import BATCH_AXES, MESH_AXES, parse_mesh

Kind: TypeAlias = Literal["generate", "serve", "tune", "train"]
"""Decode for one user, or for many; LoRA on frozen bfloat16 weights; or train all weights."""
KINDS = get_args(Kind)
"""All kinds of jobs."""
ALIASES = {"pretrain": "train"}
"""Other names of kinds: the step is the same, whatever the weights begin with."""


@dataclass(frozen=True)
class Job:
    """A job on a machine.

    Attributes:
        kind: What is done.
        config: The model.
        machine: The machine.
        batch: Number of sequences of a step, over all chips.
        length: Tokens of a sequence: of the cache if it decodes.
        mesh: Sizes of the mesh's axes.
        rank: Rank of LoRA.
    """

    kind: Kind
    config: Config
    machine: Machine
    batch: int
    length: int
    mesh: Mapping[str, int] = field(default_factory=dict[str, int])
    rank: int = 16

    @property
    def has_tower(self) -> bool:
        """Whether a step encodes an image for each sequence: PaliGemma is trained so, Gemma 3 on stored embeddings."""
        return self.trains and find_family(self.config).image_prompt == "prefix"

    @property
    def trains(self) -> bool:
        """Whether a step has a gradient."""
        return self.kind in ("tune", "train")

    def size(self, *axes: str) -> int:
        """Return the number of parts into which axes of the mesh divide something."""
        return math.prod(self.mesh.get(axis, 1) for axis in axes)

    @property
    def sequences(self) -> int:
        """Sequences of a chip."""
        return -(-self.batch // self.size(*BATCH_AXES))

    @property
    def tokens(self) -> int:
        """Tokens of a chip in a step."""
        return self.sequences * (self.length // self.size("sequence") if self.trains else 1)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of all axes of the mesh."""
        return {axis: self.mesh.get(axis, 1) for axis in MESH_AXES}


def make_job(
    kind: str, config: Config, machine: Machine, batch: int | None, length: int | None, mesh: str | None
) -> Job:
    """Return a job; by default a sequence for each part of the batch, of 2,048 tokens or as many as the model takes.

    Raises:
        GemwrightError: The kind is unknown, the mesh is not of the machine's chips, or a number is out of range.
    """
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise GemwrightError(f"The job {kind!r:.40} is not known; use one of {', '.join([*KINDS, *ALIASES])}.")
    sizes = _default_mesh(kind, machine) if mesh is None else parse_mesh(mesh)
    if math.prod(sizes.values()) != machine.chips:
        raise GemwrightError(
            f"The mesh {mesh} has {math.prod(sizes.values()):,} parts and the machine {machine.chips:,} chips; make "
            "them equal."
        )
    length = min(2048, config.max_length) if length is None else length
    if not 0 < length <= config.max_length:
        raise GemwrightError(f"length {length:,} is not between 1 and the model's {config.max_length:,} tokens.")
    job = Job(cast(Kind, kind), config, machine, 1, length, sizes)
    each = 16 if kind == "serve" else 1
    job = replace(job, batch=each * job.size(*BATCH_AXES) if batch is None else batch)
    if job.batch < 1 or (job.trains and job.batch % job.size(*BATCH_AXES)):
        raise GemwrightError(
            f"A batch of {job.batch:,} sequences cannot be divided into {job.size(*BATCH_AXES):,} parts; give a "
            "multiple."
        )
    return job


def _default_mesh(kind: str, machine: Machine) -> dict[str, int]:
    """Return a mesh: training divides weights and batch, decoding heads and hidden widths."""
    axis = "fsdp" if kind in ("tune", "train") else "tensor"
    return {"slice": machine.slices, axis: machine.chips // machine.slices}
