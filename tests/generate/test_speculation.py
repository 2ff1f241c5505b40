"""Speculation against plain decoding: the same tokens for any draft tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gemwright.errors import GemwrightError
from gemwright.generate import buckets, speculation
from gemwright.generate.drafts import Draft, Lookup, Proposer
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.generate.speculation import Pace
from gemwright.generate.step import Step
from gemwright.model.config import Config, Layer, Mlp, Recurrent
from gemwright.model.params import ModelWeights
from gemwright.model.transformer import forward, logits
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, WINDOW, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
GREEDY, HOT = Sampling(), Sampling(temperature=1.5, top_k=30, top_p=0.95, seed=11)
PENALISED = replace(HOT, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.7)
SAMPLINGS = [GREEDY, HOT, PENALISED]
LENGTH = 60


PROMPTS = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 5, 40)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return _engine("qk-norm")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch):
    """Speculate at every pass, in all sizes in turn, at any cost."""

    @dataclass
    class Eager(Pace):
        sizes: itertools.cycle = field(default_factory=lambda: itertools.cycle(buckets.VERIFIED))

        def size(self) -> int:
            return next(self.sizes)

    monkeypatch.setattr(speculation, "Pace", Eager)


@dataclass
class Oracle:
    """A proposer that knows the text and errs in some tokens, so that sequences accept different numbers."""

    truth: Sequence[Sequence[int]]
    right: float
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def propose(self, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        drafts = [[*true[len(text) :], *[0] * count][:count] for true, text in zip(self.truth, texts, strict=True)]
        return [
            [g if self.chance.random() < self.right else (g + 1) % VOCAB for g in draft_ids] for draft_ids in drafts
        ]


def _engine(name: str, seed: int = 3) -> Engine:
    return Engine(CONFIGS[name], make_weights(CONFIGS[name], seed=seed), VOCAB)


def _run(engine: Engine, prompts: list[list[int]], count: int, proposer: Proposer | None = None) -> list[Step]:
    return list(engine.generate(prompts, SAMPLINGS, count, top_logprobs=3, proposer=proposer))


def _tokens(steps: list[Step]) -> list[list[int]]:
    return np.stack([step.tokens for step in steps], axis=1).tolist()


def _draft(engine: Engine) -> Draft:
    return Draft(engine.config, engine.params, engine.vocabulary, SAMPLINGS, engine.state_dtype)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_rows_read_as_without_speculation(engine: Engine, right: float):
    """Greedy, sampled and penalised sequences, many times past the window; log-probabilities and top_logprobs too."""
    plain = _run(engine, PROMPTS, LENGTH)
    truth = [prompt + tokens for prompt, tokens in zip(PROMPTS, _tokens(plain), strict=True)]
    assert LENGTH > 5 * WINDOW
    together = _run(engine, PROMPTS, LENGTH, Oracle(truth, right))
    assert _tokens(together) == _tokens(plain)
    for one, other in zip(plain, together, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, rtol=0, atol=1e-5)
    proposed, accepted = (sum(getattr(step, name).sum() for step in together) for name in ("proposed", "accepted"))
    assert proposed > LENGTH
    assert (accepted == 0, accepted == proposed) == (right == 0.0, right == 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_rows_without_a_top_k_read_as_without_speculation(engine: Engine):
    wide = replace(HOT, top_k=0)
    samplings = [wide, replace(wide, top_p=1.0, min_p=0.05), replace(wide, top_p=1.0, repetition_penalty=1.4)]
    plain = _tokens(list(engine.generate(PROMPTS, samplings, 30)))
    truth = [prompt + tokens for prompt, tokens in zip(PROMPTS, plain, strict=True)]
    together = list(engine.generate(PROMPTS, samplings, 30, proposer=Oracle(truth, 0.7)))
    assert _tokens(together) == plain
    assert 0 < sum(step.accepted.sum() for step in together) < sum(step.proposed.sum() for step in together)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("rows", [speculation.MAX_SEQUENCES, speculation.MAX_SEQUENCES + 1])
def test_large_batches_are_decoded_plainly(engine: Engine, rows: int):
    prompts = [random_ids(VOCAB, 6, seed=1).tolist() * 3] * rows
    steps = list(engine.generate(prompts, [Sampling()] * rows, 12, proposer=Lookup()))
    assert any(step.proposed.any() for step in steps) == (rows == speculation.MAX_SEQUENCES)


@pytest.mark.usefixtures("eager")
def test_look_up_changes_nothing(engine: Engine):
    prompts = [
        random_ids(VOCAB, 6, seed=1).tolist() * 5,
        random_ids(VOCAB, 30).tolist(),
        random_ids(VOCAB, 10).tolist() * 2,
    ]
    steps = _run(engine, prompts, LENGTH, Lookup())
    assert _tokens(steps) == _tokens(_run(engine, prompts, LENGTH))
    assert 0 < sum(step.accepted.sum() for step in steps) < sum(step.proposed.sum() for step in steps)


@pytest.mark.usefixtures("eager")
def test_a_draft_changes_nothing_and_the_model_itself_is_always_right(engine: Engine):
    """Except for the repetition penalty of the last sequence, which a draft does without."""
    plain = _tokens(_run(engine, PROMPTS, LENGTH))
    shares: list[list[float]] = []
    for draft in (engine, replace(engine, params=make_weights(engine.config, seed=8))):
        steps = _run(engine, PROMPTS, LENGTH, _draft(draft))
        assert _tokens(steps) == plain
        proposed, accepted = (sum(getattr(step, name) for step in steps) for name in ("proposed", "accepted"))
        assert min(proposed) > 20
        shares.append((accepted / proposed).tolist())
    assert shares[0][:2] == [1.0, 1.0]
    assert max(shares[1]) < 0.9


def test_a_draft_that_was_left_alone_catches_up(engine: Engine):
    """After texts that accept or reject its draft tokens, by few tokens or many, it equals a new one."""
    texts, draft = PROMPTS, _draft(engine)
    for more in (0, 1, 2, 9, 45):
        texts = [text + random_ids(VOCAB, more, seed=more).tolist() for text in texts]
        drafts = draft.propose(texts, 7)
        assert drafts == _draft(engine).propose(texts, 7)
        texts = [[*text, *draft_ids[:2]] for text, draft_ids in zip(texts, drafts, strict=True)]
        assert draft.propose(texts, 7) == _draft(engine).propose(texts, 7)


def test_a_draft_is_silent_beyond_its_context(engine: Engine):
    draft = _draft(replace(engine, config=replace(engine.config, max_length=47)))
    assert list(map(len, draft.propose(PROMPTS, 7))) == [7, 7, 7]
    assert draft.propose([*PROMPTS[:2], random_ids(VOCAB, 41).tolist()], 7) == [[], [], []]


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_sampled_tokens_follow_the_models_distribution(monkeypatch: pytest.MonkeyPatch):
    """The first three tokens of 2000 texts against the probabilities of each, and of the last two together, which were
    drafted; chi-square at 1e-4, fixed seeds.

    The draft is the same in every row: the likeliest pair, which is right in some rows only.
    """
    engine, prompt, rows = _engine("multi-query"), random_ids(VOCAB, 8).tolist(), 2000
    monkeypatch.setattr(speculation, "MAX_SEQUENCES", rows)  # many small batches would take minutes
    tokens = range(VOCAB)
    first = _probabilities(engine, [prompt])[0]
    second = _probabilities(engine, [[*prompt, token] for token in tokens])
    third = _probabilities(engine, [[*prompt, one, two] for one in tokens for two in tokens])
    pairs = np.einsum("a,ab,abc->bc", first, second, third.reshape(VOCAB, VOCAB, VOCAB))
    likeliest = np.unravel_index(pairs.argmax(), pairs.shape)
    truth = [[*prompt, 0, *map(int, likeliest), 0, 0, 0, 0, 0]] * rows
    samplings = [Sampling(temperature=1.0, seed=seed) for seed in range(rows)]
    steps = list(engine.generate([prompt] * rows, samplings, 3, proposer=Oracle(truth, 1.0)))
    assert 0 < sum(step.accepted.sum() for step in steps) < 2 * rows
    drawn = np.array(_tokens(steps))
    for counts, exact in [
        (np.bincount(drawn[:, 0], minlength=VOCAB), first),
        (np.bincount(drawn[:, 1], minlength=VOCAB), pairs.sum(1)),
        (np.bincount(drawn[:, 2], minlength=VOCAB), pairs.sum(0)),
        (np.bincount(drawn[:, 1:] @ [VOCAB, 1], minlength=VOCAB**2), pairs.reshape(-1)),
    ]:
        common = exact * rows >= 5
        rest = [] if common.all() else [~common]
        observed, expected = ([*x[common], *(x[other].sum() for other in rest)] for x in (counts, exact * rows))
        assert stats.chisquare(observed, expected).pvalue > 1e-4


def _probabilities(engine: Engine, texts: list[list[int]]) -> np.ndarray:
    @jax.jit
    def last(params: ModelWeights, tokens: jax.Array) -> jax.Array:
        hidden, _ = forward(engine.config, params, tokens)
        return logits(engine.config, params, hidden[:, -1])

    scores = np.asarray(last(engine.params, jnp.asarray(texts)), np.float64)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.usefixtures("eager")
def test_writing_ends_with_the_context(engine: Engine):
    prompts = [random_ids(VOCAB, length).tolist() for length in (engine.config.max_length - 5, 7, 1)]
    plain = _tokens(_run(engine, prompts, 100))
    assert _tokens(_run(engine, prompts, 100, _draft(engine))) == plain
    assert [sum(token >= 0 for token in row) for row in plain] == [5, 100, 100]


@pytest.mark.usefixtures("eager")
def test_caches_that_grow_give_the_same_text(monkeypatch: pytest.MonkeyPatch, engine: Engine):
    plain = _tokens(_run(engine, PROMPTS, LENGTH))
    monkeypatch.setattr(buckets, "CAPACITIES", (50,))
    assert _tokens(_run(engine, PROMPTS, LENGTH, _draft(engine))) == plain


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_sequences_end_at_stop_ids_and_limits(engine: Engine, right: float):
    """The same steps as without speculation, -1 after each sequence's end included."""
    whole = _tokens(_run(engine, PROMPTS, LENGTH))
    truth = [prompt + tokens for prompt, tokens in zip(PROMPTS, whole, strict=True)]
    limits, stop_ids = [LENGTH, 9, LENGTH], [whole[2][20]]
    plain = list(engine.generate(PROMPTS, SAMPLINGS, limits, stop_ids=stop_ids))
    together = list(engine.generate(PROMPTS, SAMPLINGS, limits, proposer=Oracle(truth, right), stop_ids=stop_ids))
    assert _tokens(together) == _tokens(plain)
    written = [[token for token in tokens if token >= 0] for tokens in _tokens(plain)]
    assert len(written[1]) <= 9
    assert len(written[2]) <= 21
    assert [tokens == whole[index][: len(tokens)] for index, tokens in enumerate(written)] == [True] * 3


