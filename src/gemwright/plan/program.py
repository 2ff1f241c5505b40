"""What one run of a compiled program does, counted in its text.

XLA's own cost analysis counts the body of a loop once, and a training step is mostly loops over layers. Here every
instruction counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
BODY = re.compile(r"body=%?([\w.\-]+)")
INDEX = re.compile(r"index=(\d+)")
VALUE = re.compile(r"(\d+)\)")
WINDOW = re.compile(r"window=\{([^}]*)\}")
LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
BITS = {"pred": 8, "f8e4m3fn": 8, "f8e5m2": 8}
"""Bits of dtypes whose names do not end with them."""
KERNEL = 'custom_call_target="tpu_custom_call"'
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, the text of its type, its operation and the text after that."""

    name: str
    kind: str
    operation: str
    rest: str


Computations: TypeAlias = dict[str, list[Instruction]]
"""The instructions of each computation of a program."""


@dataclass(frozen=True)
class Counts:
    """What a program does, of one chip.

    Attributes:
        flops: Operations of matrix products, without those inside Pallas kernels.
        collectives: Bytes that collectives send, by their name. On a ring an all-reduce sends its result twice, a
            reduce-scatter its operand, and others their result; all but a share of one over the number of chips.
        has_kernels: Whether the program calls Pallas kernels.
    """

    flops: float
    collectives: dict[str, float]
    has_kernels: bool


def count(text: str) -> Counts:
    """Count the text of a compiled program, `jax.stages.Compiled.as_text()`.

    A loop whose number of iterations the compiler does not know counts once.
    """
    computations, entry = _parse(text)
    found = dict.fromkeys(COLLECTIVES, 0.0)
    continued, flops = _find_continued(computations), 0.0
    shapes = {name: {each.name: each.kind for each in body} for name, body in computations.items()}
    for name, times in _runs(computations, entry).items():
        for each in computations[name]:
            flops += times * _flops(each, shapes[name])
            collective = each.operation.removesuffix("-start")
            if collective in found and name not in continued:
                found[collective] += times * _sent(each, shapes[name])
    sent = {name: nbytes for name, nbytes in found.items() if nbytes}
    return Counts(flops, sent, KERNEL in text)


def _find_continued(computations: Computations) -> set[str]:
    """Return the computations that only continue a collective that another has begun, while others compute.

    The compiler for TPUs divides one into fusions: a start, steps beside products, and an end, each of which names it.
    """
    ends = (each for body in computations.values() for each in body if each.name.startswith("async-collective-done"))
    steps = (name for name in computations if name.startswith("async_collective_fusion"))
    return {*steps, *(name for each in ends for name in _called(each))}


def _parse(text: str) -> tuple[Computations, str]:
    """Return the instructions of each computation, and the name of the first to run."""
    computations: Computations = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        header = COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
            continue
        instruction = INSTRUCTION.match(line)
        if instruction:
            current.append(Instruction(*instruction.groups()))
    return computations, entry


def _runs(computations: Computations, entry: str) -> dict[str, float]:
    """Return how often each computation runs."""
    runs = dict.fromkeys(computations, 0.0)

    def run(name: str, times: float) -> None:
        runs[name] += times
        for each in computations[name]:
            inner = times * _iterations(each, computations) if each.operation == "while" else times
            for called in _called(each):
                if called in computations:
                    run(called, inner)

    run(entry, 1.0)
    return runs


