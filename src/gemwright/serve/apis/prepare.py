"""From the fields that every API has, in OpenAI's names, to requests for generations."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from gemwright.api import Model
from gemwright.errors import GemwrightError, RequestError
from gemwright.families import FILL_IN_THE_MIDDLE
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling
from gemwright.options import SEEDS
from gemwright.serve.batching.request import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, GenerationRequest
from gemwright.serve.models import ServedModel
from gemwright.text import infill
from gemwright.text.control_tokens import ControlTokens
from gemwright.text.stop import find_stop_ids
from gemwright.text.tokenizer import Tokenizer

MAX_CHOICES = 128
"""Maximum number of texts of one prompt."""
MAX_STOPS = 16
"""Maximum number of stop strings."""
MAX_STOP_LENGTH = 1024
"""Maximum length of a stop string in characters."""
MAX_BIAS = 100.0
"""Largest absolute bias of a token."""
_SAMPLING = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Parameters(msgspec.Struct, kw_only=True):
    """The fields of a request that all APIs have, in the names of OpenAI and vLLM. None is the model's default.

    Attributes:
        max_tokens: Maximum number of tokens to generate; never more than fit in the context.
        temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty: As in `Sampling`.
        top_k: As in `Sampling`; -1 is 0.
        seed: Any integer; choice i takes this seed plus i. Drawn unless given.
        n: Number of texts.
        stop: Strings that end the text.
        stop_token_ids: Further ids that end it.
        min_tokens: Number of tokens before which no id ends it.
        ignore_eos: Whether only `stop` and `stop_token_ids` end it.
        logit_bias: Added to the logits of tokens, by id.
        skip_special_tokens: Whether control tokens are left out of the text.
        cache_salt: Prompts share cached prefixes only with those of the same salt.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: int = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool = True
    cache_salt: str = ""


def make_requests(
    served: ServedModel,
    prompt: Ids | Prompt,
    parameters: Parameters,
    *,
    stop_ids: Iterable[int],
    max_tokens: int | None = None,
    top_logprobs: int | None = None,
    prompt_logprobs: bool = False,
    grammar: str | None = None,
    texts: Sequence[str] = (),
) -> list[GenerationRequest]:
    """Return a request for each of the `n` texts of a prompt.

    Args:
        served: The model.
        prompt: The prompt.
        parameters: Fields of the request.
        stop_ids: Ids that end a text by themselves: `Model.stop_ids`, `Model.chat_stop_ids` or `infill.stop_ids`.
        max_tokens: Maximum number of tokens unless given; None for what is left of the context.
        top_logprobs: As in `GenerationRequest`.
        prompt_logprobs: As in `GenerationRequest`.
        grammar: As in `GenerationRequest`.
        texts: As in `GenerationRequest`; the text of the whole prompt unless given.

    Raises:
        RequestError: The prompt does not fit in the context, or a field is out of range; `param` has its name.
    """
    tokenizer, stops = served.model.tokenizer, _read_stops(parameters.stop)
    own = () if parameters.ignore_eos else stop_ids
    ending = (*own, *(parameters.stop_token_ids or ()), *find_stop_ids(tokenizer, stops))
    limit = _fit(served, prompt, max_tokens if parameters.max_tokens is None else parameters.max_tokens)
    _check_range("n", parameters.n, 1, MAX_CHOICES)
    _check_range("min_tokens", parameters.min_tokens, 0, limit)
    if top_logprobs is not None:
        _check_range("top_logprobs", top_logprobs, 0, MAX_TOP_LOGPROBS)
    for token in parameters.stop_token_ids or ():
        _check_range("stop_token_ids", token, 0, served.model.engine.vocabulary - 1)
    request = GenerationRequest(
        prompt,
        make_sampling(served.model.defaults, parameters),
        limit,
        stop_ids=tuple(dict.fromkeys(ending)),
        stop_strings=stops,
        min_tokens=parameters.min_tokens,
        logit_bias=_read_bias(parameters.logit_bias or {}, served.model.engine.vocabulary),
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        skip_control_tokens=parameters.skip_special_tokens,
        cache_salt=parameters.cache_salt,
        texts=tuple(texts),
    )
    seeds = [(request.sampling.seed + index) % SEEDS for index in range(parameters.n)]
    return [replace(request, sampling=replace(request.sampling, seed=seed)) for seed in seeds]


def make_sampling(defaults: Sampling, parameters: Parameters) -> Sampling:
    """Return the sampling settings of a request; absent ones are the model's, and the seed is drawn.

    Raises:
        RequestError: One is out of range; `param` has its name.
    """
    found = {name: getattr(parameters, name) for name in _SAMPLING}
    given = {name: value for name, value in found.items() if value is not None}
    if parameters.top_k is not None:
        given["top_k"] = 0 if parameters.top_k == -1 else parameters.top_k
    seed = secrets.randbelow(SEEDS) if parameters.seed is None else parameters.seed % SEEDS
    try:
        return replace(defaults, **given, seed=seed)
    except GemwrightError as error:  # its message begins with the name of the setting
        raise RequestError(str(error), param=str(error).partition(" ")[0]) from error


