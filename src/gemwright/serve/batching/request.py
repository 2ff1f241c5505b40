"""A request for one text, and the parts of the text as they are generated.

The endpoints translate the requests of every API into these, and these parts into the replies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from gemwright.generate.output import FinishReason
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling

MAX_TOP_LOGPROBS = 20
"""Maximum number of most likely tokens reported at each position."""
MAX_LOGIT_BIAS = 300
"""Maximum number of tokens with a bias."""


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A request for the continuation of one prompt.

    Attributes:
        prompt: Token ids, or a prompt with images.
        sampling: Sampling settings, with the seed.
        max_tokens: Maximum number of tokens to generate; 0 only scores the prompt.
        stop_ids: Ids that end the text. None is ever reported, nor part of the text.
        stop_strings: Strings that end the text and are not part of it.
        min_tokens: Number of tokens before which the stop ids cannot be chosen.
        logit_bias: Added to the logits of tokens, at most `MAX_LOGIT_BIAS` of them.
        top_logprobs: Report log-probabilities, and those of this many of the likeliest tokens.
        prompt_logprobs: Report them for the tokens of the prompt, too.
        grammar: A grammar of llguidance that the text must match, as `gemwright.serve.structured.grammar` writes it.
        skip_control_tokens: Leave control tokens out of the text.
        cache_salt: Prompts share cached prefixes only with those of the same salt.
        texts: The texts in the prompt that a shield judges, the last of them that which is answered or continued.
    """

    prompt: Ids | Prompt
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: str | None = None
    skip_control_tokens: bool = True
    cache_salt: str = ""
    texts: tuple[str, ...] = ()


class TokenLogprob(NamedTuple):
    """A token with its log-probability, and the likeliest tokens at its position with theirs, best first.

    Log-probabilities are the model's own, before penalties, bias, temperature and filters. `top` has the likeliest
    tokens only, which may not include the token. The first token of a prompt has no log-probability.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Update:
    """The next part of a text.

    Attributes:
        text: Whole characters; may be empty.
        tokens: Ids of the tokens that were generated since the last update. Their text may come in a later update.
            Tokens of a stop string are left out.
        logprobs: One per token, if requested.
        finish_reason: Set in the last update: "stop" if a stop id, stop string or the grammar ended the text, "length"
            if it reached its limit, "content_filter" if a shield refused the rest of it.
        stop: The id or string that ended the text, if one did.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop: int | str | None = None