def _iterations(loop: Instruction, computations: Computations) -> int:
    """Return the number of iterations of a loop that counts from 0, as those of `jax.lax.scan` do.

    XLA writes it beside the loop on some platforms; on all, the condition compares a counter with the limit.
    """
    known, condition, body = (pattern.search(loop.rest) for pattern in (TRIPS, CONDITION, BODY))
    if known or condition is None or body is None:
        return int(known[1]) if known else 1
    named = {each.name: each for each in computations.get(condition[1], ())}
    for each in named.values():
        if each.operation == "compare" and "direction=LT" in each.rest:
            counter, limit = (named.get(name) for name in _operands(each))
            index = INDEX.search(counter.rest) if counter else None
            value = VALUE.match(limit.rest) if limit else None
            if index and value:
                return -(-int(value[1]) // _step(computations[body[1]], int(index[1])))
    return 1


def _step(body: list[Instruction], index: int) -> int:
    """Return by how much an iteration increases a counter: more than 1 if the compiler unrolled the loop."""
    named, total = {each.name: each for each in body}, 0
    names = _operands(body[-1])[index : index + 1]
    while names:
        each = named.get(names.pop())
        if each is None:
            break
        value = VALUE.match(each.rest)
        if each.operation == "constant" and value:
            total += int(value[1])
        elif each.operation in ("add", "copy"):
            names += _operands(each)
    return max(1, total)


def _called(instruction: Instruction) -> Iterator[str]:
    for found in CALLED.findall(instruction.rest):
        yield from (name.strip().removeprefix("%") for name in found.split(",") if name.strip())


def _sent(instruction: Instruction, kinds: dict[str, str]) -> float:
    """Return the bytes that a collective sends."""
    sizes = _sizes(instruction.kind)
    result = max(sizes) if instruction.operation.endswith("-start") else sum(sizes)
    if instruction.operation.startswith("reduce-scatter"):
        return sum(sum(_sizes(kinds.get(name, ""))) for name in _operands(instruction))
    return 2 * result if instruction.operation.startswith("all-reduce") else result


def _operands(instruction: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])


def _dimensions(kind: str) -> tuple[int, ...]:
    found = SHAPE.search(kind)
    return tuple(int(size) for size in found[2].split(",") if size) if found else ()


def _sizes(kind: str) -> list[float]:
    """Return the bytes of every array of a type."""
    found = SHAPE.findall(kind)
    return [_bits(dtype) / 8 * math.prod(int(size) for size in sizes.split(",") if size) for dtype, sizes in found] or [
        0.0
    ]


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+$", dtype)
    return BITS.get(dtype) or (int(digits[0]) if digits else 0)


def _flops(instruction: Instruction, kinds: dict[str, str]) -> float:
    """Return the operations of a matrix product or convolution; 0 of all else."""
    if instruction.operation not in ("dot", "convolution"):
        return 0.0
    left, right = (_dimensions(kinds.get(name, "")) for name in _operands(instruction)[:2])
    result = _dimensions(instruction.kind)
    if instruction.operation == "dot":
        contracted = CONTRACTED.search(instruction.rest)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * math.prod(result) * math.prod(left[axis] for axis in axes)
    labels = LABELS.search(instruction.rest)
    assert labels is not None
    of_left, of_right, of_result = labels.groups()
    window = WINDOW.search(instruction.rest)
    sizes = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(set(of_result) - set("bf"))
    flops = 2.0 * result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")]
    for i, axis in enumerate(spatial):
        flops *= _pairs(left[of_left.index(axis)], right[of_right.index(axis)], result[of_result.index(axis)], i, sizes)
    return flops


def _pairs(left: int, right: int, result: int, axis: int, window: dict[str, str]) -> int:
    """Return how many pairs of an entry of the result and one of the kernel meet an entry of the input.

    The compiler for TPUs writes every product as a convolution, whose padding and dilation stand for batch axes.
    """

    def read(name: str, default: str) -> str:
        return window[name].split("x")[axis] if name in window else default

    low = int(read("pad", "0_0").split("_")[0])
    stride, dilation = int(read("stride", "1")), int(read("lhs_dilate", "1"))
    place = np.arange(result)[:, None] * stride - low + np.arange(right)[None] * int(read("rhs_dilate", "1"))
    inside = (place >= 0) & (place <= (left - 1) * dilation) & (place % dilation == 0)
    return int(np.count_nonzero(inside))
