"""Run a model in another runtime beside its source, token by token."""

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gemwright.api import Model
from gemwright.errors import GemwrightError
from gemwright.loading.gate import CONTINUATION, FLOOR, LARGEST_MARGIN, MARGIN, PROMPTS
from gemwright.loading.model import load_model
from gemwright.release.verify.report import Check, some


class Session(Protocol):
    """A sequence of tokens in another runtime."""

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens to the sequence and return the logits after the last, [V] float32."""
        ...


class _Run(NamedTuple):
    """The log-probability of each token that a model was given after a prompt, and its own greedy choices."""

    logprobs: NDArray[np.float64]
    choices: list[int]


def compare_run(start: Callable[[], Session], source: Path, dtype: str = "float32", room: int = 1024) -> Check:
    """Compare the log-probabilities and greedy choices of a runtime with those of the source in float32.

    Each prompt is read at once and its greedy continuation token by token, as when text is generated.

    Args:
        start: Begins an empty sequence.
        source: The checkpoint that was exported.
        dtype: That of the exported weights. In bfloat16 the bound is a multiple of the difference that the dtype makes
            to the source itself.
        room: Number of tokens that a sequence holds.
    """
    model = load_model(source, "float32")
    prompts = [model.encode(text)[: max(2, room - CONTINUATION)] for text in PROMPTS]
    continued = [done.tokens for done in model.generate(prompts, max_tokens=CONTINUATION, temperature=0.0)]
    parts = [(prompt, ids) for prompt, ids in zip(prompts, continued, strict=True) if ids]
    expected = _score(model, parts)
    bound = FLOOR, FLOOR
    if dtype != "float32":
        noise = np.abs(_score(load_model(source, dtype), parts) - expected)
        bound = MARGIN * float(np.sqrt(np.mean(noise**2))), LARGEST_MARGIN * float(noise.max())
    runs = [_run(start(), *part) for part in parts]
    found = np.concatenate([run.logprobs for run in runs])
    difference = np.abs(found - expected)
    typical, largest = float(np.sqrt(np.mean(difference**2))), float(difference.max())
    agree = [a == b for run, (_, ids) in zip(runs, parts, strict=True) for a, b in zip(run.choices, ids, strict=True)]
    numbers = {
        "logprob_difference": typical,
        "logprob_difference_bound": bound[0],
        "largest_difference": largest,
        "largest_difference_bound": bound[1],
        "greedy_agreement": float(np.mean(agree)),
        "source_nll": float(-expected.mean()),
        "nll": float(-found.mean()),
        "tokens": float(len(found)),
    }
    detail = (
        f"log-probabilities of {len(found)} tokens differ by {typical:.2g} (at most {bound[0]:.2g}), the largest by "
        f"{largest:.2g} (at most {bound[1]:.2g}); NLL is {-found.mean():.4f} nats a token, that of the source "
        f"{-expected.mean():.4f}; {np.mean(agree):.0%} of the greedy tokens agree"
    )
    return Check("run", "ok" if typical <= bound[0] and largest <= bound[1] else "failed", detail, numbers)


def _score(model: Model, parts: Sequence[tuple[list[int], list[int]]]) -> NDArray[np.float64]:
    scores = model.score([prompt + ids for prompt, ids in parts])
    return np.concatenate([score.logprobs[len(prompt) - 1 :] for score, (prompt, _) in zip(scores, parts, strict=True)])


def _run(session: Session, prompt: list[int], ids: list[int]) -> _Run:
    logits, logprobs, choices = session.read(prompt), list[float](), list[int]()
    for index, token in enumerate(ids):
        choices.append(int(np.argmax(logits)))
        wide = logits.astype(np.float64)
        logprobs.append(float(wide[token] - np.logaddexp.reduce(wide)))
        if index + 1 < len(ids):
            logits = session.read([token])
    return _Run(np.asarray(logprobs), choices)


@contextmanager
def refused_if_failed(target: Path, verify: Callable[[], Iterator[Check]] | None) -> Generator[None]:
    """Verify what the `with` block writes, and remove it if a check fails.

    Raises:
        GemwrightError: A check fails.
    """
    yield
    if verify is None:
        return
    try:
        failed = [f"{check.name}: {check.detail}" for check in verify() if check.result == "failed"]
        if failed:
            raise GemwrightError(f"{target} was removed, as it differs from its source ({some(failed)}); report this.")
    except BaseException:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise
