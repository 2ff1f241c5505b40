"""lm-eval's interface of a model: its model `gemwright`, once this module is imported."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

import gemwright
from gemwright.api import Model
from gemwright.errors import GemwrightError
from gemwright.eval.code_tasks import split_infilling_prompt
from gemwright.eval.responses import Responses
from gemwright.eval.store import make_key
from gemwright.generate.continuations import Likelihood, SharedPrefix, score_continuations
from gemwright.generate.output import OutputBatch
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling
from gemwright.model.state import DecodeState
from gemwright.text import infill
from gemwright.text.stop import find_stop_ids

MAX_NEW_TOKENS = 256
"""Maximum number of tokens of a reply whose task does not say."""
MAX_REPLIES = 16
"""Maximum number of replies that are generated together."""
Progress = Callable[[str, int, int], None]
"""A callback with the kind of requests that run, how many are answered, and how many there are."""


class HarnessModel(TemplateLM):
    """A model behind lm-eval's interface. Every text begins with BOS, as Gemma was trained.

    Args:
        pretrained: Path, name or hub id; or a loaded model.
        dtype: See `gemwright.load`.
        adapter: See `gemwright.load`.
        max_length: Maximum number of tokens of a text with its continuation; what exceeds it is cut on the left.
        responses: Where responses are looked up and kept.
        progress: Called while requests run.
    """

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: str | Model = "gemma-3-270m",
        dtype: str | None = None,
        adapter: str | None = None,
        max_length: int = 4096,
        responses: Responses | None = None,
        progress: Progress = lambda kind, done, total: None,
        **_: Any,
    ):
        super().__init__()
        is_loaded = isinstance(pretrained, Model)
        self.model = pretrained if is_loaded else gemwright.load(pretrained, dtype=dtype, adapter=adapter or ())
        self.max_length = min(int(max_length), self.model.engine.config.max_length)
        self.progress = progress
        self._prefix = SharedPrefix(self.model.engine)
        self._responses = responses
        self._context: tuple[str, list[int]] = "", []
        """The last context and its ids: the choices of a question follow each other."""
        self._conversations: dict[str, list[dict[str, Any]]] = {}

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
        """A name for lm-eval's cache of requests."""
        return self.model.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template of conversations."""
        return next(iter(self.model.chat_template.sources.values())) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Return a text for a conversation; its ids are those of the chat template, whatever its messages contain.

        A last message of the model is the beginning of its answer unless `add_generation_prompt` is true.
        """
        text = "\n".join(f"{message['role']}: {message['content']}" for message in chat_history)
        text += "\nassistant:" if add_generation_prompt else ""
        self._conversations[text] = chat_history
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, with BOS unless `add_special_tokens` is false."""
        if string in self._conversations:
            return cast(list[int], self._encode(string))
        return self.model.tokenizer.encode(string) if add_special_tokens is False else self.model.encode(string)

    def _encode(self, text: str, images: Sequence[Any] = ()) -> Ids | Prompt:
        """Return the prompt of a text, or of the conversation that it stands for."""
        if gap := split_infilling_prompt(text):
            return infill.render(self.model.tokenizer, *gap)
        messages = self._conversations.get(text)
        if messages is None:
            return self.model.prepare(_without_marker(text), images) if images else self.model.encode(text)
        *before, last = [{**message, "content": _without_marker(message["content"])} for message in messages]
        answer = last["content"] if last["role"] in ("assistant", "model") else ""
        talk = before if answer else [*before, last]
        if images:
            talk = [*talk[:-1], {**talk[-1], "images": list(images)}]
        return self.model.prepare_chat(talk, answer=answer)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context in self._conversations:
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        # As lm-eval's other models: spaces that end the context belong to the continuation.
        text = context.rstrip()
        if text != self._context[0]:
            self._context = text, self.tok_encode(text)
        ids = self._context[1]
        return ids, self.tok_encode(context + continuation)[len(ids) :]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is what greedy decoding generates."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        keys = [make_key("loglikelihood", *pair) for pair in pairs]
        found = self._find(keys)
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in found}
        names = list(missing)
        done = len(keys) - len(missing)
        self.progress("scored", done, len(keys))

        def keep(scored: Sequence[tuple[int, Likelihood]]) -> None:
            nonlocal done
            done += len(scored)
            self._keep(found, {names[index]: list(likelihood) for index, likelihood in scored})
            self.progress("scored", done, len(keys))

        score_continuations(self.model.engine, list(missing.values()), keep)
        return [(float(found[key][0]), bool(found[key][1])) for key in keys]

    def _fit(self, context: Ids, continuation: Ids) -> tuple[Ids, Ids]:
        """Cut a text on the left, as lm-eval's other models do."""
        room = max(1, self.max_length - len(continuation))
        return list(context[-room:]), list(continuation[: self.max_length - 1])

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts; those longer than `max_length` run in windows without overlap."""
        windows: list[tuple[int, tuple[list[int], list[int]]]] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(str(_arguments(request)[0]), add_special_tokens=False)
            rolling = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows += ((index, utils.make_disjoint_window(window)) for window in rolling)
        found = self._loglikelihood_tokens([(("", ""), *window) for _, window in windows])
        sums = [0.0] * len(requests)
        for (index, _), (logprob, _) in zip(windows, found, strict=True):
            sums[index] += logprob
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each prompt, up to one of its stop strings."""
        asked = [_read_request(request) for request in requests]
        # Sampled replies to the same prompt differ, so a request's place among equal ones belongs to its key.
        repeats: dict[str, int] = {}
        keys: list[str] = []
        for prompt, options, images in asked:
            key = make_key("generate", prompt, options, [_image_digest(image) for image in images])
            repeats[key] = repeats.get(key, -1) + 1
            keys.append(make_key(key, repeats[key]) if options.get("do_sample") and repeats[key] else key)
        found = self._find(keys)
        missing = {key: one for key, one in zip(keys, asked, strict=True) if key not in found}
        self.progress("generated", len(keys) - len(missing), len(keys))
        for part in _batches(missing):
            texts = self._generate([one for _, one in part])
            self._keep(found, {key: text for (key, _), text in zip(part, texts, strict=True)})
            self.progress("generated", sum(key in found for key in keys), len(keys))
        return [found[key] for key in keys]

    def _generate(self, asked: Sequence[tuple[str, Mapping[str, Any], Sequence[Any]]]) -> list[str]:
        options = asked[0][1]
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        tokens = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        sampling = Sampling()
        if options.get("do_sample"):
            given: dict[str, Any] = {name: options[name] for name in ("top_k", "top_p") if name in options}
            sampling = Sampling(temperature=float(options.get("temperature", 1.0)), **given)
        seeds = list(range(len(asked)))
        prompts = [self._cut(self._encode(text, images), tokens) for text, _, images in asked]
        ends = self.model.chat_stop_ids if asked[0][0] in self._conversations else self.model.stop_ids
        if split_infilling_prompt(asked[0][0]):
            ends = infill.stop_ids(self.model.tokenizer)
        ends = (*ends, *find_stop_ids(self.model.tokenizer, stops))
        samplings = [replace(sampling, seed=seed) for seed in seeds]
        state = self._read_prefix(prompts, tokens)
        steps = self.model.engine.generate(prompts, samplings, tokens, stop_ids=ends, state=state)
        batch = OutputBatch(steps, self.model.tokenizer, [len(prompt) for prompt in prompts], ends, stops, seeds)
        for _ in batch:
            pass
        return [completion.text for completion in batch.completions]

    def _cut(self, prompt: Ids | Prompt, tokens: int) -> Ids | Prompt:
        """Cut a prompt on the left, so that it leaves room for a number of tokens."""
        return prompt if isinstance(prompt, Prompt) else prompt[-max(1, self.max_length - tokens) :]

    def _read_prefix(self, prompts: Sequence[Ids | Prompt], tokens: int) -> DecodeState | None:
        """Return states that hold what prompts share, such as examples, if that is much."""
        texts = [prompt for prompt in prompts if not isinstance(prompt, Prompt)]
        room = max(map(len, prompts)) + tokens
        return self._prefix.states(texts, room) if len(texts) == len(prompts) > 1 else None

    def _find(self, keys: Sequence[str]) -> dict[str, Any]:
        if self._responses is None:
            return {}
        return {key: value for key in keys if (value := self._responses.find(key)) is not None}

    def _keep(self, found: dict[str, Any], responses: Mapping[str, Any]) -> None:
        found |= responses
        if self._responses is not None:
            self._responses.add(responses)


