"""Run an exported model beside its source, and refuse it if it differs by more than its recipe explains."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import GemwrightError
from gemwright.loading.gate import PROMPTS
from gemwright.loading.model import load_model
from gemwright.model.transformer import forward, logits
from gemwright.release.litert.recipes import Recipe
from gemwright.release.litert.run import Decoder
from gemwright.runtime import heap
from gemwright.runtime.child import Report
from gemwright.text.tokenizer import Tokenizer

TOKENS = 2048
"""Least number of tokens that are compared."""
LENGTH, PREFILLED = 512, 100
"""Most tokens of a text, and how many of them are prefilled: less than a chunk, so that padding is tested."""
KEPT = 64
"""Number of logits of each token that are compared: the largest of the source."""
CONTINUATION = 16
"""Number of tokens that LiteRT-LM adds to each prompt."""
ROWS = 64
"""Number of tokens whose logits are in memory."""
LOGITS_BOUND = 1e-3
"""Largest difference of a logit with float32 weights."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of the tokens of some texts.

    Attributes:
        logprobs: [N] natural log-probabilities of the tokens.
        ids: [N, KEPT] the tokens with the largest logits of the source.
        logits: [N, KEPT] their logits.
        best: [N] the most likely tokens.
    """

    logprobs: NDArray[np.float64]
    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    best: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """How an exported model compares with its source on some tokens.

    Attributes:
        tokens: Number of tokens.
        source, written: Mean negative log-likelihood of a token, in nats.
        typical: Root mean square of the differences of log-probabilities.
        largest: Largest difference of the source's `KEPT` largest logits.
        agreement: Share of tokens of which both models find the same most likely one.
        speed: Tokens decoded in a second.
    """

    tokens: int
    source: float
    written: float
    typical: float
    largest: float
    agreement: float
    speed: float

    def __str__(self) -> str:
        return (
            f"the mean negative log-likelihood of {self.tokens:,} tokens is {self.written:.4f}, that of the source "
            f"{self.source:.4f}; log-probabilities differ by {self.typical:.2g}, logits by at most {self.largest:.2g}; "
            f"{self.agreement:.1%} of the most likely tokens agree; {self.speed:.1f} tokens/s"
        )


def check_model(source: Path, written: Path, recipe: Recipe, report: Report) -> None:
    """Compare a `.tflite` with its source.

    Raises:
        GemwrightError: The source does not fit in memory in float32, or the difference is larger than the recipe's.
    """
    found = compare_with_source(source, written, report)
    report(f"Checked: {found}.")
    if excess := find_excess(found, recipe):
        raise GemwrightError(f"The file was removed, as it is too far from its source: {found} ({excess}).")


def compare_with_source(source: Path, written: Path, report: Report) -> Comparison:
    """Compare a `.tflite` with its source on `TOKENS` tokens of Python's own documentation.

    The text is on every machine and was written by people; one that the source generates would hide what rounding costs
    in less likely texts.

    Raises:
        GemwrightError: The source does not fit in memory in float32.
    """
    decoder = Decoder(written)
    report("Scoring a text with the source ...")
    texts, expected = score_source(source, reference_text(), min(LENGTH, decoder.context))
    heap.trim()
    report("Scoring it with LiteRT ...")
    return compare(decoder, texts, expected)


def find_excess(found: Comparison, recipe: Recipe) -> str | None:
    """Return the bound of a recipe that a comparison exceeds, or None."""
    exact = recipe.linear == "float32"
    too_far = found.largest > LOGITS_BOUND if exact else found.written - found.source > recipe.bound
    if not too_far and np.isfinite(found.written):
        return None
    return f"logits may differ by {LOGITS_BOUND}" if exact else f"it may cost {recipe.bound} nats"


def reference_text() -> str:
    """Return the first topics of Python's documentation, which is part of its library."""
    from pydoc_data.topics import topics

    return "\n".join(text for _, text in sorted(topics.items()))[:60_000]


