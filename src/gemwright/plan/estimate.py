"""What a step of a job takes of each chip, by formulas: memory, operations, traffic and time."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gemwright import sharding, tree
from gemwright.model.config import Attention, Config, Recurrent
from gemwright.model.loss import LOGITS
from gemwright.model.params import ParamSpec
from gemwright.model.stack import stacked_specs
from gemwright.model.state import state_bytes
from gemwright.plan.job import Job
from gemwright.train import lora


@dataclass(frozen=True)
class Estimate:
    """The needs of one step, of one chip.

    Attributes:
        memory: Bytes by kind.
        flops: Floating-point operations.
        traffic: Bytes of memory that are read and written.
        links: Bytes that are sent to other chips of the slice.
        network: Bytes that are sent to other slices.
        tokens: Tokens of all chips.
        useful: Share of the operations that are not computed a second time.
        attention: Operations of training that are products of queries, keys and values.
    """

    memory: Mapping[str, float]
    flops: float
    traffic: float
    links: float
    network: float
    tokens: int
    useful: float
    attention: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of memory."""
        return sum(self.memory.values())


def estimate(job: Job) -> Estimate:
    """Estimate a step of a job."""
    return _estimate_training(job) if job.trains else _estimate_decoding(job)


def times(job: Job, needs: Estimate) -> dict[str, float]:
    """Return the seconds of a step by what bounds it: the roofline is the longest."""
    chip = job.machine.chip
    found = {"compute": needs.flops / chip.flops, "memory": needs.traffic / chip.bandwidth}
    if needs.links and chip.link:
        found["links"] = needs.links / chip.link
    if needs.network:
        found["network"] = needs.network / chip.network
    return found


def _specs(config: Config, tower: bool = False) -> Iterator[tuple[str, ParamSpec]]:
    yield from tree.flatten(stacked_specs(config, tower)).items()


def _held(job: Job, each: float) -> float:
    """Return the bytes of the weights of a chip, of `each` bytes a parameter."""
    total = 0.0
    for _, spec in _specs(job.config, job.has_tower):
        matrix = len([axis for axis in spec.axes if axis != "repeats"]) > 1
        divided = sharding.mesh_axes(sharding.divide(spec.axes, spec.shape, job.sizes)) if matrix else ()
        total += spec.size / math.prod(job.sizes[axis] for axis in divided)
    return each * total


def _count(config: Config) -> tuple[int, int]:
    """Return the parameters of the layers and of the table."""
    sizes = {path: spec.size for path, spec in _specs(config)}
    layers = sum(size for path, size in sizes.items() if path.startswith("stages."))
    return layers, config.vocab * config.width


def _attention_flops(config: Config, length: int) -> float:
    """Return the operations of scores and sums of one sequence, forward."""
    total = 0.0
    for layer in config.layers:
        if isinstance(layer.mixer, Attention):
            seen = min(layer.mixer.window or length, length)
            total += 4 * layer.mixer.heads * layer.mixer.head_dim * (length * seen - seen * (seen - 1) / 2)
    return total


