"""Decode slots: every sequence gives the tokens that it gives alone, whatever happens to the other slots."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.generate import programs
from gemwright.generate.engine import Engine
from gemwright.generate.programs import NO_TOKEN, NOT_FINITE, DecodeOptions
from gemwright.generate.sampling import Sampling
from gemwright.generate.slots import Slots, copy, empty_slots, evict, insert, restore, snapshot, stop_table
from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, pattern
from gemwright.model.state import DecodeState, KVCache, empty_state
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, WINDOW, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
SLOTS, CAPACITY, SMALLER, LIMIT = 3, 64, 32, 24
_LOCAL = Attention(2, 1, 16, 16, rope=Rope(fraction=0.5), window=WINDOW)
_MIXERS = Recurrent(32, 2), _LOCAL
MODELS = {
    "qk-norm": CONFIGS["qk-norm"],
    "capped": CONFIGS["capped"],
    "recurrent": Config(32, VOCAB, pattern(3, *(Layer(mixer, Mlp(48)) for mixer in _MIXERS)), max_length=256),
}
PROMPTS = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 5, WINDOW + 3, 30)]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.5, top_k=9, seed=3, repetition_penalty=1.3, frequency_penalty=0.5),
    Sampling(seed=1),
]
OPTIONS = DecodeOptions(VOCAB, 64, penalty=True, top_logprobs=None)
models = pytest.mark.parametrize("name", MODELS)


@functools.cache
def _engine(name: str) -> Engine:
    return Engine(MODELS[name], make_weights(MODELS[name], seed=3), VOCAB)


@functools.cache
def _alone(name: str, prompt: int, sampling: int) -> list[int]:
    """Return the tokens of one prompt by `Engine.generate`."""
    steps = _engine(name).generate([PROMPTS[prompt]], [SAMPLINGS[sampling]], LIMIT)
    return [int(step.tokens[0]) for step in steps]


def _empty(engine: Engine) -> Slots:
    return empty_slots(empty_state(engine.config, SLOTS, CAPACITY, jnp.float32), vocab=engine.config.vocab)


def _begin(engine: Engine, prompt: int, sampling: int, limit: int = LIMIT, state: DecodeState | None = None):
    """Prefill one prompt in a smaller cache, or after a restored prefix."""
    state = empty_state(engine.config, 1, SMALLER, jnp.float32) if state is None else state
    return engine.begin([PROMPTS[prompt]], [SAMPLINGS[sampling]], [limit], OPTIONS, state=state)


@dataclass
class _Run:
    """What a slot should hold: a prompt with settings, and the tokens so far."""

    prompt: int
    sampling: int
    tokens: list[int]


_EVENTS = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, SLOTS - 1), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("decode"), st.integers(1, programs.MAX_STEPS_PER_CALL), st.just(0), st.just(0)),
    st.tuples(st.just("evict"), st.integers(0, SLOTS - 1), st.just(0), st.just(0)),
    st.tuples(st.just("copy"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1), st.just(0)),
    st.tuples(st.just("save"), st.integers(0, SLOTS - 1), st.just(0), st.just(0)),
    st.tuples(st.just("restore"), st.integers(0, SLOTS - 1), st.integers(0, 3), st.just(0)),
)


@models
@settings(max_examples=4, deadline=None)
@given(st.lists(_EVENTS, min_size=8, max_size=20))
def test_every_sequence_gives_the_tokens_that_it_gives_alone(name: str, events: list[tuple[str, int, int, int]]):
    """Greedy and sampled, with a repetition penalty, past the window, in any order of events."""
    engine, runs, saved = _engine(name), dict[int, _Run](), list[tuple[Slots, _Run]]()
    slots = _empty(engine)
    for kind, first, second, third in [("admit", 0, 3, 0), ("admit", 1, 1, 1), *events, ("decode", 8, 0, 0)]:
        if kind == "admit":
            step, sequence = _begin(engine, second, third)
            slots = insert(slots, sequence, jnp.array([first]))
            runs[first] = _Run(second, third, step.tokens.tolist())
        elif kind == "decode":
            choices, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, first)
            made = np.asarray(choices.token)[:first].T
            assert np.all(made[[slot for slot in range(SLOTS) if slot not in runs]] == NO_TOKEN)
            for slot, run in runs.items():
                run.tokens += [token for token in made[slot].tolist() if token != NO_TOKEN]
                assert run.tokens == _alone(name, run.prompt, run.sampling)[: len(run.tokens)]
        elif kind == "evict":
            slots = evict(slots, jnp.array([first]))
            runs.pop(first, None)
        elif kind == "copy" and first in runs:
            slots = copy(slots, jnp.array([first]), jnp.array([second]))
            runs[second] = replace(runs[first], tokens=list(runs[first].tokens))
        elif kind == "save" and first in runs:
            saved.append(
                (snapshot(slots, jnp.array(first), CAPACITY), replace(runs[first], tokens=list(runs[first].tokens)))
            )
        elif kind == "restore" and saved:
            sequence, run = saved[second % len(saved)]
            slots = restore(slots, sequence, first)
            runs[first] = replace(run, tokens=list(run.tokens))
    remaining = [LIMIT - len(runs[slot].tokens) if slot in runs else 0 for slot in range(SLOTS)]
    assert np.asarray(slots.remaining).tolist() == remaining


@models
def test_a_prompt_continues_a_restored_prefix(name: str):
    """Prefill of the rest after a snapshot of every length of prefix, shorter and longer than the window."""
    engine, prompt = _engine(name), PROMPTS[3]
    for length in (1, WINDOW, WINDOW + 2, 29):
        state, _ = engine.prefill([prompt[:length]], empty_state(engine.config, 1, CAPACITY, jnp.float32))
        prefix = snapshot(state, jnp.array(0), SMALLER)
        state = restore(empty_state(engine.config, 1, CAPACITY, jnp.float32), prefix, 0)
        step, slots = _begin(engine, 3, 1, state=state)
        choices, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, 8)
        found = [*step.tokens.tolist(), *np.asarray(choices.token)[:, 0].tolist()]
        assert found == _alone(name, 3, 1)[:9]
        assert slots.state.lengths.tolist() == [len(prompt) + 8]


@models
def test_idle_slots_neither_move_nor_change(name: str):
    engine = _engine(name)
    slots = _empty(engine)
    for slot, limit in enumerate((LIMIT, 3)):
        slots = insert(slots, _begin(engine, 2, 0, limit)[1], jnp.array([slot]))
    _, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, 4)
    before = jax.tree.map(np.array, slots)
    choices, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, 5)
    assert np.asarray(choices.token)[:, 1:].tolist() == [[NO_TOKEN] * 2] * programs.MAX_STEPS_PER_CALL
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(slots), strict=True):
        np.testing.assert_array_equal(old[1:], np.asarray(new)[1:])
    assert slots.state.lengths.tolist() == [len(PROMPTS[2]) + 9, len(PROMPTS[2]) + 2, 0]


def test_a_call_ends_when_all_sequences_have():
    """At their own stop ids and limits; the rest of a call's tokens is empty."""
    engine = _engine("qk-norm")
    alone = [_alone("qk-norm", prompt, 1) for prompt in range(SLOTS)]
    stop = next(token for token in alone[0][3:] if token not in alone[0][:3])
    slots = _empty(engine)
    for slot, (limit, ids) in enumerate([(LIMIT, [stop]), (3, []), (1, [])]):
        _, sequence = engine.begin([PROMPTS[slot]], [SAMPLINGS[1]], [limit], OPTIONS, ids)
        slots = insert(
            slots, replace(sequence, state=snapshot(sequence.state, jnp.array(0), CAPACITY)), jnp.array([slot])
        )
    made = [[], [], []]
    for _ in range(3):
        choices, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, 8)
        for tokens, new in zip(made, np.asarray(choices.token).T.tolist(), strict=True):
            tokens += [token for token in new if token != NO_TOKEN]
    assert made == [alone[0][1 : alone[0].index(stop) + 1], alone[1][1:3], []]
    assert not np.any(np.asarray(slots.remaining))


