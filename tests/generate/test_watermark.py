"""The watermark, beside transformers' SynthID-Text, and what its detector finds."""

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import SynthIDTextWatermarkingConfig, SynthIDTextWatermarkLogitsProcessor

from gemwright.errors import GemwrightError
from gemwright.generate import programs
from gemwright.generate.drafts import Lookup
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling, uniform
from gemwright.generate.step import Step
from gemwright.generate.tournament import TournamentKeys
from gemwright.generate.watermark import Watermark, create_watermark, detect, g_values, read_watermark
from tests.helpers import random_ids
from tests.tiny.config import CONFIGS, VOCAB, make_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
MARK = Watermark(
    tuple(random_ids(2**40, 10).tolist()), ngram_len=3, context_history_size=4, skip_first_ngram_calls=True
)
MARKS = {
    "usual": Watermark((654, 400, 836, 123, 340, 443, 597, 160, 57), ngram_len=5),
    "large keys": replace(MARK, keys=(-(2**63), 2**63 - 1, -2, 2**62 + 12345), sampling_table_seed=2**63 + 11),
    "few contexts": replace(MARK, ngram_len=2, context_history_size=3),
    "no contexts": replace(MARK, context_history_size=0, sampling_table_size=1 << 20),
    "odd table": replace(MARK, sampling_table_size=77_777, skip_first_ngram_calls=False),
    "long n-grams": replace(MARK, ngram_len=13, sampling_table_seed=-3, sampling_table_size=1000),
}
marks = pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
SAMPLINGS = [
    Sampling(1.0, top_k=9, seed=3),
    Sampling(1.4, top_k=9, seed=4),
    Sampling(1.0, top_k=7, seed=5),
]
PROMPTS = [random_ids(VOCAB, length, seed=length).tolist() for length in (1, 5, 30)]
LIMIT = 40


def _oracle(mark: Watermark) -> SynthIDTextWatermarkLogitsProcessor:
    return SynthIDTextWatermarkingConfig(**asdict(mark) | {"keys": list(mark.keys)}).construct_processor(VOCAB, "cpu")


@functools.cache
def _engine() -> Engine:
    return Engine(CONFIGS["qk-norm"], make_weights(CONFIGS["qk-norm"], seed=3), VOCAB)


@functools.cache
def _generate(mark: Watermark | None, *rows: int) -> list[Step]:
    keys = None if mark is None else TournamentKeys.place(mark)
    prompts, samplings = [PROMPTS[row] for row in rows], [SAMPLINGS[row] for row in rows]
    return list(_engine().generate(prompts, samplings, LIMIT, 9, watermark=keys))


def _tokens(mark: Watermark | None, *rows: int) -> list[list[int]]:
    return np.stack([step.tokens for step in _generate(mark, *rows)], axis=1).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**40 + 7, 2**64 - 1, -1, -(2**63)])
def test_table_is_that_of_torch(seed: int):
    mark = replace(MARK, sampling_table_seed=seed, sampling_table_size=3000)
    assert np.array_equal(mark.table, _oracle(mark).sampling_table.numpy())


@marks
def test_g_values_are_those_of_transformers(mark: Watermark):
    ids = random_ids(262_144, (2, 40))
    expected = _oracle(mark).compute_g_values(torch.tensor(ids)).numpy()
    assert np.array_equal(np.stack([g_values(mark, row) for row in ids.tolist()]), expected)


@pytest.mark.parametrize("mark", [MARKS["few contexts"], MARKS["odd table"]], ids=["few contexts", "odd table"])
def test_scores_are_those_of_transformers(mark: Watermark):
    """Hashes, g values and repetitions are equal; probabilities but for rounding, as sums have another order."""
    oracle, keys = _oracle(mark), TournamentKeys.place(mark)
    state, numbers = keys.empty_state(2), np.random.default_rng(1)
    ids = numbers.integers(0, 3, (2, 30))  # few tokens, so that contexts are repeated
    everywhere, tokens = jnp.ones(2, bool), jnp.broadcast_to(jnp.arange(VOCAB, dtype=jnp.int32), (2, VOCAB))
    counted = 0
    for at in range(ids.shape[1]):
        scores = numbers.normal(scale=2.0, size=(2, VOCAB)).astype(np.float32)
        scores[:, numbers.permutation(VOCAB)[:60]] = -np.inf
        last = ids[:, at - 1]
        expected = oracle(torch.tensor(last[:, None]), torch.tensor(scores)).numpy()
        tournament, state = keys.begin(keys.append(state, jnp.asarray(last, jnp.int32)) if at else state, everywhere)
        assert np.array_equal(np.asarray(tournament.marked), (expected != scores).any(axis=1))
        found = np.asarray(tournament.play(jnp.exp(scores), tokens))
        wanted = np.exp(expected)
        assert np.abs(found / found.sum(1, keepdims=True) - wanted / wanted.sum(1, keepdims=True)).max() < 1e-6
        counted += int(tournament.marked.sum())
    assert 1 <= counted <= 60