def _estimate_training(job: Job) -> Estimate:
    config, tensor = job.config, job.size("tensor")
    layers, table = _count(config)
    tokens, width, depth = job.tokens, config.width, len(config.layers)
    full = job.kind == "train"
    passes = 3 if full else 2
    rank = 0 if full else sum((o + i) * r * job.rank for r, o, i in lora.targets(config).values())
    item = job.machine.chip.itemsize
    weights = _held(job, 4 if full else item) + 4 * rank
    gathered = item * (layers / depth) / tensor  # one layer
    widest = max(layer.mlp.hidden for layer in config.layers)
    images = _estimate_images(job, passes)
    mixer = max(_mixer_width(layer.mixer) for layer in config.layers)
    activations = (
        item * tokens * width * depth
        + tokens * (TOKEN_WIDTHS * width + MLP_WIDTHS * widest / tensor + MIXER_WIDTHS * mixer / tensor) * item
        + 2 * gathered
        + images.activations
    )
    loss = 3 * 4 * min(LOGITS, tokens * config.vocab) / tensor
    memory = {
        "weights": weights,
        "optimizer": 2 * _held(job, 4) if full else 8 * rank,
        "gradients": _held(job, 4) if full else 4 * rank,
        **(_peak(table / tensor, activations, loss) if full else {"activations": activations, "loss": loss}),
    }
    if not full and job.size("fsdp", "sequence") > 1:
        memory["table"] = item * table / tensor
    attention = job.sequences * _attention_flops(config, job.length) / job.size("sequence") / tensor
    layer_flops = 2 * (passes + 1) * tokens * layers / tensor + 4 * attention  # forward, again, and the gradients
    head_flops = 2 * passes * tokens * table / tensor
    shared = 1 - 1 / job.size("fsdp", "sequence")
    links = shared * (2 * 2 + 2 * full) * (layers + table) / tensor
    if tensor > 1:
        links += 2 * 6 * depth * tokens * width * 2 * (1 - 1 / tensor)
    return Estimate(
        memory=memory,
        flops=layer_flops + head_flops + images.flops,
        traffic=3 * 2 * (layers + table) / tensor + (20 if full else 2) * weights / 4 + 12 * activations,
        links=links,
        network=2 * weights * (1 - 1 / job.size("slice", "data")) if full and job.size("slice") > 1 else 0.0,
        tokens=job.batch * job.length,
        useful=(layer_flops * passes / (passes + 1) + head_flops + images.useful_flops)
        / (layer_flops + head_flops + images.flops),
        attention=4 * attention,
    )


def _peak(table: float, activations: float, loss: float) -> dict[str, float]:
    """Return what a chip holds at the peak of a step that trains all weights.

    The gradient of the embedding is whole until it is divided: twice in the loss (that of the head, and the sum), and
    once while the layers have theirs.
    """
    phases = {"table": 8 * table, "loss": loss}, {"table": 4 * table, "activations": activations}
    return max(phases, key=lambda phase: sum(phase.values()))


@dataclass(frozen=True)
class _Images:
    """What the images of a step take of a chip: operations, those not computed again, and bytes."""

    flops: float = 0.0
    useful_flops: float = 0.0
    activations: float = 0.0


def _estimate_images(job: Job, passes: int) -> _Images:
    """Estimate the vision tower, which has no gradient unless all weights are trained."""
    vision = job.config.vision
    if vision is None or not job.has_tower:
        return _Images()
    patches = job.sequences * vision.grid**2
    weights = sum(spec.size for path, spec in _specs(job.config, True) if path.startswith("vision.layers."))
    forward = 2 * patches * weights + 4 * patches * vision.grid**2 * vision.width * vision.depth
    again, backward = (1, 2) if passes == 3 else (0, 0)
    kept = patches * vision.width * (vision.depth if again else 1)
    return _Images(
        flops=forward * (1 + again + backward),
        useful_flops=forward * (1 + backward),
        activations=job.machine.chip.itemsize * kept + 4 * job.sequences * 3 * vision.image_size**2,
    )


TOKEN_WIDTHS, MLP_WIDTHS, MIXER_WIDTHS = 8, 8, 8
"""Activations of the layer whose gradient is computed: multiples of its widths."""


def _mixer_width(mixer: Attention | Recurrent) -> int:
    if isinstance(mixer, Recurrent):
        return 4 * mixer.width
    return (mixer.heads + mixer.kv_heads) * mixer.head_dim


def _estimate_decoding(job: Job) -> Estimate:
    config, tensor = job.config, job.size("tensor")
    layers, table = _count(config)
    weights = _held(job, job.machine.chip.itemsize)
    mixers = [layer.mixer for layer in config.layers]
    kv_heads = min((mixer.kv_heads for mixer in mixers if isinstance(mixer, Attention)), default=1)
    divided = math.gcd(tensor, kv_heads)
    cache = state_bytes(config, job.sequences, job.length, "bfloat16") / divided
    scores = 4 * job.sequences * job.length * max(map(_mixer_width, mixers)) / 256
    return Estimate(
        memory={"weights": weights, "cache": cache, "activations": scores + 4 * job.sequences * config.vocab / tensor},
        flops=2 * job.sequences * (layers + table) / tensor
        + job.sequences * _attention_flops(config, job.length) / job.length / tensor,
        traffic=weights + cache,
        links=2 * 2 * len(config.layers) * job.sequences * config.width * 2 * (1 - 1 / tensor),
        network=0.0,
        tokens=job.batch,
        useful=1.0,
    )
