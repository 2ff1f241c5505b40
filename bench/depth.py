"""Duration of compiling a model's programs against its depth, on eight simulated devices: `python bench/depth.py`.

The models are those of Gemma 2, of small widths. The training step scans over the layers, and decoding does not.
"""

import functools
import os
import time
from dataclasses import replace

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from gemwright import sharding, tree
from gemwright.generate import programs
from gemwright.model.config import Attention, Config, Layer, Mlp, pattern
from gemwright.model.params import ParamSpec, param_specs
from gemwright.model.state import abstract_state, divided_shapes
from gemwright.train.objectives.objective import weight_shapes
from gemwright.train.optimizer import make_optimizer
from gemwright.train.program import compile_step
from gemwright.train.recipe import Recipe
from gemwright.train.step import describe_state

DEPTHS = (18, 46)
MESH = "fsdp=8"
BATCH, LENGTH = 8, 256


def main() -> None:
    """Print the durations."""
    mesh = sharding.make_mesh_from_text(MESH)
    for title, compile_program in (("training step", compile_training), ("decoding", compile_decoding)):
        times: list[str] = []
        for depth in DEPTHS:
            jax.clear_caches()
            begin = time.process_time()
            with sharding.use(mesh):
                compile_program(make_config(depth))
            times.append(f"{time.process_time() - begin:.1f} s of CPU for {depth} layers")
        print(f"{MESH}, {title}: {', '.join(times)}", flush=True)


def make_config(depth: int) -> Config:
    """Return a narrow Gemma 2 of a number of layers."""
    attention = Attention(8, 4, head_dim=32, query_scalar=32.0, soft_cap=50.0)
    mixers = replace(attention, window=128), attention
    layers = pattern(depth, *(Layer(mixer, Mlp(512), post_norms=True) for mixer in mixers))
    return Config(256, 4096, layers, max_length=8192, final_soft_cap=30.0)


def compile_training(config: Config) -> None:
    """Compile a step of full tuning."""
    recipe = Recipe(method="full", dtype="float32", remat="layers", batch_size=BATCH, length=LENGTH)
    optimizer = make_optimizer(recipe, 100)
    state = describe_state(optimizer, weight_shapes(config, "float32"), recipe)
    compile_step(config, recipe, optimizer, state, None)


def compile_decoding(config: Config) -> None:
    """Compile a pass of one token."""

    def shape(_: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=sharding.sharding_of(spec.axes, spec.shape))

    params = tree.map_with_path(shape, param_specs(config))
    state = divided_shapes(abstract_state(config, BATCH, LENGTH, "float32"))
    tokens = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)
    valid = jax.ShapeDtypeStruct((BATCH, 1), jnp.bool_)
    function = jax.jit(functools.partial(programs.forward, config), donate_argnums=3)
    function.lower(params, tokens, valid, state).compile()


if __name__ == "__main__":
    main()