def score_source(source: Path, text: str, length: int) -> tuple[list[list[int]], Scores]:
    """Cut a text into parts of `length` tokens, each after a BOS, and score them with the source in float32.

    Returns:
        The parts, and the scores of the tokens after the prefilled ones.
    """
    try:
        model = load_model(source, "float32")
    except GemwrightError as error:
        raise GemwrightError(f"{error} Or export it with --no-verify, which does not run it.") from error
    bos, *ids = model.encode(text)
    step, prefilled = length - 1, count_prefilled(length)
    starts = range(0, -(-TOKENS // (step - prefilled)) * step, step)
    texts = [[bos, *ids[first : first + step]] for first in starts]
    config, params = model.engine.config, model.engine.params
    run, head = jax.jit(forward, static_argnums=0), jax.jit(logits, static_argnums=0)
    found: list[Scores] = []
    for tokens in texts:
        hidden, _ = run(config, params, jnp.asarray(tokens)[None])
        for first in range(prefilled, step, ROWS):
            last = min(first + ROWS, step)
            rows = np.asarray(head(config, params, hidden[0, first:last]))
            found.append(summarize(rows, tokens[first + 1 : last + 1]))
    return texts, join(found)


def count_prefilled(length: int) -> int:
    """Return how many tokens of a text are prefilled."""
    return min(PREFILLED, length // 2)


def summarize(rows: NDArray[np.float32], targets: Sequence[int], ids: NDArray[np.int64] | None = None) -> Scores:
    """Return the scores of logits [N, V], given the tokens that follow.

    Args:
        rows: The logits.
        targets: The tokens.
        ids: The tokens whose logits are kept; None for the largest.
    """
    if ids is None:
        count = min(KEPT, rows.shape[1])
        ids = np.argpartition(-rows, count - 1, axis=1)[:, :count]
    wide = rows.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
    chosen = wide[np.arange(len(rows)), targets]
    return Scores(chosen - total, ids, np.take_along_axis(rows, ids, axis=1), rows.argmax(axis=1))


def join(parts: Sequence[Scores]) -> Scores:
    """Return the scores of several parts as one."""
    return Scores(
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.best for part in parts]),
    )


def compare(decoder: Decoder, texts: Sequence[Sequence[int]], expected: Scores) -> Comparison:
    """Score texts with an exported model, and compare with what the source makes of them."""
    ids = iter(expected.ids)
    found: list[Scores] = []
    seconds = 0.0
    for tokens in texts:
        prefilled = count_prefilled(len(tokens))
        decoder.start(tokens[:prefilled])
        start = time.perf_counter()
        for token, target in zip(tokens[prefilled:-1], tokens[prefilled + 1 :], strict=True):
            found.append(summarize(decoder.decode(token)[None], [target], next(ids)[None]))
        seconds += time.perf_counter() - start
    written = join(found)
    difference = written.logprobs - expected.logprobs
    return Comparison(
        len(difference),
        float(-expected.logprobs.mean()),
        float(-written.logprobs.mean()),
        float(np.sqrt(np.mean(np.square(difference)))),
        float(np.abs(written.logits - expected.logits).max()),
        float(np.mean(written.best == expected.best)),
        len(difference) / seconds,
    )


def check_bundle(source: Path, tflite: Path, bundle: Path, report: Report) -> None:
    """Compare the tokens and the greedy text of LiteRT-LM's engine with those of the same model run by LiteRT.

    Raises:
        GemwrightError: The engine does not open the bundle, or they differ.
    """
    from litert_lm import Backend, Engine, SamplerConfig  # pyright: ignore[reportMissingImports]

    report("Running the bundle with LiteRT-LM ...")
    tokenizer = Tokenizer(open_checkpoint(source).vocabulary())
    decoder = Decoder(tflite)
    try:
        engine = Engine(str(bundle), Backend.CPU(), cache_dir=str(bundle.parent))
    except RuntimeError as error:
        raise GemwrightError(f"LiteRT-LM does not open the file: {error}; export it to a .tflite.") from error
    same = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        if (theirs := engine.tokenize(prompt)) != ids:
            raise GemwrightError(f"LiteRT-LM splits {prompt!r} into {theirs} instead of {ids}; export it to a .tflite.")
        with engine.create_session(
            apply_prompt_template=False, sampler_config=SamplerConfig(top_k=1), max_output_tokens=CONTINUATION
        ) as session:
            session.run_prefill([prompt])
            text = "".join(part for response in session.run_decode_async() for part in response.texts)
        expected = engine.detokenize(list(decoder.generate(tokenizer.with_bos(ids), CONTINUATION)))
        same += text.strip() == expected.strip()
    engine.close()
    # Another order of sums may exchange two tokens that are equally likely; a wrong bundle agrees on none.
    if 2 * same < len(PROMPTS):
        raise GemwrightError(f"LiteRT-LM continues only {same} of {len(PROMPTS)} prompts as LiteRT does; report this.")
    report(f"LiteRT-LM continues {same} of {len(PROMPTS)} prompts as LiteRT does.")
