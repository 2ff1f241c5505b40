"""The replies of llama-server's completions.

Source: llama.cpp, tools/server/README.md and tools/server/server-task.cpp
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from gemwright.errors import RequestError
from gemwright.generate.prompts import token_ids
from gemwright.generate.sampling import Sampling
from gemwright.serve.apis.collect import Result
from gemwright.serve.apis.llama_server.fields import CompletionFields
from gemwright.serve.batching.request import GenerationRequest, TokenLogprob, Update
from gemwright.serve.http import openai_error
from gemwright.serve.models import ServedModel
from gemwright.text.tokenizer import Tokenizer


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error: OpenAI's with the status as the code, and the numbers of the message."""
    body = openai_error(error)["error"] | {"code": error.status, **error.numbers}
    if error.code == "context_length_exceeded":
        body["type"] = "exceed_context_size_error"
    return {"error": body}


@dataclass(frozen=True)
class Reply:
    """Describes the texts of one request.

    Attributes:
        served: The model.
        fields: The request.
        truncated: Whether some of its `input_extra` was left out.
    """

    served: ServedModel
    fields: CompletionFields
    truncated: bool = False

    def part(self, index: int, result: Result, part: Update) -> dict[str, Any]:
        """Return a part of text `index` of a stream, of which `result` is all so far."""
        body: dict[str, Any] = {
            "index": index,
            "content": part.text,
            "tokens": list(part.tokens),
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(result.tokens),
            "tokens_evaluated": result.generation.prompt_tokens,
        }
        if self.fields.n_probs:
            body["completion_probabilities"] = self._logprobs(part.logprobs)
        if self.fields.timings_per_token:
            body["timings"] = make_timings(result)
        return body

    def end(self, index: int, result: Result) -> dict[str, Any]:
        """Return the last part of text `index` of a stream: all but the text."""
        return select_fields(
            {**self._describe(index, result), "content": "", "tokens": []}, self.fields.response_fields
        )

    def complete(self, index: int, result: Result) -> dict[str, Any]:
        """Return text `index` with all that is known about it."""
        body = self._describe(index, result)
        if self.fields.n_probs:
            body["completion_probabilities"] = self._logprobs(result.logprobs)
        return select_fields(body, self.fields.response_fields)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [_describe_logprob(self.served.model.tokenizer, entry) for entry in entries]

    def _describe(self, index: int, result: Result) -> dict[str, Any]:
        generation = result.generation
        prompt = token_ids(generation.request.prompt)
        return {
            "index": index,
            "content": result.text,
            "tokens": result.tokens if self.fields.return_tokens else [],
            "id_slot": -1,
            "stop": True,
            "model": self.served.name,
            "tokens_predicted": len(result.tokens),
            "tokens_evaluated": generation.prompt_tokens,
            "generation_settings": self._settings(generation.request),
            "prompt": self.served.model.tokenizer.decode(prompt, keep_control=True),
            "has_new_line": "\n" in result.text,
            "truncated": self.truncated,
            "stop_type": _stop_type(result),
            "stopping_word": result.stop if isinstance(result.stop, str) else "",
            "tokens_cached": generation.prompt_tokens + len(result.tokens),
            "timings": make_timings(result),
        }

    def _settings(self, request: GenerationRequest) -> dict[str, Any]:
        fields = self.fields
        # JSON lacks minus infinity, for which llama-server has null.
        never = dict.fromkeys(self.served.model.stop_ids if fields.ignore_eos else ())
        biases = {**request.logit_bias, **never}
        return {
            **describe_sampling(self.served, request.max_tokens, request.sampling),
            "stop": list(request.stop_strings),
            "ignore_eos": fields.ignore_eos,
            "logit_bias": [{"token": token, "bias": bias} for token, bias in biases.items()],
            "n_probs": fields.n_probs,
            "n_indent": fields.n_indent,
            "stream": fields.stream,
            "grammar": fields.grammar,
        }


def describe_sampling(served: ServedModel, max_tokens: int, sampling: Sampling) -> dict[str, Any]:
    """Return sampling settings in llama-server's names."""
    return {
        "n_ctx": served.context,
        "n_predict": max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
    }


def split_tokens(update: Update, *, each: bool) -> list[Update]:
    """Return the parts of an update for a stream: one, or one for `each` token, the last of which has the text."""
    if not each or len(update.tokens) < 2:
        return [update] if update.tokens or update.text else []
    pairs = zip(update.tokens, update.logprobs, strict=True)
    parts = [Update("", (token,), (logprob,)) for token, logprob in pairs]
    return [*parts[:-1], replace(parts[-1], text=update.text)]


def make_timings(result: Result) -> dict[str, float]:
    """Return the numbers of tokens of a generation, and their times in milliseconds and tokens per second."""
    generation = result.generation
    end = generation.finished or time.monotonic()
    first = generation.first or end
    start = generation.started or first
    cached = generation.cached_tokens
    return {
        "cache_n": cached,
        **_rates("prompt", generation.prompt_tokens - cached, 1000 * (first - start)),
        **_rates("predicted", len(result.tokens), 1000 * (end - first), uncounted=1),
    }


def _rates(name: str, count: int, milliseconds: float, uncounted: int = 0) -> dict[str, float]:
    """Return numbers about tokens, of which the first `uncounted` came before the time began."""
    counted = max(count - uncounted, 0)
    return {
        f"{name}_n": count,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / counted if counted else 0.0,
        f"{name}_per_second": 1000 * counted / max(milliseconds, 1e-3),
    }


def _stop_type(result: Result) -> str:
    if result.finish_reason != "stop":
        return "limit"
    return "word" if isinstance(result.stop, str) else "eos"


def _describe_logprob(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Any]:
    top = [_describe_token(tokenizer, token, logprob) for token, logprob in entry.top]
    return {**_describe_token(tokenizer, entry.token, entry.logprob), "top_logprobs": top}


def _describe_token(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    piece = tokenizer.piece_bytes(token, keep_control=True)
    return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}


_MISSING = object()


def select_fields(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields of an object, all without names; `a/b` is field b of object a, under that name."""
    if not names:
        return dict(body)
    found = {name: _find(body, name.split("/")) for name in names}
    return {name: value for name, value in found.items() if value is not _MISSING}


def _find(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = cast(dict[str, Any], value).get(key, _MISSING) if isinstance(value, dict) else _MISSING
    return value
