"""The options of a call of `gemwright.Model`: their names, types and ranges.

This module must not import JAX.
"""

import difflib
import operator
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np

from gemwright.errors import GemwrightError

MAX_TOP_LOGPROBS = 64
"""Maximum number of most likely tokens reported at each step."""
SEEDS = 2**32
"""Number of different seeds."""


class Options(TypedDict, total=False):
    """Options of a call; those not given, or None, have the model's defaults.

    Attributes:
        max_tokens: Maximum number of tokens to generate (256); never more than fit in the context.
        stop: Strings that end the text, which are not part of it.
        logprobs: Whether to report the log-probability of each token, which takes a pass over the whole vocabulary
            (False).
        top_logprobs: Number of most likely tokens to report at each step, 0 to 64; implies `logprobs`.
        seed: A seed for each text, or the seed of the first text, to which the others add their index. By default each
            call draws another; `Completion.seed` reports it.
        lookup: Whether to propose draft tokens from the text so far instead of a draft model (False). It changes only
            the speed, and pays if the text repeats itself or the prompt.
        pan_and_scan: Whether Gemma 3 also gets crops of images that are far from square (False).
        watermark: A file of `gemwright watermark` with whose keys the text is marked (none).
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty: As in `Sampling`.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    logprobs: bool | None
    top_logprobs: int | None
    seed: int | Sequence[int] | None
    lookup: bool | None
    pan_and_scan: bool | None
    watermark: str | os.PathLike[str] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None


class Windows(TypedDict, total=False):
    """Options of `Model.score` for a text longer than the context, which is scored in overlapping windows.

    Each window begins with BOS and the prompt, if there are any, and scores the tokens that the one before did not.
    With neither option a text is scored in one pass.

    Attributes:
        stride: Number of tokens that a window scores, except for the first; half of `max_length` unless given.
        max_length: Number of tokens of a window; the model's maximum length unless given.

    Source: huggingface.co/docs/transformers/perplexity
    """

    stride: int | None
    max_length: int | None


_GREEDY = "temperature=0 is greedy, and any other temperature samples."
_SAMPLES = 'repeat the prompt for several samples, as in generate(["..."] * 4).'
_DEVICE = "JAX uses the accelerator it finds, or the platform that the environment variable JAX_PLATFORMS names."
_REMEDIES = {
    **dict.fromkeys(("do_sample", "greedy"), _GREEDY),
    **dict.fromkeys(("n", "num_return_sequences"), _SAMPLES),
    **dict.fromkeys(("device", "device_map"), _DEVICE),
}
"""How to get what options of other programs do."""
_SYNONYMS = {
    "max_tokens": ("max_new_tokens", "max_length", "max_completion_tokens", "num_predict", "n_predict", "length"),
    "stop": ("stop_strings", "stop_sequences", "stop_token_ids", "eos_token_id"),
    "top_logprobs": ("n_probs",),
    "repetition_penalty": ("repeat_penalty",),
    "lookup": ("prompt_lookup_num_tokens",),
    "seed": ("random_seed", "random_state"),
    "dtype": ("torch_dtype", "precision", "quantization_config"),
}
"""Names of the options in transformers, llama.cpp, Ollama and the API of OpenAI."""


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise if an option is unknown: type checkers enforce the names of keyword arguments, Python does not.

    Raises:
        GemwrightError: Some name of `given` is not in `known`; the message has the nearest that is.
    """
    known = list(known)
    for name in given:
        if name in known:
            continue
        synonym = [own for own, others in _SYNONYMS.items() if name in others and own in known]
        nearest = synonym or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(known)}."
        raise GemwrightError(f"There is no option {name!r}; {_REMEDIES.get(name, remedy)}")


def check_options(options: Mapping[str, Any]) -> Options:
    """Return the options that are not None, in the types of `Options`; a single seed or stop string stays single.

    Raises:
        GemwrightError: An option is unknown, of another type or out of range.
    """
    refuse_unknown(options, Options.__annotations__)
    checked = {name: _convert(name, value) for name, value in options.items() if value is not None}
    if checked.get("max_tokens", 1) < 1 or not 0 <= checked.get("top_logprobs", 0) <= MAX_TOP_LOGPROBS:
        raise GemwrightError(f"max_tokens must be at least 1, and top_logprobs from 0 to {MAX_TOP_LOGPROBS}.")
    return cast(Options, checked)


def parse_seeds(options: Options, count: int) -> list[int]:
    """Return the seed of each text, drawn unless the options have one.

    Raises:
        GemwrightError: The number of seeds is not that of the texts, or a seed is out of range.
    """
    given = options.get("seed")
    first = secrets.randbelow(SEEDS) if given is None else given
    seeds = [first] if isinstance(first, int) else list(first)
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise GemwrightError(f"seed is {seed}, and it must lie between 0 and {SEEDS - 1}.")
    if isinstance(first, int):
        return [(first + index) % SEEDS for index in range(count)]
    if len(seeds) != count:
        raise GemwrightError(f"seed has {len(seeds)} seeds for {count} texts; pass one, or one for each text.")
    return seeds


def check_windows(windows: Mapping[str, Any], context: int) -> tuple[int, int] | None:
    """Return the length and stride of the windows of a long text in tokens; None if it is scored in one pass.

    Raises:
        GemwrightError: An option is unknown, of another type or out of range.
    """
    refuse_unknown(windows, Windows.__annotations__)
    given: dict[str, int] = {name: _convert(name, value) for name, value in windows.items() if value is not None}
    if not given:
        return None
    length = given.get("max_length", context)
    stride = given.get("stride", length // 2)
    if not 2 <= length <= context or stride < 1:
        raise GemwrightError(f"max_length must be from 2 to {context} (the model's context), and stride at least 1.")
    return length, stride


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _strings(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return value
    strings = list(value)
    if isinstance(value, Mapping) or not all(isinstance(string, str) for string in strings):
        raise TypeError
    return strings


def _path(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError
    return path


def _integers(value: Any) -> int | list[int]:
    return list(map(_integer, value)) if isinstance(value, Sequence) or np.ndim(value) else _integer(value)


_CONVERSIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "max_tokens": (_integer, "an integer"),
    "stop": (_strings, "a string or a list of strings"),
    "logprobs": (_flag, "True or False (top_logprobs is the number of most likely tokens to report)"),
    "top_logprobs": (_integer, "an integer"),
    "seed": (_integers, "an integer or a list of integers"),
    "lookup": (_flag, "True or False"),
    "pan_and_scan": (_flag, "True or False"),
    "watermark": (_path, "the path of a file"),
    "top_k": (_integer, "an integer"),
    "stride": (_integer, "an integer"),
    "max_length": (_integer, "an integer"),
}


def _convert(name: str, value: Any) -> Any:
    """Return the value of an option in its type; NumPy's and JAX's scalars are converted."""
    convert, kind = _CONVERSIONS.get(name, (_number, "a number"))
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise GemwrightError(f"{name} must be {kind}, not {value!r:.60}.") from None
