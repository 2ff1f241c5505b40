"""The engine against plain passes over the whole text."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from gemwright.errors import GemwrightError
from gemwright.generate import buckets, programs
from gemwright.generate.drafts import Lookup
from gemwright.generate.engine import Engine, Step
from gemwright.generate.sampling import Sampling
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import forward, logits
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
GREEDY = Sampling()
ALTERNATIVES = 3
LOGPROB = 1e-5
"""Absolute tolerance of a log-probability in float32."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = CONFIGS["qk-norm"]
    return Engine(config, make_weights(config, seed=3), VOCAB)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: Config, params: ModelWeights, tokens: jax.Array) -> jax.Array:
    hidden, _ = forward(config, params, tokens)
    return logits(config, params, hidden)


def _logprobs(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """[T, V] of one pass over the whole text, on the right padded to a length that all texts here share."""
    padded = np.zeros((1, 256), int)
    padded[0, : len(ids)] = ids
    scores = np.asarray(_logits(engine.config, engine.params, padded), np.float64)
    return log_softmax(scores[0, : len(ids), : engine.vocabulary], axis=-1)


def _naive(engine: Engine, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(_logprobs(engine, ids)[-1].argmax()))
    return ids[len(prompt) :]


def _steps(engine: Engine, prompts: list[list[int]], count: int, sampling: Sampling = GREEDY) -> list[Step]:
    return list(engine.generate(prompts, [sampling] * len(prompts), count, ALTERNATIVES))


def _tokens(steps: list[Step]) -> list[list[int]]:
    return np.stack([step.tokens for step in steps], axis=1).tolist()


def _written(steps: list[Step]) -> list[list[int]]:
    """Return the tokens of each sequence up to its end, after which there is none."""
    tokens = _tokens(steps)
    lengths = [row.index(-1) if -1 in row else len(row) for row in tokens]
    assert all(set(row[length:]) <= {-1} for row, length in zip(tokens, lengths, strict=True))
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


@pytest.mark.parametrize("length", [1, 2, 33, 150])
def test_greedy_equals_the_naive_loop(engine: Engine, length: int):
    prompt = random_ids(VOCAB, length).tolist()
    steps = _steps(engine, [prompt], 12)
    tokens = _tokens(steps)[0]
    assert tokens == _naive(engine, prompt, 12)
    expected = _logprobs(engine, prompt + tokens)[length - 1 : -1]
    best = np.argsort(-expected, axis=-1)[:, :ALTERNATIVES]
    np.testing.assert_array_equal(np.concatenate([step.top_tokens for step in steps]), best)
    np.testing.assert_allclose(
        np.concatenate([step.top_logprobs for step in steps]),
        np.take_along_axis(expected, best, axis=-1),
        rtol=0,
        atol=LOGPROB,
    )
    np.testing.assert_allclose([step.logprobs[0] for step in steps], expected[range(12), tokens], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, top_k=20, repetition_penalty=1.2, seed=8)])
def test_a_batch_of_unequal_prompts_equals_single_runs(engine: Engine, sampling: Sampling):
    prompts = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 5, 40, 70)]
    together = _tokens(_steps(engine, prompts, 10, sampling))
    assert together == [_tokens(_steps(engine, [prompt], 10, sampling))[0] for prompt in prompts]


