"""The choice of implementations: by the platform of the program, and as requested."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemwright import tree, weights
from gemwright.checkpoint.arena import aligned
from gemwright.errors import GemwrightError
from gemwright.kernels import choice, native
from gemwright.kernels.attention import attend_cached
from gemwright.kernels.rg_lru import rg_lru
from gemwright.linear import Norms, norm_project
from gemwright.model import vision
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, Vision
from gemwright.model.params import param_specs
from gemwright.model.state import abstract_state
from gemwright.model.transformer import SoftTokens, forward, logits
from gemwright.weights import PackedTensor
from tests.tiny.config import CONFIGS

TOWER = Vision(24, 4, projector="normed", patch=4, width=36, depth=2, heads=2, hidden=52)
LOCAL = Attention(4, 1, head_dim=16, query_scalar=16.0, rope=Rope(fraction=0.5), window=7, out_bias=True)
ARCHITECTURES = CONFIGS | {
    "recurrent": Config(
        32, 97, tuple(Layer(mixer, Mlp(48, bias=True)) for mixer in (Recurrent(24, blocks=3), LOCAL)), max_length=256
    ),
    "vision": replace(CONFIGS["qk-norm"], vision=TOWER),
}
kernels = pytest.mark.skipif(not native.native_enabled(), reason="the C++ kernels are not installed")


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _programs(config: Config) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return functions of a model and their abstract arguments."""
    params = tree.map_with_path(lambda _, param: _shape(param.shape), param_specs(config))
    state = abstract_state(config, 2, 64, jnp.bfloat16)

    def run(params: Any, tokens: Any, state: Any = None, given: Any = None) -> Any:
        hidden, after = forward(config, params, tokens, state, soft_tokens=given)
        return logits(config, params, hidden), after

    prompt, token = _shape((2, 9), jnp.int32), _shape((2, 1), jnp.int32)
    programs = {
        "prefill": (run, (params, prompt, state)),
        "decode": (run, (params, token, state)),
        "score": (run, (params, prompt)),
    }
    if config.vision is not None:
        tower, side = config.vision, config.vision.image_size
        soft_tokens = SoftTokens(_shape((2, 9, config.width)), prompt)
        programs["prefill images"] = run, (params, prompt, state, soft_tokens)
        programs["encode images"] = (
            lambda params, pixels: vision.encode(tower, params.vision, pixels),
            (params, _shape((2, side, side, 3))),
        )
    return programs


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_programs_for_accelerators_have_no_cpu_kernels(name: str, platform: str):
    """`jax.export` itself also refuses custom calls that are not known to be stable."""
    attention_only = _programs(ARCHITECTURES["multi-query"])
    for kind, (program, args) in _programs(ARCHITECTURES[name]).items():
        text = _export(program, args, platform)
        assert "gemwright_" not in text
        if name == "recurrent":  # the recurrence is no loop over time
            assert text.count("stablehlo.while") == _export(*attention_only[kind], platform).count("stablehlo.while")


def _export(program: Callable[..., Any], args: tuple[Any, ...], platform: str) -> str:
    return jax.export.export(jax.jit(program), platforms=[platform])(*args).mlir_module()


@kernels
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_programs_for_cpus_have_kernels_unless_the_reference_is_requested(name: str):
    for kind, (program, args) in _programs(ARCHITECTURES[name]).items():
        text = jax.jit(program).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
        assert ("gemwright_attention" in text) == (kind in ("prefill", "decode"))
        assert ("gemwright_rg_lru" in text) == (kind in ("prefill", "decode") and name == "recurrent")
        assert "stablehlo.case" not in text  # the choice is not made at run time
        with choice.use("reference"):
            text = jax.export.export(jax.jit(program), platforms=["cpu"])(*args).mlir_module()
        assert "gemwright_" not in text


@kernels
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_with_packed_weights_are_for_cpus_only(platform: str):
    made = native.repack("F32", np.zeros(16 * 32 * 4, np.uint8), (16, 32), allocate=aligned, on_rows_read=lambda: None)
    weight = PackedTensor.to_device(made, (16, 32), activation_bits=8)
    norms = Norms(jnp.zeros(32), None, 1e-6)
    programs = {
        "matmul": lambda w: weights.matmul(jnp.ones((1, 32)), w),
        "rows": lambda w: weights.rows(w, jnp.zeros(1, jnp.int32)),
        "top": lambda w: weights.top(jnp.ones((1, 32)), w, 16, 1),
        "fused": lambda w: norm_project(jnp.ones((1, 1, 32)), norms, w),
    }
    for program in programs.values():
        jax.jit(program).trace(weight).lower(lowering_platforms=("cpu",))
        with pytest.raises(GemwrightError, match=f"stored format cannot run on {platform}"):
            jax.jit(program).trace(weight).lower(lowering_platforms=(platform,))


