"""Compare a written model or adapter with its source: weights, tokenizer, template, and a run of both."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemwright import memory
from gemwright.checkpoint.adapters import is_adapter, open_adapter
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.updates import Updates, read_updates
from gemwright.errors import GemwrightError
from gemwright.loading.gate import compare
from gemwright.loading.model import forecast, make_chat_template
from gemwright.release.targets import Progress as Status
from gemwright.release.targets import find_verifier
from gemwright.release.verify.checkpoint import check_tensors
from gemwright.release.verify.definition import CONVERSATION, differences
from gemwright.release.verify.likelihood import TEXTS
from gemwright.release.verify.report import Check, Report, passes, some
from gemwright.release.verify.tensors import compare_tensors, stored_encodings
from gemwright.release.verify.values import Progress
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer

ADAPTER_TOLERANCE = 1e-6
"""Bound on the error of an adapter's factors, relative to their largest value: a scale may be folded into them."""


def verify_against(
    path: Path,
    source: Path,
    variant: str | None = None,
    base: Path | None = None,
    progress: Progress = lambda done, total: None,
    status: Status = lambda line: None,
) -> Report:
    """Compare what was written with its source.

    Weights are compared bit for bit where the format allows, else by the error that its encoding explains. Then both
    models run, and log-probabilities, likelihood and greedy text are compared.

    Args:
        path: A checkpoint or an adapter in any format, or an export to another runtime.
        source: What it was made of.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        base: Base model of an adapter that does not name it.
        progress: Called with the number of bytes compared and the total.
        status: Called with a line about each stage.

    Raises:
        GemwrightError: One of the two cannot be opened.
    """
    verifier = find_verifier(path)
    if verifier is not None:
        return Report(path, source, tuple(verifier(path, source, status)))
    if is_adapter(path):
        return Report(path, source, (compare_adapters(path, source, base),))
    found, original = open_checkpoint(path, variant), open_checkpoint(source, variant)
    checks = [*check_description(found, original), check_tensors(found), *_check_readable(original)]
    if any(check.result == "failed" and check.name in ("shape", "tensors", "source") for check in checks):
        return Report(path, source, tuple(checks))
    checks.append(compare_tensors(found, original, progress))
    status("Running both models ...")
    checks.append(check_run(found, original, variant))
    return Report(path, source, tuple(checks))


def _check_readable(source: Checkpoint) -> list[Check]:
    check = check_tensors(source)
    return [] if check.result == "ok" else [replace(check, name="source")]


def check_description(found: Checkpoint, source: Checkpoint) -> list[Check]:
    """Compare configs, tokenizers, the tokens that end a text, and chat templates."""
    changed = list(differences(replace(found.config, vocab=source.config.vocab), source.config))
    if found.config.vision is not None and source.config.vision is None:
        changed.append("a vision tower")
    bare = ", without its vision tower" if source.config.vision and found.config.vision is None else ""
    shape = f"unlike its source, it has {some(changed, 5)}" if changed else f"that of its source{bare}"
    checks = [passes("shape", not changed, shape)]
    try:
        tokenizers = Tokenizer(found.vocabulary()), Tokenizer(source.vocabulary())
    except GemwrightError as error:
        return [*checks, passes("tokenizer", False, str(error))]
    return [*checks, _compare_tokenizers(*tokenizers), _compare_templates(found, source, *tokenizers)]


def _compare_tokenizers(found: Tokenizer, source: Tokenizer) -> Check:
    count = min(found.size, source.size)
    pairs = zip(found.pieces[:count], source.pieces[:count], strict=True)
    changed = [
        f"id {index} is {ours!r} instead of {theirs!r}" for index, (ours, theirs) in enumerate(pairs) if ours != theirs
    ]
    kinds = [
        f"id {index} has another type" for index in range(count) if found.is_control(index) != source.is_control(index)
    ]
    texts = [
        f"the text {name} has other ids" for name, text in TEXTS.items() if found.encode(text) != source.encode(text)
    ]
    problems = changed + kinds + texts
    return passes("tokenizer", not problems, some(problems) if problems else f"{count:,} tokens are equal")


def _compare_templates(found: Checkpoint, source: Checkpoint, ours: Tokenizer, theirs: Tokenizer) -> Check:
    if not source.chat_templates and not found.chat_templates:
        return passes("template", True, "neither has a chat template")
    templates = make_chat_template(found, ours), make_chat_template(source, theirs)
    ids, expected = map(_render, templates)
    if ids != expected:
        return passes("template", False, "a conversation becomes other ids than by the source's template")
    ends = [set(c.stop_ids) | set(t.end_ids) for c, t in zip((found, source), templates, strict=True)]
    if ends[0] - {ours.eos_id} != ends[1] - {theirs.eos_id}:
        return passes("template", False, f"answers end at ids {sorted(ends[0])} instead of {sorted(ends[1])}")
    return passes("template", True, "a conversation becomes the same ids, and ends at the same")


def _render(template: ChatTemplate) -> list[int] | str:
    try:
        return template.encode(CONVERSATION)
    except GemwrightError:
        return "refused"


def check_run(found: Checkpoint, source: Checkpoint, variant: str | None = None) -> Check:
    """Run both models in float32, one after the other, and compare their outputs."""
    try:
        memory.require(forecast(source, "float32"), str(source.path))
    except GemwrightError as error:
        return Check("run", "skipped", str(error))
    try:
        result = compare(source.path, found.path, stored_encodings(found), {}, variant)
    except GemwrightError as error:
        return passes("run", False, str(error))
    numbers = {
        "logprob_difference": result.found.typical,
        "logprob_difference_bound": result.bound.typical,
        "largest_difference": result.found.largest,
        "largest_difference_bound": result.bound.largest,
        "greedy_agreement": result.agreement,
        "source_nll": result.nll[0],
        "nll": result.nll[1],
        "tokens": result.tokens,
    }
    return Check("run", "ok" if result.passes else "failed", str(result), numbers)


def compare_adapters(path: Path, source: Path, base: Path | None) -> Check:
    """Compare the updates of two adapters of one base model.

    Raises:
        GemwrightError: One of them cannot be read, or the base model is not found.
    """
    adapters = open_adapter(path), open_adapter(source)
    if base is None:
        named = adapters[1].base or adapters[0].base
        if named is None:
            raise GemwrightError(f"{source} does not name its base model; add --base.")
        base = locate(named, may_download=False)
    config = open_checkpoint(base).config
    found, expected = (read_updates(adapter, config) for adapter in adapters)
    problems = list(_update_problems(found, expected))
    count = len(expected.low_rank) + len(expected.replaced)
    detail = some(problems) if problems else f"the updates of {count} weights are those of the source"
    return passes("updates", not problems, detail, weights=count)


def _update_problems(found: Updates, expected: Updates) -> Iterator[str]:
    if changed := found.low_rank.keys() ^ expected.low_rank.keys():
        yield f"{some(sorted(changed))} is updated by one of the two only"
        return
    for path, theirs in expected.low_rank.items():
        ours = found.low_rank[path]
        pairs = [(ours.a, theirs.a), (ours.b * np.float32(ours.scale), theirs.b * np.float32(theirs.scale))]
        if any(a.shape != b.shape or np.abs(a - b).max() > ADAPTER_TOLERANCE * np.abs(b).max() for a, b in pairs):
            yield f"the update of {path} differs"
    for path, whole in expected.replaced.items():
        ours = found.replaced.get(path)
        if ours is None or not np.array_equal(ours.reshape(whole.shape), whole):
            yield f"the replaced weight {path} differs"