def test_scores_are_equal_bit_for_bit_where_sums_are_exact():
    """64 equal candidates and three keys: all sums are multiples of 2^-24."""
    mark = replace(MARK, keys=MARK.keys[:3], skip_first_ngram_calls=False)
    scores = np.full((1, VOCAB), -np.inf, np.float32)
    scores[:, :64] = 0.0
    keys = TournamentKeys.place(mark)
    tournament, _ = keys.begin(keys.empty_state(1), jnp.ones(1, bool))
    found = tournament.play(jnp.exp(scores), jnp.arange(VOCAB, dtype=jnp.int32)[None])
    expected = _oracle(mark)(torch.ones((1, 1), dtype=torch.long), torch.tensor(scores))
    log = torch.log(torch.tensor(np.asarray(found)))
    assert torch.equal(torch.where(torch.isfinite(log), log, torch.finfo(torch.float32).min), expected)
    assert len(expected.unique()) > 3


def test_tokens_are_drawn_from_the_scores_of_transformers():
    """Replay every draw of a batch, over several calls of the decoding program, whose state must go on."""
    oracle, ids = _oracle(MARK), torch.zeros((3, 1), dtype=torch.long)
    seeds = jnp.asarray([sampling.seed for sampling in SAMPLINGS], jnp.uint32)
    temperatures = np.array([[sampling.temperature] for sampling in SAMPLINGS], np.float32)
    unchanged = 0
    for at, step in enumerate(_generate(MARK, 0, 1, 2)):
        scores = np.full((3, VOCAB), -np.inf, np.float32)
        np.put_along_axis(scores, step.top_tokens, step.top_logprobs / temperatures, axis=1)
        scores[2, step.top_tokens[2, 7:]] = -np.inf  # top-k
        marked = oracle(ids, torch.tensor(scores))
        unchanged += int((marked == torch.tensor(scores)).all(dim=1).sum())
        numbers = np.asarray(uniform(seeds, jnp.asarray([len(prompt) + at for prompt in PROMPTS])))
        probabilities = torch.softmax(marked, dim=1).double().numpy()
        drawn = (np.cumsum(probabilities, axis=1) <= numbers[:, :1]).sum(axis=1)
        assert np.array_equal(drawn, step.tokens)
        ids = torch.tensor(step.tokens[:, None], dtype=torch.long)
    assert 3 * 2 < unchanged < 60  # the first tokens, and repeated contexts


def test_probabilities_are_unbiased_over_contexts():
    """The mean over 4,000 contexts is within 4.5 standard errors of each probability without the watermark."""
    count, ids = 4000, jnp.arange(12, dtype=jnp.int32)
    keys = TournamentKeys.place(replace(MARK, context_history_size=0, skip_first_ngram_calls=False))
    state = replace(keys.empty_state(count), context=jnp.asarray(random_ids(262_144, (count, 2)), jnp.int32))
    tournament, _ = keys.begin(state, jnp.ones(count, bool))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(12)).astype(np.float32)
    found = np.asarray(tournament.play(jnp.tile(probabilities, (count, 1)), jnp.tile(ids, (count, 1))), np.float64)
    error = found.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(found.mean(axis=0) - probabilities) < 4.5 * error)
    assert found.std(axis=0).max() > 0.2  # of one context they are far from them


def test_sequences_of_a_batch_are_independent():
    together = _tokens(MARK, 0, 1, 2)
    assert [_tokens(MARK, row)[0] for row in range(3)] == together


def test_nothing_changes_without_a_watermark():
    before, marked = _tokens(None, 0, 1, 2), _tokens(MARK, 0, 1, 2)
    compiled = programs.decode.__wrapped__._cache_size()
    _generate.cache_clear()
    assert _tokens(None, 0, 1, 2) == before != marked
    assert programs.decode.__wrapped__._cache_size() == compiled


def test_marked_text_is_detected_with_its_keys_only():
    marked, plain = _tokens(MARK, 0, 1, 2), _tokens(None, 0, 1, 2)
    assert max(detect(MARK, row).p_value for row in marked) < 1e-4
    other = replace(MARK, keys=tuple(key + 1 for key in MARK.keys))
    assert min(detect(other, row).p_value for row in marked) > 1e-3
    assert min(detect(MARK, row).p_value for row in plain) > 1e-3