def test_a_caller_may_stop_asking(engine: Engine):
    endless = engine.generate(PROMPTS, SAMPLINGS, 10**9, top_logprobs=3, proposer=Lookup())
    assert _tokens(list(itertools.islice(endless, 5))) == _tokens(_run(engine, PROMPTS, 5))


def test_recurrent_layers_are_refused(engine: Engine):
    config = Config(32, VOCAB, (Layer(Recurrent(32, 2), Mlp(48)),), max_length=64)
    recurrent = replace(engine, config=config)  # refused before its weights are looked at
    with pytest.raises(GemwrightError, match="recurrent"):
        _run(recurrent, PROMPTS, 3, Lookup())
    with pytest.raises(GemwrightError, match="recurrent"):
        _draft(recurrent)


@pytest.mark.parametrize(
    ("text", "draft_ids"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9, 1]),  # three tokens again
        ([7, 2, 3, 4, 8, 2, 3, 5, 6, 2, 3], [5, 6, 2, 3]),  # two again: the latest continuation
        ([5, 6, 5, 6], [5, 6, 5, 6]),  # a repetition goes on
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 3, 4, 5, 1], []),
        ([1], []),
    ],
)
def test_look_up(text: list[int], draft_ids: list[int]):
    assert list(Lookup().propose([text], 4)[0]) == draft_ids
    grown = Lookup()
    for length in range(1, len(text)):
        grown.propose([text[:length]], 4)
    assert list(grown.propose([text], 4)[0]) == draft_ids


