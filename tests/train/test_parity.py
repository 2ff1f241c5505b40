"""Losses and gradients of tiny models against PyTorch's: transformers for full tuning, peft for LoRA."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from gemwright.model.stack import stacked_paths
from gemwright.train import lora
from gemwright.train.optimizer import make_optimizer
from gemwright.train.recipe import Recipe
from gemwright.train.step import accumulate, start, take_step
from tests.train.cases import (
    CASES,
    Case,
    make_case,
    make_documents,
    relative,
    their_gradients,
    their_loss,
    to_batch,
    to_layers,
)

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks for it
]
LOSS = 1e-5
"""Relative tolerance of a float32 loss."""
GRADIENT = 1e-4
"""Tolerance of the gradient of each parameter, relative to its norm."""
TEN_LOSSES = 1e-3
"""Relative tolerance of the losses of ten steps."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found = make_case(request.param)
    found.theirs.zero_grad()
    return found


def test_loss_and_gradients_of_all_weights_equal_those_of_transformers(case: Case):
    batch = to_batch([[document] for document in make_documents((60, 37))])
    expected = their_loss(case.theirs, batch)
    expected.backward()
    differentiate = jax.jit(functools.partial(accumulate, case.config, Recipe(method="full", remat="layers")))
    sums, gradient = differentiate(case.weights, None, batch)
    count = int(sums.count)
    np.testing.assert_allclose(float(sums.loss) / count, expected.item(), rtol=LOSS)
    found, expected_gradients = to_layers(case.config, gradient), their_gradients(case)
    assert found.keys() == expected_gradients.keys()
    errors = {path: relative(found[path] / count, value) for path, value in expected_gradients.items()}
    assert max(errors.values()) < GRADIENT, max(errors, key=lambda path: errors[path])


def _with_peft(case: Case, adapters: lora.Adapters, recipe: Recipe) -> Any:
    """Return transformers' model with the same factors."""
    from peft import LoraConfig, get_peft_model

    names = {path.rpartition(".")[2] for path in adapters}
    theirs = {"x": "linear_x", "y": "linear_y", "out": "linear_out"}
    targets = [theirs.get(name, f"{name}_proj") for name in names]
    scope = rf".*language_model.*\.({'|'.join(targets)})" if case.config.vision else targets
    config = LoraConfig(r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=scope, lora_dropout=0.0)
    model = get_peft_model(make_case.__wrapped__(case.name).theirs, config)
    factors = _their_factors(case, model)
    paths = stacked_paths(case.config)
    assert sum(len(paths[path]) for path in adapters) == len(factors)
    with torch.no_grad():
        for path, ours in adapters.items():
            for repeat, layer in enumerate(paths[path]):
                for factor, value in zip(factors[layer], (ours.a, ours.b), strict=True):
                    factor.copy_(torch.tensor(np.asarray(value[repeat])))
    return model


def _their_factors(case: Case, model: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    from gemwright.checkpoint.names.huggingface import map_huggingface

    parameters, found = dict(model.named_parameters()), {}
    for path, tensor in map_huggingface(case.config).items():
        name = tensor.name.removesuffix(".weight").replace("language_model.model.", "model.language_model.")
        keys = [f"base_model.model.{name}.lora_{factor}.default.weight" for factor in "AB"]
        if keys[0] in parameters:
            found[path] = parameters[keys[0]], parameters[keys[1]]
    return found


def test_lora_equals_peft_for_ten_steps_of_adamw(case: Case):
    recipe = Recipe(rank=4, alpha=8, learning_rate=3e-3, schedule="constant", warmup=0, weight_decay=0.01, clip=0.5)
    adapters = lora.init(case.config, recipe.rank, seed=0)
    random = np.random.default_rng(1)
    for factors in adapters.values():  # not zero, so that the gradient of a is not
        factors.__dict__["b"] = jnp.asarray(0.05 * random.standard_normal(factors.b.shape), jnp.float32)
    model = _with_peft(case, adapters, recipe)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.01)
    optimizer = make_optimizer(recipe, 10)
    state = start(optimizer, adapters, recipe)
    step = jax.jit(functools.partial(take_step, case.config, recipe, optimizer))
    found, expected = [], []
    for number in range(10):
        batch = to_batch([[document] for document in make_documents((60, 37), seed=number % 2)])
        theirs.zero_grad()
        loss = their_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        state, measures = step(state, case.weights, batch)
        np.testing.assert_allclose(measures.norm, norm.item(), rtol=GRADIENT if number == 0 else TEN_LOSSES)
        if number == 0:  # the first moment is a tenth of the clipped gradient
            _compare_gradients(case, model, optax.tree.get(state.optimizer, "mu"))
        theirs.step()
        found.append(float(measures.loss))
        expected.append(loss.item())
    np.testing.assert_allclose(found[0], expected[0], rtol=LOSS)
    np.testing.assert_allclose(found, expected, rtol=TEN_LOSSES)
    assert found[8] < found[0] - 0.05


def _compare_gradients(case: Case, model: Any, moments: lora.Adapters) -> None:
    factors, paths = _their_factors(case, model), stacked_paths(case.config)
    for path, ours in moments.items():
        for repeat, layer in enumerate(paths[path]):
            for factor, value in zip(factors[layer], (ours.a, ours.b), strict=True):
                assert relative(10 * value[repeat], factor.grad.numpy()) < GRADIENT, layer