def test_p_values_of_texts_without_the_watermark_are_uniform():
    found = [detect(MARKS["usual"], random_ids(5000, 80, seed).tolist()).p_value for seed in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 1 <= sum(p_value < 0.01 for p_value in found) <= 11  # 4 are expected


@marks
def test_p_value_is_the_binomial_one(mark: Watermark):
    ids = random_ids(200, 50).tolist()
    found, oracle = detect(mark, ids), _oracle(mark)
    ones = round(found.mean * found.ngrams * len(mark.keys))
    table = oracle.sampling_table.double().mean().item()
    assert found.expected == pytest.approx(table, rel=1e-12)
    expected = stats.binom.sf(ones - 1, found.ngrams * len(mark.keys), table)
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_repetitions_count_once():
    ids, mark = random_ids(5000, 40).tolist(), MARKS["usual"]
    once, twice = detect(mark, ids), detect(mark, ids + ids)
    assert (once.ngrams, twice.ngrams) == (36, 40)  # four new n-grams begin in the first copy and end in the second
    assert detect(mark, [7] * 100).ngrams == 1
    mask = _oracle(mark).compute_context_repetition_mask(torch.tensor([ids + ids]))
    assert int(mask.sum()) == twice.ngrams
    doubled = replace(mark, keys=(*mark.keys, *(key + 2**16 for key in mark.keys)))
    assert detect(doubled, ids) == once


def test_short_text_is_refused():
    with pytest.raises(GemwrightError, match="has 4 tokens, and the watermark shows in 5 or more"):
        detect(MARKS["usual"], [1, 2, 3, 4])
    assert detect(MARKS["usual"], [1, 2, 3, 4, 5]).ngrams == 1


@pytest.mark.parametrize(
    ("sampling", "proposer", "sentence"),
    [
        (Sampling(), None, "use a temperature above 0"),
        (Sampling(1.0), None, "set top_k, from 1 to 256"),
        (Sampling(1.0, top_k=257), None, "set top_k, from 1 to 256"),
        (Sampling(1.0, top_k=9), Lookup(), "speculative decoding exclude each other"),
    ],
    ids=str,
)
def test_what_cannot_be_marked_is_refused(sampling: Sampling, proposer: Lookup | None, sentence: str):
    keys = TournamentKeys.place(MARK)
    with pytest.raises(GemwrightError, match=sentence):
        _engine().generate([[1, 2]], [sampling], 5, None, proposer, watermark=keys)


def test_files_are_those_of_transformers(tmp_path: Path):
    made = create_watermark(tmp_path / "new.json")
    assert read_watermark(tmp_path / "new.json") == made
    assert (tmp_path / "new.json").stat().st_mode & 0o777 == 0o600
    config = SynthIDTextWatermarkingConfig.from_dict(json.loads((tmp_path / "new.json").read_text()))
    assert config.to_dict() == asdict(made) | {"keys": list(made.keys), "debug_mode": False}
    for name, mark in MARKS.items():
        SynthIDTextWatermarkingConfig(**asdict(mark) | {"keys": list(mark.keys)}).to_json_file(str(tmp_path / name))
        assert read_watermark(tmp_path / name) == mark
    with pytest.raises(GemwrightError, match="exists, and texts with its keys may too"):
        create_watermark(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must be a JSON object"),
        (b" " * (1 << 20) + b"{}", "has more than 1048576 bytes"),
        (b'{"ngram_len": 5}', "has no keys"),
        (b'{"keys": [1]}', "has no ngram_len"),
        (b'{"keys": 1, "ngram_len": 5}', "keys must be a list"),
        (b'{"keys": [], "ngram_len": 5}', "keys must be a list of 1 to 1024 integers"),
        (b'{"keys": [true], "ngram_len": 5}', "keys must be"),
        (b'{"keys": [1.5], "ngram_len": 5}', "keys must be"),
        (b'{"keys": [9223372036854775808], "ngram_len": 5}', "integers of 64 bits"),
        (b'{"keys": [1], "ngram_len": 1}', "ngram_len is 1, and it must lie between 2 and 64"),
        (b'{"keys": [1], "ngram_len": "5"}', "ngram_len must be an integer"),
        (b'{"keys": [1], "ngram_len": 5, "sampling_table_size": 16777217}', "sampling_table_size is 16777217"),
        (b'{"keys": [1], "ngram_len": 5, "sampling_table_size": 0}', "sampling_table_size is 0"),
        (b'{"keys": [1], "ngram_len": 5, "skip_first_ngram_calls": 1}', "must be true or false"),
        (b'{"keys": [1], "ngram_len": 5, "debug_mode": true}', "has 'debug_mode'"),
        (b'{"keys": [1], "ngram_len": 5, "depth": 3}', "has 'depth'; its settings are keys, ngram_len"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_damaged_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes, sentence: str):
    (tmp_path / "keys.json").write_bytes(content)
    with pytest.raises(GemwrightError, match=sentence):
        read_watermark(tmp_path / "keys.json")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(GemwrightError, match="does not exist; make new keys with `gemwright watermark"):
        read_watermark(tmp_path / "keys.json")
    with pytest.raises(GemwrightError, match="cannot be read"):
        read_watermark(tmp_path)
