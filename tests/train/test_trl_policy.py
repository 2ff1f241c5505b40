"""Losses and gradients of policy gradients against TRL's trainers; run with `make test-trl`."""

import functools
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import torch

from gemwright.train.objective import Sequences
from gemwright.train.policy import LARGEST_RATIO, Grpo, PolicyGradient, Reinforce
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate
from tests.tiny.pairs import LENGTH
from tests.train.cases import Case, make_case, relative, their_gradients, to_layers
from tests.train.test_policy import GRADIENT, LOSS, make_replies

pytestmark = [
    pytest.mark.peer,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore"),  # TRL's imports
]
PROMPT = 5
"""Number of ids before each reply."""


def _compare(case: Case, objective: PolicyGradient, batch: Sequences, loss: torch.Tensor) -> None:
    """Assert that TRL's loss and its gradient are ours."""
    loss.backward()
    recipe = Recipe(method="full", batch_size=4, length=LENGTH)
    sums, gradient = jax.jit(functools.partial(accumulate, case.config, recipe, objective=objective))(
        case.weights, None, batch
    )
    count = int(sums.count)
    np.testing.assert_allclose(float(sums.loss) / count, loss.item(), rtol=LOSS, atol=1e-7)
    found = to_layers(case.config, gradient)
    errors = {path: relative(found[path] / count, value) for path, value in their_gradients(case).items()}
    assert max(errors.values()) < GRADIENT, max(errors, key=lambda path: errors[path])


def _inputs(batch: Sequences) -> dict[str, torch.Tensor]:
    """Return replies in TRL's form."""
    ids = torch.tensor(np.concatenate([batch.tokens[:, :1], batch.targets], axis=1)).long()
    mask = torch.tensor(np.concatenate([batch.segments[:, :1], batch.segments], axis=1)).long()
    given = {"prompt_ids": ids[:, :PROMPT], "prompt_mask": mask[:, :PROMPT]}
    given |= {"completion_ids": ids[:, PROMPT:], "completion_mask": mask[:, PROMPT:]}
    return given | {"advantages": torch.tensor(np.asarray(batch.extras["advantages"]))}


def _trainer(temperature: float, beta: float) -> Any:
    """Return the settings of a trainer, whose log-probabilities are those of transformers' model."""

    def logprobs(
        model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, **_: Any
    ) -> tuple[torch.Tensor, Any, None]:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1] / temperature
        found = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[:, -keep:, 0]
        return found, torch.zeros_like(found), None

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=logprobs,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        loss_type="dapo",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.2,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )


def test_grpo_equals_trl():
    trainers = pytest.importorskip("trl.trainer.grpo_trainer")
    case, batch, objective = make_case("gemma3"), make_replies(), Grpo(temperature=0.8, beta=0.3)
    case.theirs.zero_grad()
    trainer, inputs = _trainer(objective.temperature, objective.beta), _inputs(batch)
    places = slice(PROMPT - 1, None)
    mask = inputs["completion_mask"]
    sampled, reference = (torch.tensor(np.asarray(batch.extras[name]))[:, places] for name in ("sampled", "reference"))
    ids, both = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    now = trainer._get_per_token_logps_and_entropies(case.theirs, ids, both, mask.shape[1])[0].detach()
    inputs["importance_sampling_ratio"] = torch.exp((now - sampled) * mask).clamp(max=LARGEST_RATIO)
    inputs |= {"ref_per_token_logps": reference, "num_items_in_batch": mask.sum()}
    _compare(case, objective, batch, trainers.GRPOTrainer._compute_loss(trainer, case.theirs, inputs))


def test_reinforce_equals_trl():
    trainers = pytest.importorskip("trl.trainer.rloo_trainer")
    case, batch, objective = make_case("gemma3"), make_replies(), Reinforce(temperature=0.8)
    case.theirs.zero_grad()
    trainer, inputs = _trainer(objective.temperature, objective.beta), _inputs(batch)
    mask = inputs["completion_mask"]
    ids, both = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    now = trainer._get_per_token_logps_and_entropies(case.theirs, ids, both, mask.shape[1])[0].detach() * mask
    inputs["old_logps"] = now.sum(1)
    sampled = np.zeros(batch.tokens.shape, np.float32)
    sampled[:, PROMPT - 1 :] = now.numpy()
    batch = replace(batch, extras={**batch.extras, "sampled": jax.numpy.asarray(sampled)})
    _compare(case, objective, batch, trainers.RLOOTrainer._compute_loss(trainer, case.theirs, inputs))