def encode_prompt(
    model: Model, prompt: str | Sequence[int], *, bos: bool = True, markers: bool = False
) -> Ids | Prompt:
    """Return the prompt of a text or of token ids, which are taken as they are.

    Args:
        model: The model.
        prompt: Text, in which names of control tokens are plain text; or ids.
        bos: Whether a text begins with BOS.
        markers: Whether names of CodeGemma's fill-in-the-middle tokens become these tokens, as editors send them.

    Raises:
        RequestError: An id is not in the vocabulary, or there is none.
    """
    if not isinstance(prompt, str):
        if not prompt:
            raise RequestError("The prompt has no tokens; send at least one.", param="prompt")
        for token in prompt:
            _check_range("prompt", token, 0, model.engine.vocabulary - 1)
        return list(prompt)
    pieces = split_markers(model.tokenizer, prompt) if markers else [prompt]
    if len(pieces) == 1 and bos:
        return model.prepare(prompt)
    ids = model.tokenizer.join(pieces)
    return model.tokenizer.with_bos(ids) if bos else ids


def split_markers(tokenizer: Tokenizer, text: str) -> list[str | int]:
    """Return the parts of a text: texts, and the ids of fill-in-the-middle tokens, if the vocabulary has them."""
    markers, pieces, end = ControlTokens(infill_markers(tokenizer)), list[str | int](), 0
    for start, name in markers.find(text):
        pieces += [text[end:start], markers.ids[name]]
        end = start + len(name)
    return [*pieces, text[end:]]


def infill_markers(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of CodeGemma's fill-in-the-middle tokens by name; none if the vocabulary lacks one."""
    tokens = FILL_IN_THE_MIDDLE
    try:
        names = (tokens.prefix, tokens.suffix, tokens.middle, tokens.separator)
        return {name: tokenizer.id_of(name) for name in names}
    except GemwrightError:
        return {}


def encode_infill(model: Model, before: str, after: str) -> Ids:
    """Return the prompt for the code between two pieces of code.

    Raises:
        RequestError: The model has no fill-in-the-middle tokens.
    """
    if not infill_markers(model.tokenizer):
        raise RequestError(
            f"{model.name} has no fill-in-the-middle tokens; leave suffix out, or use CodeGemma 2B or 7B.",
            code="unsupported_parameter",
            param="suffix",
        )
    return infill.render(model.tokenizer, before, after)


def _fit(served: ServedModel, prompt: Ids | Prompt, max_tokens: int | None) -> int:
    """Return the number of tokens to generate.

    Raises:
        RequestError: `max_tokens` is negative, or the prompt leaves no room for a token in the context.
    """
    left = served.context - len(prompt)
    if max_tokens is not None and max_tokens < 0:
        raise RequestError(f"max_tokens is {max_tokens}, and it must be at least 0.", param="max_tokens")
    if left < (1 if max_tokens is None else min(max_tokens, 1)):
        raise RequestError(
            f"The prompt is too long: it has {len(prompt)} tokens, and the context of {served.name} {served.context}, "
            "one of which must be left for the text; shorten the prompt.",
            code="context_length_exceeded",
            param="prompt",
            numbers={"n_prompt_tokens": len(prompt), "n_ctx": served.context},
        )
    return left if max_tokens is None else min(max_tokens, left)


def _read_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    _check_range("The number of strings of stop", len(stops), 0, MAX_STOPS, "stop")
    for string in stops:
        _check_range("The length of a string of stop", len(string), 1, MAX_STOP_LENGTH, "stop")
    return stops


def _read_bias(given: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    _check_range("The number of tokens of logit_bias", len(given), 0, MAX_LOGIT_BIAS, "logit_bias")
    bias = dict[int, float]()
    for name, value in given.items():
        if not (name.isascii() and name.isdecimal()):
            raise RequestError(f"logit_bias has {name!r:.40}, which is not the id of a token.", param="logit_bias")
        _check_range("A token of logit_bias", int(name[:20]), 0, vocabulary - 1, "logit_bias")
        _check_range("A value of logit_bias", value, -MAX_BIAS, MAX_BIAS, "logit_bias")
        bias[int(name)] = value
    return bias


def _check_range(name: str, value: float, low: float, high: float, param: str | None = None) -> None:
    if not low <= value <= high:  # NaN is in no interval
        raise RequestError(f"{name} is {value}, and it must lie between {low} and {high}.", param=param or name)