def _attend(width: int = 16, dtype: Any = jnp.float32, cache: Any = jnp.bfloat16) -> Any:
    """Attend from one token."""
    q, k, entry = (
        jnp.ones((1, 1, 2, width), dtype),
        jnp.ones((1, 1, 1, width), dtype),
        jnp.ones((1, 1, 4, width), cache),
    )
    positions, rotation = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, 2, width // 2))
    options = {"window": None, "scale": 1.0, "cap": None, "eps": 1e-6}
    return attend_cached(q, k, k, (entry, entry), positions, positions[0], rotation, None, **options)


def _recur(input_gate: Any = jnp.float32) -> Any:
    gates = (jnp.ones((2, 4, 4), input_gate), jnp.ones((2, 4))), (jnp.ones((2, 4, 4)), jnp.ones((2, 4)))
    return rg_lru(jnp.ones((1, 3, 8)), jnp.arange(3)[None], jnp.ones((1, 8)), *gates, jnp.ones(8))


@kernels
@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda: _attend(width=24), "head width 24"),
        (lambda: _attend(dtype=jnp.bfloat16), "queries are bfloat16"),
        (lambda: _attend(cache=jnp.float16), "cache is float16"),
        (lambda: _recur(jnp.bfloat16), "gates are bfloat16 and float32"),
        (lambda: jax.jit(_attend).trace().lower(lowering_platforms=("tpu",)), "on tpu"),
        (lambda: jax.jit(_recur).trace().lower(lowering_platforms=("cuda",)), "on cuda"),
    ],
)
def test_a_request_that_cannot_be_met_raises(run: Callable[[], Any], reason: str):
    run()  # by the reference
    with choice.use("native"), pytest.raises(GemwrightError, match=f"cannot run natively.*{reason}"):
        run()


def test_the_kernel_is_requested_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "installed", lambda: False)
    with choice.use("native"), pytest.raises(GemwrightError, match=r"the C\+\+ kernels are not installed"):
        _attend()
    assert "reference" in choice.describe_choices()["RG-LRU"]


@kernels
def test_a_request_is_part_of_the_compilation_cache_key():
    counted, run = [], jax.jit(lambda: (counted.append(None), _recur())[1])
    for impl in ("auto", "reference", "native", "auto"):
        with choice.use(impl):
            run()
    assert len(counted) == 3


@kernels
def test_gradients_through_a_cache_are_those_of_the_reference():
    positions = jnp.arange(3, dtype=jnp.int32)[None]

    def loss(u: Any, x: Any) -> Any:
        gates = ((jnp.ones((2, 4, 4)), jnp.ones((2, 4))),) * 2
        h = rg_lru(u, positions + 1, jnp.ones((1, 8)), *gates, jnp.ones(8))
        q, kv, rotation = x[:, :, :2], x[:, :, 2:], jnp.ones((1, 3, 2, 8))
        cache, options = (jnp.ones((1, 1, 4, 16)),) * 2, {"window": None, "scale": 1.0, "cap": None, "eps": 1e-6}
        mixed, (keys, _) = attend_cached(q, kv, kv, cache, positions, positions[:, 0], rotation, None, **options)
        return jnp.sum(jnp.sin(h)) + jnp.sum(jnp.sin(mixed)) + jnp.sum(jnp.sin(keys))

    numbers = jax.random.normal(jax.random.key(0), (1, 3, 8)), jax.random.normal(jax.random.key(1), (1, 3, 3, 16))
    found = jax.jit(jax.grad(loss, (0, 1)))(*numbers)
    with choice.use("reference"):
        expected = jax.jit(jax.grad(loss, (0, 1)))(*numbers)
    for one, other in zip(found, expected, strict=True):
        assert jnp.abs(other).max() > 0.1
        assert jnp.array_equal(one, other)


@kernels
def test_the_choices_are_described():
    choices = choice.describe_choices()
    assert choices["attention with a cache"] == f"native ({native.instruction_set()})"
    assert choices["linear recurrence"] == "sequential"
