"""Losses and gradients of the objectives over pairs against TRL's trainers; run with `make test-trl`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemwright.train.objectives.preference import Dpo
from gemwright.train.objectives.reward import Reward, RewardWeights
from tests.tiny.hf import write_model
from tests.train.cases import make_case
from tests.train.test_preference import (
    GRADIENT,
    LOSS,
    assert_gradients_are_theirs,
    differentiate,
    make_pairs,
    relative,
)

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore")]
NAME = "gemma2"


def their_inputs(pairs: Any) -> dict[str, torch.Tensor]:
    """Return a padded batch of TRL: all chosen documents, then all rejected ones."""
    documents = [pair[side] for side in (0, 1) for pair in pairs]
    shape = len(documents), max(len(ids) for ids, _ in documents)
    inputs = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")}
    for row, (ids, learned) in enumerate(documents):
        inputs["input_ids"][row, : len(ids)] = torch.tensor(ids)
        inputs["attention_mask"][row, : len(ids)] = 1
        inputs["completion_mask"][row, 1 : len(ids)] = torch.tensor(learned)
    return inputs


def make_trainer(kind: str, model: Any, folder: Path, **options: Any) -> Any:
    """Return a trainer of TRL, with data that are not used."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import AutoTokenizer

    write_model(folder / "model", "gemma2")
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "out"),
        report_to="none",
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        bf16=False,
    )
    data = datasets.Dataset.from_list([{"prompt": "the", "chosen": "the hen", "rejected": "the end"}] * 2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, **options
    )


def test_dpo(tmp_path: Path):
    reference, moved = make_case(NAME), make_case.__wrapped__(NAME)
    with torch.no_grad():
        moved.theirs.model.norm.weight += 0.3
    batch, pairs = make_pairs(scored=False)
    trainer = make_trainer("DPO", moved.theirs, tmp_path, ref_model=reference.theirs)
    expected = trainer.compute_loss(trainer.model.eval(), their_inputs(pairs))
    expected.backward()
    frozen = reference.weights
    trained = type(frozen)(frozen.embed, frozen.stages, frozen.final_norm + 0.3, frozen.head)
    sums, gradient = differentiate(Dpo(beta=0.1), reference, trained, frozen, batch)
    np.testing.assert_allclose(float(sums.loss) / len(pairs), expected.item(), rtol=LOSS)
    assert_gradients_are_theirs(moved, gradient)


def test_reward(tmp_path: Path):
    from transformers import Gemma2ForSequenceClassification

    case = make_case.__wrapped__(NAME)
    batch, pairs = make_pairs(scored=True)
    pairs = [[(ids[:-1], learned[:-1]) for ids, learned in pair] for pair in pairs]  # the last id is padding
    config = case.theirs.config
    config.num_labels = 1
    model = Gemma2ForSequenceClassification(config)
    model.model = case.theirs.model
    trainer = make_trainer("Reward", model, tmp_path)
    inputs = their_inputs(pairs)
    del inputs["completion_mask"]
    expected = trainer.compute_loss(trainer.model.eval(), inputs)
    expected.backward()
    score = model.score.weight
    trained = RewardWeights(case.weights, jnp.asarray(score.detach().numpy()))
    sums, gradient = differentiate(Reward(), case, trained, None, batch)
    np.testing.assert_allclose(float(sums.loss) / len(pairs), expected.item(), rtol=LOSS)
    assert relative(gradient.score, score.grad) < GRADIENT
    assert_gradients_are_theirs(case, gradient.body)
