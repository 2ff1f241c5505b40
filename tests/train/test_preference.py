"""The objectives over pairs against plain PyTorch: losses, gradients, and reward models that transformers opens."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

import gemwright
from gemwright.cli import main
from gemwright.errors import DataError, GemwrightError, NotFiniteError
from gemwright.train.description import prepare_described, read_description
from gemwright.train.objectives.objective import Objective, Sequences
from gemwright.train.objectives.preference import Dpo
from gemwright.train.objectives.reward import Reward, RewardWeights
from gemwright.train.objectives.reward_model import load_reward
from gemwright.train.recipe import Recipe
from gemwright.train.run import prepare, train
from tests.tiny.hf import write_model
from tests.train.cases import Case, make_case, make_documents, relative, their_gradients, to_batch, to_layers
from tests.train.tiny_run import WORDS

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks for it
]
LOSS = 1e-5
"""Relative tolerance of a float32 loss."""
GRADIENT = 1e-4
"""Tolerance of the gradient of each parameter, relative to its norm."""
ROWS = (((9, 14), (12, 20)), ((25, 30),))
"""Lengths of the chosen and rejected documents of pairs, some of which share a row."""
QUICK_AND_SLOW = ["gemma", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gemma3"))]
FULL = Recipe(method="full")


def make_pairs(scored: bool) -> tuple[Sequences, list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Return a batch of pairs, and the pairs themselves: ids, and which targets are learned."""
    lengths = [length for row in ROWS for pair in row for length in pair]
    documents = make_documents(tuple(lengths))
    if scored:
        documents = [(ids, np.arange(len(learned)) == len(learned) - 1) for ids, learned in documents]
    pairs = [documents[index : index + 2] for index in range(0, len(documents), 2)]
    rows, start = [], 0
    for row in ROWS:
        rows.append([document for pair in pairs[start : start + len(row)] for document in pair])
        start += len(row)
    return to_batch(rows), pairs


def differentiate(objective: Objective, case: Case, trained: Any, frozen: Any, batch: Sequences) -> tuple[Any, Any]:
    """Return the sums of a batch, and the gradient of the mean loss."""

    def lose(trained: Any) -> Any:
        sums = objective.sum_losses(case.config, FULL, trained, frozen, batch)
        return sums.loss / sums.count, sums

    gradient, sums = jax.jit(jax.grad(lose, has_aux=True))(trained)
    return sums, gradient


def assert_gradients_are_theirs(case: Case, gradient: Any) -> None:
    found, expected = to_layers(case.config, gradient), their_gradients(case)
    errors = {path: relative(found[path], value) for path, value in expected.items()}
    assert max(errors.values()) < GRADIENT, max(errors, key=lambda path: errors[path])


def their_answers(model: Any, pairs: Any) -> torch.Tensor:
    """Return the log-likelihoods of both answers of each pair, from transformers' logits."""

    def answer(ids: np.ndarray, learned: np.ndarray) -> torch.Tensor:
        logprobs = model(input_ids=torch.tensor(ids[None, :-1])).logits[0].float().log_softmax(-1)
        return logprobs.gather(1, torch.tensor(ids[1:, None]))[torch.tensor(learned), 0].sum()

    return torch.stack([torch.stack([answer(*document) for document in pair]) for pair in pairs])