def test_the_seed_alone_decides(engine: Engine):
    prompt, hot = random_ids(VOCAB, 9).tolist(), Sampling(temperature=2.0, repetition_penalty=1.1)
    runs = [_tokens(_steps(engine, [prompt], 12, replace(hot, seed=seed)))[0] for seed in (1, 1, 2, 2**32 - 1)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 3


def test_the_penalty_counts_prompt_and_answer(engine: Engine):
    """With a penalty without mercy no token of the text comes again."""
    prompt = random_ids(VOCAB, 20).tolist()
    tokens = _tokens(_steps(engine, [prompt], 30, Sampling(repetition_penalty=100.0)))[0]
    assert len(set(tokens)) == 30
    assert not set(tokens) & set(prompt)
    assert len(set(_tokens(_steps(engine, [prompt], 30))[0])) < 30


def test_writing_ends_with_the_context(engine: Engine):
    prompts = [random_ids(VOCAB, length).tolist() for length in (engine.config.max_length - 4, 7, 1, 2)]
    tokens = _written(_steps(engine, prompts, 100))
    assert tokens[0] == _naive(engine, prompts[0], 4)
    assert tokens[1:] == [_written(_steps(engine, [prompt], 100))[0] for prompt in prompts[1:]]
    assert [len(written) for written in tokens] == [4, 100, 100, 100]


def test_a_cache_that_grows_gives_the_same_text(monkeypatch: pytest.MonkeyPatch, engine: Engine):
    prompts = [random_ids(VOCAB, length, seed=length).tolist() for length in (3, 70, 40, 1)]
    roomy = _tokens(_steps(engine, prompts, 60))
    monkeypatch.setattr(buckets, "CAPACITIES", (100,))
    assert _tokens(_steps(engine, prompts, 60)) == roomy


def test_a_cache_of_local_layers_alone_need_not_grow(monkeypatch: pytest.MonkeyPatch):
    config = CONFIGS["local only"]
    engine = Engine(config, make_weights(config, seed=3), VOCAB)
    prompts = [random_ids(VOCAB, 3).tolist(), random_ids(VOCAB, 6, seed=1).tolist()]
    roomy = _tokens(_steps(engine, prompts, 40))
    compiled = programs.decode.__wrapped__._cache_size()
    monkeypatch.setattr(buckets, "CAPACITIES", (8, 64))
    assert _tokens(_steps(engine, prompts, 40)) == roomy
    assert programs.decode.__wrapped__._cache_size() == compiled


def test_score_equals_one_pass(engine: Engine):
    texts = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 2, 34, 180)]
    scores = engine.score(texts)
    for text, found in zip(texts, scores, strict=True):
        expected = _logprobs(engine, text)[range(len(text) - 1), text[1:]]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOGPROB)


def test_rows_beyond_the_tokenizer_neither_win_nor_take_probability(engine: Engine):
    fewer = replace(engine, vocabulary=40)
    prompt = [token % 40 for token in random_ids(VOCAB, 10).tolist()]
    steps = list(fewer.generate([prompt], [Sampling(temperature=3.0)], 20, top_logprobs=40))
    assert engine.params.embed.shape[0] == VOCAB
    assert max(_tokens(steps)[0]) < 40
    for step in steps:
        assert sorted(step.top_tokens[0].tolist()) == list(range(40))
        assert np.exp(step.top_logprobs[0]).sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(
        fewer.score([prompt])[0], _logprobs(fewer, prompt)[range(9), prompt[1:]], rtol=0, atol=LOGPROB
    )


def test_few_programs_are_compiled():
    """For any number of prompts of any length: two prefill programs per chunk size, one decode program."""
    config = replace(
        CONFIGS["local only"], max_length=200
    )  # a configuration of its own, so that nothing is compiled yet
    engine = Engine(config, make_weights(config), VOCAB)
    counted = programs.prefill, programs.decode, programs.score
    prefilled, decoded, scored = (program.__wrapped__._cache_size() for program in counted)
    for length in (1, 2, 17, 33, 34, 65, 100, 129, 160, 190):
        _steps(engine, [random_ids(VOCAB, length).tolist()], 3)
        _steps(engine, [random_ids(VOCAB, length).tolist()], 2)
    used = {buckets.chunk(length) for length in range(1, 200)}
    assert 0 < programs.prefill.__wrapped__._cache_size() - prefilled <= 2 * len(used) <= 2 * len(buckets.CHUNKS)
    assert programs.decode.__wrapped__._cache_size() - decoded == 1
    hot = [
        Sampling(temperature=t, top_k=k, top_p=p, seed=k) for t, k, p in [(1.0, 3, 0.5), (0.0, 0, 1.0), (2.0, 9, 0.9)]
    ]
    for sampling in hot:  # other settings are other numbers, not other programs
        _steps(engine, [random_ids(VOCAB, 5).tolist()], 2, sampling)
    assert programs.decode.__wrapped__._cache_size() - decoded == 2
    for length in (2, 30, 100, 190):
        engine.score([random_ids(VOCAB, length).tolist()])
    assert programs.score.__wrapped__._cache_size() - scored <= len(used)