@models
def test_buffers_are_donated(name: str):
    engine = _engine(name)
    sequence = _begin(engine, 1, 0)[1]
    for change in (
        lambda slots: insert(slots, sequence, jnp.array([1])),
        lambda slots: evict(slots, jnp.array([1])),
        lambda slots: copy(slots, jnp.array([1]), jnp.array([2])),
        lambda slots: restore(slots, sequence, 0),
        lambda slots: programs.decode(engine.config, OPTIONS, engine.params, slots, 2)[1],
    ):
        slots = insert(_empty(engine), sequence, jnp.array([0]))
        large = jax.tree.leaves(slots.state.layers)
        places = [leaf.unsafe_buffer_pointer() for leaf in large]
        after = change(slots)
        assert all(leaf.is_deleted() for leaf in large)
        assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(after.state.layers)] == places
    kept = insert(_empty(engine), sequence, jnp.array([0]))
    saved = snapshot(kept, jnp.array(0), 16)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
    sizes = [entry.cells for entry in saved.state.layers if isinstance(entry, KVCache)]
    assert max(sizes) <= 16
    assert saved.state.lengths.tolist() == [len(PROMPTS[1])]


def test_stop_ids_are_padded():
    assert stop_table([[], [5]]).tolist() == [[-1] * 8, [5] + [-1] * 7]
    assert stop_table([range(9), [3, 3]]).shape == (2, 16)


def test_a_sequence_with_damaged_numbers_ends_and_others_go_on():
    engine = _engine("qk-norm")
    slots = _empty(engine)
    for slot in range(2):
        slots = insert(slots, _begin(engine, slot, 0)[1], jnp.array([slot]))
    layer = slots.state.layers[1]
    assert isinstance(layer, KVCache)
    layers = (slots.state.layers[0], replace(layer, values=layer.values.at[1].set(jnp.nan)))
    slots = replace(slots, state=replace(slots.state, layers=layers))
    choices, slots = programs.decode(engine.config, OPTIONS, engine.params, slots, 4)
    tokens = np.asarray(choices.token)[:4]
    assert tokens[:, 0].tolist() == _alone("qk-norm", 0, 0)[1:5]
    assert tokens[:, 1].tolist() == [NOT_FINITE, NO_TOKEN, NO_TOKEN, NO_TOKEN]
    assert slots.remaining.tolist()[1] == 0
