"""Policy gradients: losses and gradients against PyTorch's, and runs with rewards of every kind."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from gemwright.checkpoint.convert import convert
from gemwright.errors import GemwrightError
from gemwright.kernels.native import native_enabled
from gemwright.train.description import prepare_described, read_description
from gemwright.train.objectives.objective import Sequences
from gemwright.train.objectives.policy import Grpo, PolicyGradient, Reinforce
from gemwright.train.objectives.rewards import last_number
from gemwright.train.recipe import Recipe
from gemwright.train.run import Run, prepare, train
from gemwright.train.step import accumulate
from tests.tiny.pairs import LENGTH
from tests.train.cases import make_case, make_documents, relative, their_gradients, to_batch, to_layers
from tests.train.test_run import crash
from tests.train.tiny_run import WORDS, result

kernels = pytest.mark.skipif(not native_enabled(), reason="the C++ kernels are not installed")
pytestmark = pytest.mark.usefixtures("quick_compilation")
LOSS, GRADIENT = 1e-5, 1e-4
"""Relative tolerances of a loss, and of the gradient of each parameter relative to its norm."""
PACKED = 0.02
"""Largest mean difference between the log-probabilities of the engine, which rounds activations, and the trainer."""
RECIPE = Recipe(rank=2, length=24, batch_size=8, steps=6, learning_rate=1e-2)
REWARD = "def reward(prompt, completion, record):\n    return completion.count('e') / (1 + len(completion))\n"


def make_replies() -> Sequences:
    """Return four replies of uneven lengths, with rewards and log-probabilities near those of the model."""
    batch = to_batch([[document] for document in make_documents((20, 37, 9, 60))])
    random = np.random.default_rng(0)
    learned = np.asarray(batch.segments) > 0
    learned[:, :4] = False
    logprobs = -3 + 0.3 * random.standard_normal((2, 4, LENGTH))
    weights = learned * (4 / learned.sum())
    extras = {
        "advantages": np.array([1.0, -1.2, 0.4, -0.2]),
        "token_weights": weights,
        "sampled": logprobs[0] * learned,
        "reference": logprobs[1] * learned,
        "measures": np.ones((4, 4)),
    }
    arrays = {name: jax.numpy.asarray(value, "float32") for name, value in extras.items()}
    return replace(batch, learned=jax.numpy.asarray(learned), extras=arrays)


def their_logprobs(model: Any, batch: Sequences, temperature: float) -> torch.Tensor:
    tokens, targets, segments = (
        torch.tensor(np.asarray(leaf)).long() for leaf in (batch.tokens, batch.targets, batch.segments)
    )
    logits = model(input_ids=tokens, attention_mask=segments).logits / temperature
    return torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]


def _grpo(logprobs: torch.Tensor, mask: torch.Tensor, given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """Return the loss of TRL's GRPO, of the type dapo, with truncated importance sampling by token."""
    now = logprobs.detach()
    losses = -given["advantages"][:, None] * torch.exp(logprobs - now)
    losses = losses * torch.clamp(torch.exp((now - given["sampled"]) * mask), max=3.0)
    below = given["reference"] - logprobs
    losses = losses + beta * (torch.exp(below) - below - 1)
    return (losses * mask).sum() / mask.sum()