register_model("gemwright")(HarnessModel)


def _arguments(request: Instance) -> tuple[Any, ...]:
    """Return the arguments of a request, whose type lm-eval leaves open."""
    return cast(tuple[Any, ...], request.args)


def _read_request(request: Instance) -> tuple[str, dict[str, Any], list[Any]]:
    """Return the prompt, the options and the images of a request for a reply."""
    prompt, options, *rest = _arguments(request)
    media = cast(Mapping[str, Any], rest[0]) if rest else {}
    if unknown := set(media) - {"visual"}:
        raise GemwrightError(f"A task has {' and '.join(sorted(unknown))}; the model reads text and images.")
    return str(prompt), dict(options), list(media.get("visual", ()))


def _batches(
    missing: Mapping[str, tuple[str, dict[str, Any], list[Any]]],
) -> Iterator[list[tuple[str, tuple[str, dict[str, Any], list[Any]]]]]:
    """Yield requests with equal options, those of about the same length together."""
    order = sorted(missing.items(), key=lambda one: (repr(one[1][1]), len(one[1][0])))
    for _, group in groupby(order, key=lambda one: repr(one[1][1])):
        same = list(group)
        for start in range(0, len(same), MAX_REPLIES):
            yield same[start : start + MAX_REPLIES]


def _without_marker(text: str) -> str:
    """Remove lm-eval's place holder of images, which come before the text."""
    return text.replace("<image>", "").lstrip() if "<image>" in text else text


def _image_digest(image: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PPM")
    return hashlib.sha256(buffer.getvalue()).hexdigest()
