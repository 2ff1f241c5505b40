"""lm-eval's interface of a model: `lm_eval --model gemwright` after `import gemwright.eval.harness`."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

import gemwright
from gemwright.generate.continuations import score_continuations
from gemwright.generate.prompts import Ids

MAX_NEW_TOKENS = 256
"""Maximum number of tokens of a reply whose task does not say."""
REPLIES = 16
"""Maximum number of replies that are generated together."""


@register_model("gemwright")
class HarnessModel(TemplateLM):
    """A model behind lm-eval's interface. Every text begins with BOS, as Gemma was trained.

    Args:
        pretrained: Path, name or hub id.
        dtype: See `gemwright.load`.
        max_length: Maximum number of tokens of a text with its continuation; what exceeds it is cut on the left.
    """

    def __init__(self, pretrained: str = "gemma-3-270m", dtype: str | None = None, max_length: int = 4096, **_: Any):
        super().__init__()
        self.model = gemwright.load(pretrained, dtype=dtype)
        self.max_length = min(int(max_length), self.model.engine.config.max_length)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        return self.model.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the cache of requests."""
        return self.model.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, with BOS unless `add_special_tokens` is false."""
        tokenizer = self.model.tokenizer
        return tokenizer.encode(string) if add_special_tokens is False else self.model.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Scoring") as bar:

            def report(done: int) -> None:
                bar.update(done - bar.n)

            found = score_continuations(self.model.engine, pairs, report)
        return [(likelihood.logprob, likelihood.is_greedy) for likelihood in found]

    def _fit(self, context: Ids, continuation: Ids) -> tuple[Ids, Ids]:
        """Cut a text on the left, as lm-eval's other models do."""
        room = max(1, self.max_length - len(continuation))
        return context[-room:], continuation[: self.max_length - 1]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts; those longer than `max_length` run in windows without overlap."""
        windows: list[tuple[int, tuple[list[int], list[int]]]] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(str(_arguments(request)[0]), add_special_tokens=False)
            rolling = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows += ((index, utils.make_disjoint_window(window)) for window in rolling)
        found = self._loglikelihood_tokens([(("", ""), *window) for _, window in windows], disable_tqdm)
        sums = [0.0] * len(requests)
        for (index, _), (logprob, _) in zip(windows, found, strict=True):
            sums[index] += logprob
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each prompt, up to one of its stop strings."""
        replies: dict[int, str] = {}
        asked = [_arguments(request) for request in requests]
        order = sorted(range(len(asked)), key=lambda index: (repr(asked[index][1]), len(asked[index][0])))
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Generating")
        start = 0
        while start < len(order):
            options = asked[order[start]][1]
            part = [index for index in order[start : start + REPLIES] if asked[index][1] == options]
            texts = self._generate([asked[index][0] for index in part], options)
            replies |= zip(part, texts, strict=True)
            start += len(part)
            bar.update(len(part))
        bar.close()
        return [replies[index] for index in range(len(requests))]

    def _generate(self, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        tokens = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        room = self.max_length - tokens
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        cut = [self.model.encode(prompt)[-room:] for prompt in prompts]
        return [one.text for one in self.model.generate(cut, max_tokens=tokens, temperature=temperature, stop=stops)]


def _arguments(request: Instance) -> tuple[Any, ...]:
    """Return the arguments of a request, whose type lm-eval leaves open."""
    return cast(tuple[Any, ...], request.args)
