"""Attention without a cache on meshes of eight simulated devices: `python -m tests.kernels.self_attention_mesh`.

Prints, for each implementation and mesh, the differences of results and gradients from the plain definition.
"""

import json
import sys

from gemwright import sharding
from gemwright.kernels import choice
from tests.kernels.self_attention_cases import Case, differences

RUNS: tuple[tuple[choice.Impl, str, Case], ...] = (
    ("auto", "slice=2,fsdp=2,tensor=2", Case(batch=4, window=100, cap=5.0)),
    ("auto", "data=2,tensor=4", Case(heads=8, kv_heads=2)),  # keys are repeated
    ("auto", "data=2,tensor=4", Case(heads=12, kv_heads=3)),  # heads are not divided
    ("pallas", "data=2,sequence=2,tensor=2", Case(length=512, window=200, heads=2, kv_heads=1)),
)


def main() -> None:
    found: list[tuple[str, float, float]] = []
    for impl, mesh, case in RUNS:
        expected = case.run(case.define)
        with sharding.use(sharding.make_mesh(sharding.parse_mesh(mesh))):
            found.append((mesh, *differences(case.run(case.attend, impl), expected)))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