@pytest.mark.parametrize(
    "name", ["gemma", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gemma3"))]
)
def test_dpo_equals_pytorch(name: str):
    case, (batch, pairs) = make_case(name), make_pairs(scored=False)
    with torch.no_grad():
        reference = their_answers(case.theirs, pairs)
    frozen = case.weights
    moved = make_case.__wrapped__(name)
    with torch.no_grad():
        moved.theirs.model.norm.weight += 0.3
    trained = replace(frozen, final_norm=frozen.final_norm + 0.3)
    answers = their_answers(moved.theirs, pairs)
    margin = 0.1 * ((answers - reference)[:, 0] - (answers - reference)[:, 1])
    expected = -logsigmoid(margin).mean()
    expected.backward()
    sums, gradient = differentiate(Dpo(beta=0.1), case, trained, frozen, batch)
    assert int(sums.count) == len(pairs)
    np.testing.assert_allclose(float(sums.loss) / len(pairs), expected.item(), rtol=LOSS)
    np.testing.assert_allclose(float(sums.metrics["margin"]), margin.sum().item(), rtol=1e-4)
    assert float(sums.metrics["accuracy"]) == int((margin > 0).sum())
    assert float(sums.metrics["likelier"]) == int((answers[:, 0] > answers[:, 1]).sum())
    assert_gradients_are_theirs(moved, gradient)
    same = differentiate(Dpo(), case, frozen, frozen, batch)[0]
    np.testing.assert_allclose(float(same.loss) / len(pairs), np.log(2), rtol=LOSS)
    assert float(same.metrics["accuracy"]) == len(pairs) / 2
    assert float(same.metrics["kl"]) < 1e-6


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_reward_equals_pytorch(name: str):
    case, (batch, pairs) = make_case(name), make_pairs(scored=True)
    case.theirs.zero_grad()
    score = torch.tensor(np.random.default_rng(3).standard_normal(case.config.width), dtype=torch.float32)
    score.requires_grad_()

    def their_score(ids: np.ndarray) -> torch.Tensor:
        return case.theirs.model(input_ids=torch.tensor(ids[None, :-1])).last_hidden_state[0, -1] @ score

    scores = torch.stack([torch.stack([their_score(ids) for ids, _ in pair]) for pair in pairs])
    expected = -logsigmoid(scores[:, 0] - scores[:, 1]).mean()
    expected.backward()
    trained = RewardWeights(case.weights, jnp.asarray(score.detach().numpy())[None])
    sums, gradient = differentiate(Reward(), case, trained, None, batch)
    np.testing.assert_allclose(float(sums.loss) / len(pairs), expected.item(), rtol=LOSS)
    assert float(sums.metrics["accuracy"]) == int((scores[:, 0] > scores[:, 1]).sum())
    assert relative(gradient.score[0], score.grad) < GRADIENT
    assert_gradients_are_theirs(case, gradient.body)


def write_pairs(path: Path, pairs: int = 12) -> Path:
    """Write pairs of which the chosen answer is longer."""
    lines = []
    for index in range(pairs):
        words = [WORDS[(index * index + 3 * place) % len(WORDS)] for place in range(4 + index % 3)]
        lines.append(json.dumps({"prompt": words[0], "chosen": " ".join(words), "rejected": words[-1]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def run(tiny: Path, out: Path, objective: Objective, **recipe: Any) -> tuple[Path, list[Any]]:
    """Train on pairs, and return the result and the progress."""
    data = write_pairs(out.with_suffix(".jsonl"))
    settings = {"rank": 2, "length": 48, "batch_size": 2, "steps": 8, "learning_rate": 1e-2, **recipe}
    prepared = prepare(tiny, data, out, Recipe(**settings), held_out=data, objective=objective)
    steps: list[Any] = []
    return train(prepared, steps.append), steps


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference") / "model"
    write_model(folder, "gemma3_text")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_dpo_learns_pairs(model: Path, tmp_path: Path, method: Any):
    rate = {"lora": 1e-2, "full": 1e-3}[method]
    _, steps = run(model, tmp_path / "run", Dpo(), method=method, learning_rate=rate)
    assert steps[0].held_out == pytest.approx(np.log(2), rel=1e-4)
    assert steps[0].metrics["held-out accuracy"] == 0.5
    assert steps[-1].held_out < steps[0].held_out
    assert steps[-1].metrics["held-out accuracy"] > 0.9
    assert steps[-1].metrics["held-out kl"] > 0


RECORDS = [{"prompt": "the", "completion": "hat in ring"}, {"prompt": "QED man", "completion": "here"}]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_has_equal_scores_in_transformers(
    model: Path, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from transformers import AutoModelForSequenceClassification

    folder, steps = run(model, tmp_path / "run", Reward(), method=method, learning_rate=1e-2)
    assert steps[0].held_out == pytest.approx(np.log(2), rel=1e-6)
    assert steps[-1].metrics["held-out accuracy"] > 0.9
    loaded = load_reward(folder, "float32")
    found = loaded.score(RECORDS)
    if method == "full":
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    else:
        from peft import PeftModel

        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        expected = [theirs(input_ids=torch.tensor(loaded._encode(1, record)[None])).logits.item() for record in RECORDS]
    assert abs(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(GemwrightError, match="reward model, which gives no text"):
        gemwright.load(folder)
    words = ["--prompt", "the", "hat in ring", "--dtype", "float32", "--json"]
    monkeypatch.setattr(sys, "argv", ["gemwright", "score", "--reward", "--model", str(folder), *words])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["reward"] == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_a_run_is_described_in_a_file(model: Path, tmp_path: Path):
    data = write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "run.toml").write_text(
        f"""
        model = "{model}"
        out = "{tmp_path / "out"}"
        objective = "dpo"
        [dpo]
        beta = 0.2
        [recipe]
        length = 48
        steps = 2
        [[data]]
        path = "{data}"
        """
    )
    described = prepare_described(read_description(tmp_path / "run.toml"))
    assert described.objective == Dpo(beta=0.2)
    assert described.batches[0].segments.max() % 2 == 0
    (tmp_path / "library.py").write_text("x = 1\n" * 40)
    code = (tmp_path / "run.toml").read_text().replace(str(data), str(tmp_path / "library.py"))
    (tmp_path / "code.toml").write_text(f"{code}infill = 0.5\n")
    with pytest.raises(GemwrightError):
        prepare_described(read_description(tmp_path / "code.toml"))


def test_bad_input_is_refused(model: Path, tmp_path: Path):
    data = write_pairs(tmp_path / "pairs.jsonl")
    ready = functools.partial(prepare, model, data, tmp_path / "out", objective=Dpo())
    with pytest.raises(DataError, match="No pair is left"):
        ready(Recipe(length=8))
    with pytest.raises(GemwrightError, match="concatenate cuts pairs"):
        ready(Recipe(length=48, packing="concatenate"))
    with pytest.raises(GemwrightError, match="beta must be"):
        Dpo(beta=0.0)
    with pytest.raises(GemwrightError, match="no reward model"):
        load_reward(model)
    write_model(tmp_path / "vault", "vaultgemma")
    with pytest.raises(GemwrightError, match="no class for a reward model of VaultGemma"):
        prepare(tmp_path / "vault", data, tmp_path / "out", Recipe(length=48), objective=Reward())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(model: Path, tmp_path: Path):
    with pytest.raises(NotFiniteError, match="not finite"):
        run(model, tmp_path / "run", Reward(), method="full", learning_rate=1e38)