def _reinforce(logprobs: torch.Tensor, mask: torch.Tensor, given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """Return the loss of TRL's RLOO for replies that the trainer sampled itself."""
    whole = (logprobs * mask).sum(1)
    return -(given["advantages"] * torch.exp(whole - whole.detach())).mean()


@pytest.mark.parametrize(
    ("name", "objective", "loss"),
    [
        ("gemma", Grpo(temperature=0.8, beta=0.3), _grpo),
        pytest.param("gemma3", Grpo(temperature=0.8, beta=0.3), _grpo, marks=pytest.mark.slow),
        pytest.param("gemma2", Grpo(temperature=1.4, beta=0.1), _grpo, marks=pytest.mark.slow),
        pytest.param("gemma2", Reinforce(temperature=0.8), _reinforce, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_equal_those_of_torch(name: str, objective: PolicyGradient, loss: Callable[..., Any]):
    case, batch = make_case(name), make_replies()
    case.theirs.zero_grad()
    logprobs, mask = their_logprobs(case.theirs, batch, objective.temperature), torch.tensor(np.asarray(batch.learned))
    if loss is _reinforce:
        extras = {**batch.extras, "sampled": jax.numpy.asarray((logprobs * mask).detach().numpy())}
        batch = replace(batch, extras=extras)
    given = {key: torch.tensor(np.asarray(value)) for key, value in batch.extras.items()}
    expected = loss(logprobs, mask.float(), given, objective.beta)
    expected.backward()
    recipe = Recipe(method="full", batch_size=4, length=LENGTH, accumulation=2)
    run = jax.jit(functools.partial(accumulate, case.config, recipe, objective=objective))
    sums, gradient = run(case.weights, None, batch)
    count = int(sums.count)
    np.testing.assert_allclose(float(sums.loss) / count, expected.item(), rtol=LOSS, atol=1e-7)
    found = to_layers(case.config, gradient)
    errors = {path: relative(found[path] / count, value) for path, value in their_gradients(case).items()}
    assert max(errors.values()) < GRADIENT, max(errors, key=lambda path: errors[path])
    difference = (logprobs.detach() - given["sampled"]).abs()[mask].mean()
    np.testing.assert_allclose(float(sums.metrics["engine_difference"]) / count, difference, atol=1e-5)


def test_advantages():
    rewards, divergence = np.array([[1.0, 0.0, 0.0, 3.0]]), np.array([[1.0, 2.0, 0.0, 0.0]])
    expected = (rewards - 1) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(Grpo().advantages(rewards, divergence), expected)
    found = Reinforce(beta=0.5).advantages(rewards, divergence)
    np.testing.assert_allclose(found[0], [0.5 - 2 / 3, -1 - 3.5 / 3, 0 - 2.5 / 3, 3 + 0.5 / 3])
    equal = np.full((1, 4), 0.7)
    assert not Grpo().advantages(equal, 0 * equal).any()


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompts and a reward."""
    made = tmp_path_factory.mktemp("policy")
    (made / "model").symlink_to(tiny / "model")
    lines = [json.dumps({"prompt": " ".join(WORDS[n : n + 3]), "answer": "12"}) for n in range(7)]
    (made / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (made / "reward.py").write_text(REWARD)
    return made


def _prepare(folder: Path, out: Path, objective: PolicyGradient | None = None, **recipe: Any) -> Run:
    made = objective or Grpo(reward=str(folder / "reward.py"), group=4, max_tokens=6)
    settings = replace(RECIPE, **recipe)
    return prepare(folder / "model", folder / "prompts.jsonl", out, settings, held_out=0.0, objective=made)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(folder: Path, tmp_path: Path):
    train(_prepare(folder, tmp_path / "whole"))
    crash(_prepare(folder, tmp_path / "stopped"), 3)
    train(_prepare(folder, tmp_path / "stopped"))
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    metrics = [line["metrics"] for line in result(tmp_path / "whole")[1]]
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["kl"] > 1e-4
    assert max(line["engine_difference"] for line in metrics) < 1e-5
    assert all(0 < line["length"] <= 6 and 0 <= line["finished"] <= 1 for line in metrics)


@pytest.mark.slow
def test_ctrl_c_between_rollouts_and_rewards_ends_the_run_after_its_step(folder: Path, tmp_path: Path):
    flag, path = tmp_path / "flag", tmp_path / "reward.py"
    path.write_text(f"""import os, pathlib, signal
{REWARD.splitlines()[0]}
    flag = pathlib.Path({str(flag)!r})
    if flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGINT)
{REWARD.splitlines()[1]}
""")
    objective = Grpo(reward=str(path), group=4, max_tokens=6)
    train(_prepare(folder, tmp_path / "whole", objective))
    flag.touch()
    with pytest.raises(KeyboardInterrupt):
        train(_prepare(folder, tmp_path / "stopped", objective))
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) == 1
    train(_prepare(folder, tmp_path / "stopped", objective))
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


@pytest.mark.slow
@kernels
def test_rollouts_of_packed_weights_differ_from_the_trainer_by_a_measured_amount(folder: Path, tmp_path: Path):
    convert((folder / "model").resolve(), tmp_path / "model.gguf", "gguf", "q8_0")
    objective = Grpo(reward=str(folder / "reward.py"), group=4, max_tokens=6)
    recipe = replace(RECIPE, method="qlora")
    run = prepare(
        tmp_path / "model.gguf", folder / "prompts.jsonl", tmp_path / "out", recipe, held_out=0.0, objective=objective
    )
    train(run)
    differences = [line["metrics"]["engine_difference"] for line in result(tmp_path / "out")[1]]
    assert all(0 < difference < PACKED for difference in differences), differences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("float('nan')", r"prompts.jsonl, line \d: the reward of its reply .* is nan; return a finite number"),
        ("'high'", "is 'high'; return a finite number"),
        ("1 / 0", r"line \d: the reward failed on its reply: reward.py, line 2: ZeroDivisionError"),
        ("record['gold']", r"line \d: the reward needs the field 'gold', which the record does not have"),
    ],
)
def test_a_reward_that_is_no_number_is_refused_and_nothing_is_lost(
    body: str, problem: str, folder: Path, tmp_path: Path
):
    path, notes = tmp_path / "reward.py", list[str]()
    path.write_text(f"def reward(prompt, completion, record):\n    return {body}\n")
    objective = Grpo(reward=str(path), group=4, max_tokens=6)
    with pytest.raises(GemwrightError, match=problem):
        train(_prepare(folder, tmp_path / "out", objective), note=notes.append)
    assert notes[-1] == "The state after step 0 is saved."
    if body == "'high'":
        path.write_text(REWARD)
        with pytest.raises(GemwrightError, match="reward of the objective was"):
            train(_prepare(folder, tmp_path / "out", objective))
        assert train(_prepare(folder, tmp_path / "out", objective), accept_changes=True).is_dir()


def test_settings_and_rewards_that_are_not_valid(folder: Path, tmp_path: Path):
    broken = tmp_path / "broken.py"
    for text, problem in (
        ("import nothing_here", "ModuleNotFoundError"),
        ("x = (", "SyntaxError"),
        ("x = 1", "no function"),
    ):
        broken.write_text(text)
        with pytest.raises(GemwrightError, match=problem):
            _prepare(folder, tmp_path / "out", Grpo(reward=str(broken), group=4))
    with pytest.raises(GemwrightError, match="neither one of exact, number nor a Python file"):
        _prepare(folder, tmp_path / "out", Grpo(reward="best", group=4))
    with pytest.raises(GemwrightError, match="does not divide the batch size 8"):
        _prepare(folder, tmp_path / "out", Grpo(group=3))
    with pytest.raises(GemwrightError, match="leaves room for a reply of 64 tokens"):
        _prepare(folder, tmp_path / "out", Grpo(group=4, max_tokens=64))
    for settings in ({"group": 1}, {"temperature": 0.0}, {"beta": float("nan")}, {"max_tokens": 0}):
        with pytest.raises(GemwrightError, match=next(iter(settings))):
            Grpo(**settings)  # pyright: ignore


@pytest.mark.slow
def test_a_described_run_and_its_built_in_reward(folder: Path, tmp_path: Path):
    text = f"""
        model = "{folder}/model"
        out = "{tmp_path}/out"
        objective = "reinforce"
        held_out = 0.3
        [recipe]
        method = "full"
        length = 24
        batch_size = 4
        steps = 2
        [reinforce]
        group = 2
        max_tokens = 5
        [[data]]
        path = "{folder}/prompts.jsonl"
    """
    path = tmp_path / "run.toml"
    path.write_text(text)
    model = train(prepare_described(read_description(path)), evaluate_every=2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert (model / "model.safetensors").is_file()
    assert lines[0]["metrics"].keys() >= {"held-out reward", "held-out kl"}
    path.write_text(text.replace("group = 2", "top_k = 5"))
    with pytest.raises(GemwrightError, match="no key 'top_k'"):
        read_description(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 1,234.5.", 1234.5), ("#### -18", -18.0), ("3 apples", 3.0), ("none", None), ("9-4=5", 5.0), ("12-7", 7.0)],
)
def test_last_number(text: str, number: float | None):
    assert last_number(text) == number
