"""The fields of llama-server's own requests, and their meaning as `Parameters`.

Source: llama.cpp, tools/server/README.md
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gemwright.errors import RequestError
from gemwright.serve.apis.prepare import Parameters
from gemwright.serve.batching.request import MAX_TOP_LOGPROBS
from gemwright.serve.http import convert, refuse
from gemwright.text.tokenizer import Tokenizer

MAX_MILLISECONDS = 86_400_000
"""Longest `t_max_predict_ms`: a day."""

WITHOUT_EFFECT = frozenset(
    {"id_slot", "n_cache_reuse", "n_keep", "n_discard", "repeat_last_n", "return_progress", "sse_ping_interval"}
    | {"t_max_prompt_ms", "verbose", "min_keep", "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold"}
    | {"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "backend_sampling", "user"}
    | {"speculative.n_max", "speculative.n_min", "speculative.p_min"}
)
"""Fields that change nothing: hints for another cache, settings of samplers that are refused unless they are off.

`repeat_last_n` is among them since penalties count the whole text, and `min_keep` since one token is always kept.
"""

_OFF = "set it to 0 or leave it out."
REFUSED_UNLESS_0 = {
    **dict.fromkeys(("dry_multiplier", "dynatemp_range", "mirostat", "xtc_probability"), _OFF),
    "post_sampling_probs": "leave it out for the probabilities of the model itself.",
    "lora": "serve a merged checkpoint.",
    "image_data": "send images to /v1/chat/completions.",
    "multimodal_data": "send images to /v1/chat/completions.",
}
_UNLESS_1 = "set it to 1 or leave it out."
REFUSED_UNLESS_1 = {"typical_p": _UNLESS_1, "tfs_z": _UNLESS_1}
REFUSED_UNLESS_NEGATIVE = {"top_n_sigma": "set it to -1 or leave it out."}
_ALIASES = {"max_completion_tokens": "n_predict", "max_tokens": "n_predict", "n": "n_cmpl"}
_SAMPLERS = {
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
}
"""The samplers, each with the settings that turn it off."""
_OTHER_SAMPLERS = frozenset({"adaptive_p", "dry", "infill", "logit_bias", "top_n_sigma", "typ_p", "xtc"})
RANDOM_SEED = 2**32 - 1
"""Seed that stands for a new one for each request, as does -1."""

Bias = list[tuple[int | str, float | bool]] | dict[str, float | bool]


class CompletionFields(msgspec.Struct, kw_only=True):
    """The fields of POST /completion that have an effect, by the names and defaults of llama-server.

    Sampling that is not given is the model's own, in gemwright's order; `samplers` only turns off those it lacks.

    Attributes:
        prompt: A text, also as `prompt_string` of an object, token ids, a list of texts and ids, or several prompts.
        n_predict: Maximum number of tokens; -1 for what is left of the context, 0 to fill the prefix cache only.
        n_indent: End the text at a line that is indented by fewer characters.
        n_probs: Number of most likely tokens to report at each position.
        n_cmpl: Number of texts of each prompt.
        t_max_predict_ms: Time from the first token after which the text ends once it has more than one line.
        cache_prompt: Whether the prompt may begin from the prefix cache.
        return_tokens: Whether to report the ids of the text.
        timings_per_token: Whether each part of a stream has the timings.
        response_fields: Names of the fields to report; a slash takes a field out of an object.
        grammar: A grammar in GBNF or Lark that the text must match.
        json_schema: A JSON schema that it must match otherwise.
    """

    prompt: Any = ""
    model: str | None = None
    stream: bool = False
    n_predict: Annotated[int, Meta(ge=-2)] = -1
    n_indent: Annotated[int, Meta(ge=0, le=1000)] = 0
    n_probs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    n_cmpl: int = 1
    t_max_predict_ms: Annotated[int, Meta(ge=-1, le=MAX_MILLISECONDS)] = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    samplers: list[str] | None = None
    seed: int = -1
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    logit_bias: Bias | None = None
    cache_prompt: bool = True
    return_tokens: bool = False
    timings_per_token: bool = False
    response_fields: list[str] = []
    grammar: str = ""
    json_schema: dict[str, Any] | bool | None = None


class ExtraInput(msgspec.Struct):
    """A piece of another file that precedes the code of an infill request."""

    text: str
    filename: str = "tmp"
    time: Any = None


class InfillFields(CompletionFields, kw_only=True):
    """The fields of POST /infill.

    Attributes:
        input_prefix: The code before the gap.
        input_suffix: The code after it.
        prompt: Added to the prefix.
        input_extra: Pieces of other files, the least important first.
    """

    input_prefix: str
    input_suffix: str
    prompt: str = ""
    input_extra: list[ExtraInput] = []


def read_completion(fields: Mapping[str, Any]) -> CompletionFields:
    """Return the fields of a completion.

    Raises:
        RequestError: One has another type, or asks for what is not supported; `param` has its name.
    """
    return convert(_read(fields), CompletionFields, WITHOUT_EFFECT)


def read_infill(fields: Mapping[str, Any]) -> InfillFields:
    """Return the fields of an infill request; errors are those of `read_completion`."""
    return convert(_read(fields), InfillFields, WITHOUT_EFFECT)


def _read(fields: Mapping[str, Any]) -> dict[str, Any]:
    refuse(fields, REFUSED_UNLESS_0)
    refuse(fields, REFUSED_UNLESS_1, (1.0,))
    refuse(fields, REFUSED_UNLESS_NEGATIVE, (-1, 0))
    own = {name: value for name, value in fields.items() if name not in _ALIASES}
    return {_ALIASES[name]: fields[name] for name in _ALIASES.keys() & fields.keys()} | own


def make_parameters(fields: CompletionFields, tokenizer: Tokenizer, cache_salt: str) -> Parameters:
    """Return the neutral fields of a request; without `cache_prompt`, `cache_salt` keeps it from cached prefixes.

    Raises:
        RequestError: `samplers` or `logit_bias` is wrong.
    """
    return Parameters(
        **_sampling(fields),
        max_tokens=None if fields.n_predict < 0 else fields.n_predict,
        seed=None if fields.seed in (-1, RANDOM_SEED) else fields.seed,
        n=fields.n_cmpl,
        stop=fields.stop,
        ignore_eos=fields.ignore_eos,
        logit_bias=_read_bias(fields.logit_bias or {}, tokenizer),
        cache_salt="" if fields.cache_prompt else cache_salt,
    )


def _sampling(fields: CompletionFields) -> dict[str, Any]:
    """Return the sampling settings, with those off that `samplers` lacks."""
    names = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    given = {name: getattr(fields, name) for name in names} | {"repetition_penalty": fields.repeat_penalty}
    given["top_k"] = None if fields.top_k is None else max(fields.top_k, 0)
    given["temperature"] = None if fields.temperature is None else max(fields.temperature, 0.0)
    if fields.samplers is None:
        return given
    for name in fields.samplers:
        if name not in _SAMPLERS and name not in _OTHER_SAMPLERS:
            raise RequestError(f"samplers has {name!r:.40}, which is no sampler.", param="samplers")
    off = [settings for name, settings in _SAMPLERS.items() if name not in fields.samplers]
    return {**given, **{name: value for settings in off for name, value in settings.items()}}


def _read_bias(given: Bias, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the bias of each token; a text means all its tokens, and false forbids them."""
    bias = dict[str, float]()
    for token, value in given.items() if isinstance(given, dict) else given:
        if value is True:
            raise RequestError("A value of logit_bias is true; send a number or false.", param="logit_bias")
        is_text = isinstance(token, str) and not token.isdecimal()
        tokens = tokenizer.encode(str(token)) if is_text else [int(token)]
        bias |= {str(each): -100.0 if value is False else float(value) for each in tokens}
    return bias
