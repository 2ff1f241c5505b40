"""Distillation against plain PyTorch: losses, gradients, and the estimate on a sample of the vocabulary."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from gemwright.errors import GemwrightError
from gemwright.model import loss
from gemwright.model.config import Config
from gemwright.model.loss import distillation_loss
from gemwright.model.teacher import Teacher, Weighting, draw, weigh
from gemwright.text.vocabulary import Vocabulary
from gemwright.train.distill import Distill
from gemwright.train.recipe import Recipe
from gemwright.train.run import train
from gemwright.train.step import accumulate
from tests.tiny.config import CONFIGS
from tests.tiny.hf import write_model
from tests.tiny.vocabulary import make_vocabulary
from tests.train.cases import (
    Case,
    largest_difference,
    make_case,
    make_documents,
    relative,
    their_gradients,
    to_batch,
    to_layers,
)
from tests.train.tiny_run import prepare_tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOSS = 1e-5
"""Relative tolerance of a float32 loss."""
GRADIENT = 1e-4
"""Tolerance of the gradient of each parameter, relative to its norm."""
SAME = 2e-6
"""Tolerance of sums in another order, relative to their norm."""


class InMemory(Distill):
    """The objective with a teacher that is no file."""

    def __init__(self, config: Config, **settings: Any):
        super().__init__("in memory", **settings)
        self.__dict__["checkpoint"] = type("Teacher", (), {"config": config})


@functools.cache
def make_teacher() -> Case:
    """A Gemma 2, with soft-capped logits and other layers than the student, a Gemma 3."""
    return make_case("gemma2")


def their_logits(model: Any, batch: Any) -> torch.Tensor:
    tokens, segments = (torch.tensor(np.asarray(leaf)).long() for leaf in (batch.tokens, batch.segments))
    return model(input_ids=tokens, attention_mask=segments).logits.float().flatten(0, 1)


def differentiate(objective: Distill, student: Case, batch: Any) -> tuple[Any, dict[str, np.ndarray]]:
    recipe = Recipe(method="full", remat="layers", batch_size=2)
    function = jax.jit(functools.partial(accumulate, student.config, recipe, objective=objective))
    sums, gradient = function(student.weights, {"student": None, "teacher": make_teacher().weights}, batch)
    return sums, to_layers(student.config, gradient)


def their_loss(student: Case, batch: Any, target: torch.Tensor) -> torch.Tensor:
    learned = torch.tensor(np.asarray(batch.learned)).flatten()
    student.theirs.zero_grad()
    scores = torch.log_softmax(their_logits(student.theirs, batch)[learned], dim=-1)
    result = -(target[learned] * scores).sum(-1).mean()
    result.backward()
    return result


def check_gradients(student: Case, found: dict[str, np.ndarray], count: int) -> None:
    expected = their_gradients(student)
    assert found.keys() == expected.keys()
    errors = {path: relative(found[path] / count, value) for path, value in expected.items()}
    assert max(errors.values()) < GRADIENT, max(errors, key=lambda path: errors[path])


@pytest.mark.parametrize("name", ["gemma", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_the_whole_distribution(batch: Any, name: str) -> None:
    """The divergence is PyTorch's KLDivLoss, which is TRL's generalized Jensen-Shannon loss with beta 0."""
    student, teacher = make_case(name), make_teacher()
    sums, gradient = differentiate(InMemory(teacher.config), student, batch)
    with torch.no_grad():
        target = torch.softmax(their_logits(teacher.theirs, batch), dim=-1)
    expected, count = their_loss(student, batch, target), int(sums.count)
    np.testing.assert_allclose(float(sums.loss) / count, expected.item(), rtol=LOSS)
    check_gradients(student, gradient, count)
    learned = torch.tensor(np.asarray(batch.learned)).flatten()
    scores = torch.log_softmax(their_logits(student.theirs, batch), dim=-1)[learned]
    divergence = functional.kl_div(scores, target[learned], reduction="batchmean").item()
    np.testing.assert_allclose(float(sums.metrics["divergence"]) / count, divergence, rtol=LOSS)
    targets = torch.tensor(np.asarray(batch.targets)).long().flatten()[learned]
    next_token = functional.nll_loss(scores, targets).item()
    np.testing.assert_allclose(float(sums.metrics["next-token loss"]) / count, next_token, rtol=LOSS)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["draws", "probabilities"])
def test_a_sample_of_the_vocabulary(batch: Any, weighting: Weighting) -> None:
    """The loss and its gradient for the entries that were drawn."""
    student, teacher = make_case("gemma3"), make_teacher()
    objective = InMemory(teacher.config, samples=8, weighting=weighting)
    sums, gradient = differentiate(objective, student, batch)
    drawn = objective._teach(teacher.weights, batch)  # pyright: ignore
    with torch.no_grad():
        exact = torch.softmax(their_logits(teacher.theirs, batch), dim=-1).numpy()
    ids = np.asarray(draw(jnp.asarray(exact), drawn.uniform, 8))
    target = np.zeros_like(exact)
    for row, (found, probabilities) in enumerate(zip(ids, exact, strict=True)):
        if weighting == "draws":
            np.add.at(target[row], found, 1 / 8)
        else:
            target[row, np.unique(found)] = probabilities[np.unique(found)]
            target[row] /= target[row].sum()
    expected, count = their_loss(student, batch, torch.tensor(target)), int(sums.count)
    np.testing.assert_allclose(float(sums.loss) / count, expected.item(), rtol=LOSS)
    check_gradients(student, gradient, count)


@pytest.fixture(scope="module")
def batch() -> Any:
    return to_batch([[document] for document in make_documents((60, 37))])


def test_draws_are_unbiased() -> None:
    """The mean of the weights of many draws is the teacher's distribution, within five standard errors."""
    random, count, repeats = np.random.default_rng(0), 16, 20_000
    distribution = random.dirichlet(np.full(60, 0.2)).astype(np.float32)
    distribution /= distribution.sum()
    probabilities = jnp.broadcast_to(jnp.asarray(distribution), (repeats, 60))
    ids = draw(probabilities, jnp.asarray(random.random(repeats), jnp.float32), count)
    found = np.asarray(weigh(probabilities, ids, "draws"), np.float64)
    times = np.rint(found * count)
    expected = count * distribution.astype(np.float64)
    assert np.all(times >= np.floor(expected - 1e-4))
    assert np.all(times <= np.ceil(expected + 1e-4))
    error = np.abs(found.mean(axis=0) - distribution)
    assert np.all(error <= 5 * found.std(axis=0) / np.sqrt(repeats) + 1e-6)
    renormalized = np.asarray(weigh(probabilities, ids, "probabilities"), np.float64)
    np.testing.assert_allclose(renormalized.sum(axis=1), 1.0, rtol=1e-5)
    rare = distribution < 0.2 / count
    assert renormalized.mean(axis=0)[rare].sum() < 0.9 * distribution[rare].sum()


