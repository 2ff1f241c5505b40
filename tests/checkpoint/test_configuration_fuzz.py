"""Whatever a configuration file holds: a model of ordinary size comes out, or one short sentence."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.checkpoint.configs.gguf import from_gguf, to_gguf
from gemwright.checkpoint.configs.huggingface import from_huggingface, read_generation_config, to_huggingface
from gemwright.checkpoint.configs.reader import MAX_LAYERS, MAX_POSITIONS, MAX_SIZE
from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError
from gemwright.model.config import Config, Recurrent
from gemwright.variants import VARIANTS

DECODERS = [VARIANTS[name].config for name in ("gemma-2b", "gemma-2-27b", "gemma-3-270m", "gemma-3-4b")]
OTHERS = [VARIANTS[name].config for name in ("recurrentgemma-2b", "paligemma-3b-224", "paligemma2-3b-448")]
HUGGINGFACE = [to_huggingface(config, "bfloat16") for config in (*DECODERS, *OTHERS)]
GGUF = [(to_gguf(config), config) for config in DECODERS]
GENERATION = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "eos_token_id": [1, 106],
    "bos_token_id": 2,
    "pad_token_id": 0,
    "max_new_tokens": 20,
    "max_length": 20,
}

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**24, 2**24 + 1, 2**31, 2**63, 10**12, 10**40, -(10**40), 10**4000]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-300, 1e300, 5e-324]),
)
WORDS = st.sampled_from(
    [
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "paligemma",
        "recurrent_gemma",
        "recurrent",
        "attention",
        "linear",
        "default",
        "yarn",
        "full_attention",
        "gelu",
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
ARRAYS = st.builds(np.full, st.integers(0, 70), st.sampled_from([True, 0, 3, -1.5, float("nan")]))


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except CheckpointError as error:
        message = str(error)
        assert message.startswith("f: ")
        assert len(message) < 500
        return None


def check(config: Config | None) -> None:
    if config is None:
        return
    assert 1 <= len(config.layers) <= MAX_LAYERS
    assert 1 <= config.max_length <= MAX_POSITIONS
    if v := config.vision:
        assert all(1 <= n <= MAX_SIZE for n in (v.tokens, v.patch, v.width, v.depth, v.heads, v.hidden, v.grid**2))
        assert v.image_size % v.patch == v.width % v.heads == v.grid**2 % v.tokens == 0
    for layer in set(config.layers):
        m = layer.mixer
        if isinstance(m, Recurrent):
            assert 1 <= m.width <= MAX_SIZE
            assert m.width % m.blocks == 0
            continue
        assert all(1 <= n <= MAX_SIZE for n in (config.width, config.vocab, layer.mlp.hidden, m.heads, m.kv_heads))
        assert m.heads % m.kv_heads == m.head_dim % 2 == 0
        assert np.isfinite([m.query_scalar**-0.5, m.rope.base, m.rope.scale, m.soft_cap or 1.0, config.norm_eps]).all()
    assert hash(config) == hash(config)


@st.composite
def mutated(draw: st.DrawFn, sound: dict[str, Any], values: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A sound file with a few keys gone, changed or added, in its groups too."""
    data = dict(sound)
    for key in draw(st.lists(st.sampled_from(sorted(sound)), max_size=3, unique=True)):
        if isinstance(data[key], dict) and draw(st.booleans()):
            data[key] = draw(mutated(data[key], values))
        elif draw(st.integers(0, 4)) == 0:
            del data[key]
        else:
            data[key] = draw(values)
    return data | draw(st.dictionaries(WORDS, values, max_size=1))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_huggingface_files(data: st.DataObject) -> None:
    file = data.draw(mutated(data.draw(st.sampled_from(HUGGINGFACE)), JSON))
    check(outcome(lambda: from_huggingface(file, "f")))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_gguf_files(data: st.DataObject) -> None:
    sound, config = data.draw(st.sampled_from(GGUF))
    file = data.draw(mutated(sound, JSON | ARRAYS))
    shape = data.draw(st.sampled_from([(config.vocab, config.width), (10**12, config.width), (64, 64), ()]))
    check(outcome(lambda: from_gguf(file, {"token_embd.weight": TensorInfo(shape, "F32", 0, 0)}, "f")))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_generation_configs(data: st.DataObject) -> None:
    file = data.draw(mutated(GENERATION, JSON))
    values = outcome(lambda: read_generation_config(file, "f"))
    assert values is None or (values.keys() <= GENERATION.keys() and None not in values.values())


@given(file=st.dictionaries(st.text(max_size=9) | st.sampled_from(sorted(HUGGINGFACE[-2])), JSON, max_size=6))
@settings(max_examples=100, deadline=None)
def test_junk(file: dict[str, Any]) -> None:
    check(outcome(lambda: from_huggingface(file, "f")))
    check(outcome(lambda: from_gguf(file, {}, "f")))
    outcome(lambda: read_generation_config(file, "f"))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HUGE = {"deep": nested(100_000), "long": ["full_attention"] * 10**6, "text": "x" * 10**7}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kind", range(len(HUGGINGFACE)))
def test_a_huge_value_costs_nothing(name: str, kind: int) -> None:
    sound, value = HUGGINGFACE[kind], HUGE[name]
    tracemalloc.start()
    for key in sound:
        outcome(lambda: from_huggingface(sound | {key: value}, "f"))  # noqa: B023
    for key in GENERATION:
        outcome(lambda: read_generation_config(GENERATION | {key: value}, "f"))  # noqa: B023
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
