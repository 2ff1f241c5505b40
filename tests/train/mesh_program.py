"""Gradients of a tiny model on meshes of eight simulated devices: `python -m tests.train.mesh_program MODEL MESH...`.

Prints, for each mesh, the differences of the loss and of the gradient from those of one device, and the largest share
of the weights that a device holds.
"""

import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from gemwright import sharding
from gemwright.train.objectives.objective import Sequences, weight_shapes
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate
from tests.train.cases import Case, largest_difference, make_case, make_documents, to_batch

LENGTHS = ((9, 30, 2), (25, 1), (60,), (40, 19), (3,), (50, 4), (60,), (12, 12))


def main() -> None:
    case, meshes = make_case(sys.argv[1]), sys.argv[2:]
    batch = to_batch([make_documents(lengths, seed) for seed, lengths in enumerate(LENGTHS)])
    expected = _differentiate(case, case.weights, batch)
    found = {mesh: _compare(case, batch, expected, mesh) for mesh in meshes}
    sys.stdout.write(json.dumps(found))


def _differentiate(case: Case, weights: Any, batch: Sequences) -> Any:
    recipe = Recipe(method="full", batch_size=8, length=60)
    return jax.jit(functools.partial(accumulate, case.config, recipe))(weights, None, batch)


def _compare(case: Case, batch: Sequences, expected: Any, mesh: str) -> tuple[float, float, float]:
    with sharding.use(sharding.make_mesh(sharding.parse_mesh(mesh))):
        shapes = weight_shapes(case.config, "float32")
        weights = jax.tree.map(lambda leaf, like: sharding.put(np.asarray(leaf), like.sharding), case.weights, shapes)
        arrays = (batch.tokens, batch.targets, batch.learned, batch.segments)
        divided = Sequences(*(sharding.place(np.asarray(array), "batch", "length") for array in arrays))
        sums, gradient = _differentiate(case, weights, divided)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(weights))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    loss = abs(float(sums.loss) / float(expected[0].loss) - 1)
    return loss, largest_difference(gradient, expected[1]), held / total


if __name__ == "__main__":
    main()