@pytest.mark.parametrize(
    ("chunk", "rows"), [(4, -8), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (64, 0), (4, 8)))]
)
def test_chunks_equal_whole_logits(chunk: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a teacher whose table has more rows of padding, or fewer."""
    config = CONFIGS["capped"]
    monkeypatch.setattr(loss, "LOGITS", chunk * config.vocab)
    random = np.random.default_rng(0)
    head, hidden = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((97, 32), (23, 32)))
    others = [random.standard_normal((97 + rows, 24)), random.standard_normal((23, 24))]
    table, states = (jnp.asarray(values, jnp.float32) for values in others)
    teacher = Teacher(states, table, jnp.zeros(23), config, None, "draws")
    learned, targets = jnp.asarray(random.permutation(23) < 10), jnp.asarray(random.integers(0, 97, 23), jnp.int32)

    def naive(head: Any, hidden: Any) -> Any:
        cap = config.final_soft_cap
        scores, theirs = (cap * jnp.tanh(x @ w.T / cap) for x, w in ((hidden, head), (states, table)))
        wished = jnp.pad(jax.nn.softmax(theirs[:, :97]), ((0, 0), (0, max(0, -rows))))
        return -3 * jnp.sum(jnp.where(learned[:, None], wished * jax.nn.log_softmax(scores), 0.0))

    def ours(head: Any, hidden: Any) -> Any:
        return 3 * distillation_loss(config, head, hidden, teacher, targets, learned)[0]

    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(head, hidden) for f in (ours, naive))
    assert largest_difference(found, expected) < SAME
    assert relative(ours(head, hidden), expected[0]) < SAME


@pytest.mark.slow
def test_a_run(tiny: Path, tmp_path: Path) -> None:
    """A wider teacher of another family; the student comes nearer to it, and the forecast counts its memory."""
    write_model(tmp_path / "teacher", "gemma2")
    objective, notes = Distill(str(tmp_path / "teacher"), samples=16), list[str]()
    run = prepare_tiny(tiny, tmp_path / "out", method="full", ema=None, steps=6, objective=objective)
    train(run, note=notes.append)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["metrics"]["held-out divergence"] < 0.9 * lines[0]["metrics"]["held-out divergence"]
    assert "weights" in notes[0]
    made_with = json.loads((tmp_path / "out" / "run.json").read_text())["objective"]
    assert (made_with["name"], made_with["samples"], len(made_with["digest"])) == ("distill", 16, 64)


def test_a_teacher_of_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "model", tmp_path / "teacher")
    vocabulary = make_vocabulary()
    pieces = tuple("zz" if piece == "the" else piece for piece in vocabulary.pieces)
    changed = Vocabulary(pieces, vocabulary.scores, vocabulary.kinds)
    (tmp_path / "teacher" / "tokenizer.model").write_bytes(changed.sentencepiece_model())
    with pytest.raises(GemwrightError, match=r"token \d+ of .*model is 'the' and that of the teacher .* is 'zz'; use"):
        prepare_tiny(tiny, tmp_path / "out", objective=Distill(str(tmp_path / "teacher")))


@pytest.mark.parametrize(
    "settings", [{"samples": 0}, {"samples": True}, {"weighting": "other"}, {"teacher_dtype": "int8"}, {"teacher": ""}]
)
def test_settings_that_are_not_valid(settings: dict[str, Any]) -> None:
    with pytest.raises(GemwrightError):
        Distill(**{"teacher": "a"} | settings)
