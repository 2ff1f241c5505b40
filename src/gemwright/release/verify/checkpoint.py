"""The conformance report of a checkpoint: whether it is what it says."""

from pathlib import Path

import numpy as np

from gemwright import memory
from gemwright.checkpoint.load import read_weights
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import CheckpointError, GemwrightError, NotFiniteError
from gemwright.loading.model import choose_precision, forecast, load_model
from gemwright.release.targets import find_verifier
from gemwright.release.verify import definition
from gemwright.release.verify.likelihood import check_likelihood
from gemwright.release.verify.report import Check, Report, passes
from gemwright.release.verify.values import Progress, check_values
from gemwright.text.tokenizer import Tokenizer


def verify_checkpoint(path: Path, variant: str | None = None, progress: Progress = lambda done, total: None) -> Report:
    """Compare a checkpoint with the published definition of its model.

    The checks need no network: name, shape, parameter count, tensors, values, special tokens, vocabulary, stop tokens,
    chat template, and the likelihood of texts that every Gemma knows.

    Args:
        path: A checkpoint in any format.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        progress: Called with the number of bytes scanned and the total.

    Raises:
        GemwrightError: The checkpoint cannot be opened, or the path is an export to another runtime.
    """
    if find_verifier(path) is not None:
        raise GemwrightError(f"{path} is an export, which is compared with its source; add --against SOURCE.")
    checkpoint = open_checkpoint(path, variant)
    named = definition.named_checkpoint(checkpoint)
    published = variant or definition.choose_variant(checkpoint, named)
    checks = [
        definition.check_name(checkpoint, named),
        definition.check_shape(checkpoint, published),
        definition.check_parameters(checkpoint, published),
        check_tensors(checkpoint),
    ]
    whole = checks[-1].result == "ok"
    if whole:
        checks.append(check_values(checkpoint.file, checkpoint.mapping, progress))
    described = _check_description(checkpoint, published, named)
    checks += described
    if not whole or any(check.name == "tokenizer" for check in described):
        checks.append(Check("likelihood", "skipped", "the model cannot be run"))
    else:
        checks.append(_check_run(checkpoint, path, variant))
    return Report(path, None, tuple(checks))


def check_tensors(checkpoint: Checkpoint) -> Check:
    """Check that a file has exactly the tensors of its model, with their shapes."""
    try:
        read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32)
    except CheckpointError as error:
        return passes("tensors", False, str(error))
    count = len({tensor.name for tensor in checkpoint.mapping.values()})
    return passes("tensors", True, f"{count}, each with its shape", tensors=count)


def _check_description(checkpoint: Checkpoint, published: str, named: str | None) -> list[Check]:
    """Check the tokenizer, the tokens that end a text, and the chat template."""
    try:
        vocabulary = checkpoint.vocabulary()
        checks = list(definition.check_tokens(vocabulary, definition.find_published_family(published), named))
        tokenizer = Tokenizer(vocabulary)
    except GemwrightError as error:
        return [passes("tokenizer", False, str(error))]
    return [
        *checks,
        definition.check_stops(checkpoint, vocabulary),
        definition.check_template(checkpoint, tokenizer, named),
    ]


def _check_run(checkpoint: Checkpoint, path: Path, variant: str | None) -> Check:
    if checkpoint.family.image_prompt == "prefix":
        return Check("likelihood", "skipped", f"{checkpoint.family.name} is trained on captions, not on texts")
    try:
        memory.require(forecast(checkpoint, choose_precision()), str(path))
    except GemwrightError as error:
        return Check("likelihood", "skipped", str(error))
    try:
        return check_likelihood(load_model(path, variant=variant))
    except NotFiniteError as error:
        return passes("likelihood", False, str(error))