def test_a_caller_may_stop_asking(engine: Engine):
    endless = engine.generate([random_ids(VOCAB, 4).tolist()], [GREEDY], 10**9, ALTERNATIVES)
    assert _tokens(list(itertools.islice(endless, 5))) == _tokens(_steps(engine, [random_ids(VOCAB, 4).tolist()], 5))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1] * 257, "256"), ([VOCAB], f"between 0 and {VOCAB - 1}"), ([-1], "between 0")],
    ids=["empty", "longer than the context", "id too high", "negative id"],
)
def test_bad_prompts_are_refused(engine: Engine, prompt: list[int], message: str):
    with pytest.raises(GemwrightError, match=message):
        _steps(engine, [[1], prompt], 3)
    with pytest.raises(GemwrightError, match=message):
        engine.score([prompt])


def test_a_text_as_long_as_the_context_is_scored_and_not_continued(engine: Engine):
    assert len(engine.score([[1] * 256])[0]) == 255
    with pytest.raises(GemwrightError, match="256"):
        _steps(engine, [[1] * 256], 3)


@pytest.mark.parametrize(
    "samplings",
    [
        [Sampling()] * 3,
        [Sampling(temperature=1.5, top_k=9, top_p=0.9, seed=seed) for seed in range(3)],
        [Sampling(), Sampling(temperature=2.0, top_k=70, seed=1), Sampling(temperature=0.7, top_k=200, min_p=0.01)],
    ],
)
def test_tokens_do_not_depend_on_what_else_is_asked(engine: Engine, samplings: list[Sampling]):
    """The largest logits alone, or all of them for log-probabilities or for another sequence."""
    prompts = [random_ids(VOCAB, length).tolist() for length in (3, 17, 40)]
    alone = _tokens(list(engine.generate(prompts, samplings, 30)))
    assert _tokens(list(engine.generate(prompts, samplings, 30, top_logprobs=0))) == alone
    others = [*samplings, Sampling(temperature=1.0)]
    assert _tokens(list(engine.generate([*prompts, random_ids(VOCAB, 9).tolist()], others, 30)))[:3] == alone


def _spread(engine: Engine, count: int) -> tuple[list[list[int]], list[Sampling], list[list[int]]]:
    """Return prompts, settings and tokens of sampled texts, which hardly repeat themselves."""
    prompts = [random_ids(VOCAB, length, seed=length).tolist() for length in (3, 17, 40)]
    samplings = [Sampling(temperature=1.5, top_k=40, seed=seed) for seed in range(3)]
    return prompts, samplings, _tokens(list(engine.generate(prompts, samplings, count)))


def test_a_sequence_ends_at_its_stop_id_or_limit(engine: Engine):
    prompts, samplings, whole = _spread(engine, 40)
    stop = whole[0][12]
    steps = list(engine.generate(prompts, samplings, [40, 30, 1], stop_ids=[stop, VOCAB - 1]))
    for written, all_of_it, limit in zip(_written(steps), whole, (40, 30, 1), strict=True):
        ends = [place + 1 for place, token in enumerate(all_of_it) if token in (stop, VOCAB - 1)]
        assert written == all_of_it[: min([limit, *ends])]
    assert len(steps) == max(map(len, _written(steps)))


