"""Tiny models on meshes of eight simulated devices: `python -m tests.generate.mesh_program NAME MESH...`.

With NAME `score:FILE`, prints the loss of a text with the stored weights, on one device and on each mesh. Otherwise
NAME is a model of `CONFIGS`, or `file:FOLDER:PRECISION` with an optional `:ADAPTER`. Prints, for each mesh: whether the
greedy tokens are those of one device; the largest difference of log-probabilities, of the image's soft tokens and of
products of packed weights; and the shares of the weights and of the state that a device holds.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gemwright
from gemwright import sharding, tree
from gemwright.generate.engine import Engine
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling
from gemwright.model import vision
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, Vision, pattern
from gemwright.model.params import param_specs
from gemwright.text.image_format import SOFT_TOKEN
from tests.documents import ROOT
from tests.helpers import random_ids
from tests.tiny.config import make_weights

VOCAB, WINDOW, STEPS = 96, 7, 10
_MANY = Attention(8, 8, head_dim=16, query_scalar=16.0)
_GROUPED = Attention(8, 4, head_dim=16, query_scalar=24.0, soft_cap=5.0)
_QK_NORM = Attention(8, 1, head_dim=16, query_scalar=16.0, rope=Rope(1e6, 8.0), qk_norm=True)
_LOCAL = Attention(8, 1, 16, 16, rope=Rope(fraction=0.5), window=WINDOW, out_bias=True)
_RECURRENT = Recurrent(64, 8)
_TOWER = Vision(28, 4, "normed", patch=7, width=48, depth=2, heads=3, hidden=80)


def _make(*mixers: Any, **settings: Any) -> Config:
    mlp, post_norms = Mlp(64, bias=bool(settings.get("embed_scale"))), settings.pop("post_norms", True)
    layers = pattern(len(mixers), *(Layer(mixer, mlp, post_norms) for mixer in mixers))
    return Config(32, VOCAB, layers, max_length=256, **settings)


CONFIGS = {
    "gemma": _make(_MANY, _MANY, post_norms=False),
    "gemma2": _make(replace(_GROUPED, window=WINDOW), _GROUPED, final_soft_cap=10.0),
    "gemma3": _make(replace(_QK_NORM, window=WINDOW, rope=Rope()), _QK_NORM, vision=_TOWER),
    "recurrentgemma": _make(_RECURRENT, _RECURRENT, _LOCAL, post_norms=False, embed_scale=5.65625, final_soft_cap=30.0),
    "paligemma": _make(_MANY, post_norms=False, vision=replace(_TOWER, projector="affine")),
}


def main() -> None:
    name, meshes = sys.argv[1], sys.argv[2:]
    if name.startswith("score:"):
        sys.stdout.write(json.dumps([_score(name.removeprefix("score:"), mesh) for mesh in (None, *meshes)]))
        return
    engine = _load(name, None)
    expected = (*_generate(engine), _multiply(engine))
    sys.stdout.write(json.dumps({mesh: _compare(name, mesh, expected) for mesh in meshes}))


def _score(file: str, mesh: str | None) -> float:
    model = gemwright.load(file, mesh=mesh)
    (score,) = model.score([(ROOT / "README.md").read_text(encoding="utf-8")[:1000]])
    return -float(np.mean(score.logprobs[1:]))


def _load(name: str, mesh: str | None) -> Engine:
    if name.startswith("file:"):
        folder, precision, *adapter = name.removeprefix("file:").split(":")
        return gemwright.load(folder, dtype=precision, adapter=adapter, mesh=mesh).engine
    config, specs = CONFIGS[name], param_specs(CONFIGS[name])
    with sharding.use(None if mesh is None else sharding.make_mesh_from_text(mesh)):

        def put(array: Any, spec: Any) -> Any:
            return sharding.put(np.asarray(array), sharding.sharding_of(spec.axes, spec.shape))

        return Engine(config, jax.tree.map(put, make_weights(config), specs), VOCAB)


def _generate(engine: Engine) -> tuple[Any, Any, Any]:
    """Return tokens [steps, B], log-probabilities of the vocabulary [steps, B, V], and an image's soft tokens."""
    config, vocabulary = engine.config, engine.vocabulary
    prompts: list[Ids | Prompt] = [random_ids(vocabulary, length, seed=length).tolist() for length in (1, 5, 20, 9)]
    image = np.zeros((1, config.width), np.float32)
    if config.vision is not None and engine.params.vision is not None:
        size = config.vision.image_size
        pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32))
        image = np.asarray(vision.encode(config.vision, engine.params.vision, pixels))[0]
        groups = np.asarray([-1, *[0] * len(image), -1], np.int32)
        prompts[1] = Prompt([2, *[SOFT_TOKEN] * len(image), 3], image, groups)
    samplings = [Sampling(temperature=0.0)] * len(prompts)
    steps = list(engine.generate(prompts, samplings, STEPS, top_logprobs=vocabulary))
    scores = np.zeros((len(steps), len(prompts), vocabulary))
    for step, into in zip(steps, scores, strict=True):
        assert step.top_tokens is not None
        assert step.top_logprobs is not None
        np.put_along_axis(into, step.top_tokens, step.top_logprobs, axis=-1)
    return np.stack([step.tokens for step in steps]), scores, image


def _compare(name: str, mesh: str, expected: Any) -> dict[str, Any]:
    engine = _load(name, mesh)
    found = _generate(engine)
    differences = _differ(found, expected)
    state = engine.empty_state(4, 32)
    return {
        "same": bool(np.array_equal(found[0], expected[0])),
        "logprobs": float(differences.max()),
        "image": float(np.abs(found[2] - expected[2]).max()),
        "products": max(
            [0.0, *(float(np.abs(a - b).max()) for a, b in zip(_multiply(engine), expected[3], strict=True))]
        ),
        "weights": _share(engine.params),
        "state": _share(state.layers),
        "leaves": sorted({type(leaf).__name__ for _, leaf in tree.leaves(engine.params, _is_weight)}),
    }


def _differ(found: Any, expected: Any) -> Any:
    """Return the differences of the log-probabilities above -10, up to the first other token of each text."""
    equal = np.cumprod(found[0] == expected[0], axis=0)
    before = np.concatenate([np.ones_like(equal[:1]), equal[:-1]]) > 0
    return np.abs(found[1] - expected[1])[before[:, :, None] & (expected[1] > -10)]


def _multiply(engine: Engine) -> list[Any]:
    """Return products, rows and likeliest rows of packed weights, which no other kernel is fused with."""
    mlp, embed, found = engine.params.layers[0].mlp, engine.params.embed, list[Any]()
    if isinstance(embed, jax.Array) or isinstance(mlp.gate, jax.Array):
        return found
    x = np.random.default_rng(0).standard_normal((5, engine.config.width)).astype(np.float32)
    found.append(jax.jit(lambda weight, x: weight.matmul(x, 1))(mlp.gate, x))
    found.append(jax.jit(lambda weight, ids: weight.rows(ids))(embed, np.arange(0, engine.vocabulary, 7)))
    return [np.asarray(part) for part in found]


def _is_weight(leaf: Any) -> bool:
    return hasattr(leaf, "matmul")


def _share(arrays: Any) -> float:
    """Return the share of the bytes of arrays that the first device holds."""
    leaves = jax.tree.leaves(arrays)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


if __name__ == "__main__":
    main()