COST = {1: 1.0, 4: 1.5, 8: 2.5}


def _play(pace: Pace, passes: int, right: float) -> list[int]:
    """Return a pace's choice of sizes for this probability of accepted draft tokens and passes that cost `COST`."""
    sizes: list[int] = []
    chance = np.random.default_rng(0)
    for _ in range(passes):
        sizes.append(pace.size())
        wrong = np.flatnonzero(chance.random(sizes[-1]) >= right)
        taken = min([sizes[-1], *(wrong[:1] + 1)])
        pace.record(sizes[-1], np.array([taken], np.int32), COST[sizes[-1]])
    return sizes


def test_the_pace_stays_where_it_pays_and_rests_where_it_does_not():
    assert set(_play(Pace(), 100, right=1.0)[-50:]) == {8}
    some = _play(Pace(), 1000, right=0.65)  # 2.4 tokens for 1.5 against 2.8 for 2.5
    assert some.count(4) > 700
    idle = _play(Pace(), 2000, right=0.0)
    assert 8 <= sum(size > 1 for size in idle) <= 40
    assert any(size > 1 for size in idle[-300:])


def test_the_pace_wakes_up_and_falls_asleep():
    pace = Pace()
    assert 1 in _play(pace, 100, right=0.0)
    assert set(_play(pace, 400, right=1.0)[-50:]) == {8}
    assert sum(size > 1 for size in _play(pace, 400, right=0.0)[-200:]) <= 6


def test_a_first_pass_that_was_compiled_does_not_count():
    pace, slow = Pace(), {1: 60.0, 4: 50.0, 8: 40.0}
    for size in (1, 4, 8):
        pace.record(size, np.array([size], np.int32), slow[size])
    assert set(_play(pace, 60, right=1.0)[-20:]) == {8}
