"""Write the result of a run: a PEFT folder of the adapters, or a Hugging Face folder of the tuned model."""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.convert import source_dtype, write_huggingface
from gemwright.checkpoint.convert_adapter import write_peft
from gemwright.checkpoint.documents import text_documents
from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.find import ADAPTER_CONFIG
from gemwright.checkpoint.locate import name_base
from gemwright.checkpoint.open import Checkpoint
from gemwright.text.chat_template import DEFAULT, ChatTemplate
from gemwright.train.export import adapter_updates, full_updates
from gemwright.train.recipe import Recipe

ADAPTER, MODEL = "adapter", "model"
"""Names of the results in the folder of a run."""


def result_path(out: Path, recipe: Recipe) -> Path:
    """Return the folder of a run's result."""
    return out / (ADAPTER if recipe.method != "full" else MODEL)


def write_result(
    out: Path,
    model: str,
    checkpoint: Checkpoint,
    template: ChatTemplate | None,
    recipe: Recipe,
    trained: Any,
    score: NDArray[np.float32] | None = None,
) -> Path:
    """Write what a run has trained, completely or not at all; an earlier result of the run is replaced then.

    Args:
        out: The folder of the run.
        model: The model as it was given: a path, name or hub id.
        checkpoint: The model.
        template: The chat template of the run's conversations; None if it had none.
        recipe: The settings.
        trained: The trained weights: adapters, or all weights stacked.
        score: The head [1, D] of a reward model.

    Returns:
        The folder of the result.

    Raises:
        CheckpointError: The folder cannot be written, or a weight is not finite in the dtype of the result.
    """
    target = result_path(out, recipe)
    tuned = checkpoint if template is None else with_chat(checkpoint, template)
    with _replaced(target):
        if recipe.method != "full":
            updates = adapter_updates(checkpoint.config, trained, recipe.alpha / recipe.rank)
            documents: Mapping[str, Mapping[str, Any]] = {}
            if template is not None:
                documents = text_documents(tuned, tuned.vocabulary())
            write_peft(target, updates, checkpoint.config, name_base(model), documents, score)
        else:
            updates = full_updates(checkpoint.config, trained)
            write_huggingface(tuned, target, result_dtype(checkpoint), [updates], score=score)
    return target


def result_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of a tuned model: float32 if its source has it, and else bfloat16."""
    return "float32" if source_dtype(checkpoint, "bfloat16") == "float32" else "bfloat16"


def with_chat(checkpoint: Checkpoint, template: ChatTemplate) -> Checkpoint:
    """Return a checkpoint with a chat template, and with the token that ends its turns among those that end a text."""
    ends = checkpoint.stop_ids or (template.tokenizer.eos_id,)
    return replace(
        checkpoint,
        chat_template=template.sources.get(DEFAULT, next(iter(template.sources.values()))),
        chat_templates=template.sources,
        special_tokens=template.special_tokens,
        generation={**checkpoint.generation, "eos_token_id": list(dict.fromkeys((*ends, *template.end_ids)))},
    )


@contextmanager
def _replaced(target: Path) -> Generator[None]:
    """Move an earlier result away while another one is written; put it back if that fails."""
    if not target.exists():
        yield
        return
    if not (target / ADAPTER_CONFIG).is_file() and not (target / "config.json").is_file():
        raise file_error(target, "exists and is no result of a run", "choose another folder")
    earlier = target.with_name(f"{target.name}-{os.urandom(4).hex()}.earlier")
    target.rename(earlier)
    try:
        yield
    except BaseException:
        earlier.rename(target)
        raise
    shutil.rmtree(earlier)