def test_decoding_ends_with_the_last_sequence(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """A stop id ends the work: no step is computed for sequences that have ended, in any call."""
    prompts, samplings, whole = _spread(engine, 40)
    lengths: list[list[int]] = []

    def spy(*args: object, **options: object) -> object:
        choices, slots = decode(*args, **options)
        lengths.append(slots.state.lengths.tolist())
        return choices, slots

    decode = programs.decode
    monkeypatch.setattr(programs, "decode", spy)
    steps = list(engine.generate(prompts[:1], samplings[:1], 200, stop_ids=[whole[0][9]]))
    count = len(steps)
    assert [int(step.tokens[0]) for step in steps] == whole[0][:count]
    assert count <= 10
    assert lengths[-1] == [len(prompts[0]) + count - 1]


@pytest.mark.parametrize("options", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.4, "presence_penalty": -0.5}])
def test_penalties_count_generated_tokens_alone(engine: Engine, options: dict[str, float]):
    """Greedy decoding against a plain loop, whose prompt repeats the tokens that would be penalised."""
    prompt = _naive(engine, [3, 4], 6) * 2
    texts = [list(prompt), [5]]
    for text, start in zip(texts, map(len, texts), strict=True):
        for _ in range(25):
            counts = np.bincount(text[start:], minlength=engine.vocabulary)[: engine.vocabulary]
            scores = _logprobs(engine, text)[-1] - options.get("frequency_penalty", 0.0) * counts
            text.append(int((scores - options["presence_penalty"] * (counts > 0)).argmax()))
    steps = _steps(engine, [prompt, [5]], 25, Sampling(**options))
    assert _tokens(steps) == [texts[0][len(prompt) :], texts[1][1:]]
    assert _tokens(_steps(engine, [prompt, [5]], 25)) != _tokens(steps)


def test_a_text_as_long_as_the_context_is_scored(engine: Engine):
    short = replace(engine, config=replace(engine.config, max_length=40))
    ids = random_ids(VOCAB, 40).tolist()
    np.testing.assert_allclose(short.score([ids])[0], _logprobs(engine, ids)[range(39), ids[1:]], rtol=0, atol=LOGPROB)
    with pytest.raises(GemwrightError, match="context is 40; score it in windows, with stride"):
        short.score([[*ids, 1]])
    with pytest.raises(GemwrightError, match="context is 40; shorten it"):
        short.generate([ids], [GREEDY], 1)


def test_input_is_checked_when_called(engine: Engine):
    for prompts, samplings, limits in [([[]], [GREEDY], 3), ([[1]], [], 3), ([[1], [2]], [GREEDY] * 2, [3])]:
        with pytest.raises(GemwrightError):
            engine.generate(prompts, samplings, limits)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("top_logprobs", [None, 2])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)])
def test_numbers_that_are_not_finite_are_an_error(
    engine: Engine, value: float, top_logprobs: int | None, sampling: Sampling
):
    norm = engine.params.final_norm.at[3].set(value)
    damaged = replace(engine, params=replace(engine.params, final_norm=norm))
    with pytest.raises(GemwrightError, match="logits are not finite"):
        list(damaged.generate([[1, 2]], [sampling], 3, top_logprobs))
    with pytest.raises(GemwrightError, match="logits are not finite"):
        damaged.score([[1, 2]])


def test_numbers_that_are_not_finite_later_are_an_error(engine: Engine):
    """Of a token that the prompt does not have: found while decoding, with draft tokens or without."""
    (prompt, *_), (sampling, *_), (whole, *_) = _spread(engine, 40)
    place = next(i for i, token in enumerate(whole) if token not in prompt and token not in whole[:i])
    embed = engine.params.embed.at[whole[place], 0].set(np.nan)
    head = engine.params.embed if engine.params.head is None else engine.params.head
    damaged = replace(engine, params=replace(engine.params, embed=embed, head=head))
    for proposer in (None, Lookup()):
        with pytest.raises(GemwrightError, match="logits are not finite"):
            list(damaged.generate([prompt], [sampling], 40, proposer=proposer))
