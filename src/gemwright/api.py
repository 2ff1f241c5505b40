"""A loaded model: text in, text out.

model = gemwright.load("gemma-3-270m")
print(model.generate("Once upon a time", max_tokens=100).text)
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack, overload

from gemwright.errors import GemwrightError
from gemwright.generate.drafts import Draft, Lookup, Proposer
from gemwright.generate.engine import Engine
from gemwright.generate.output import Completion, OutputBatch, Stream
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling
from gemwright.images.image_prompt import Image, ImagePrompter
from gemwright.images.load import load_image
from gemwright.images.preprocess import pan_and_scan
from gemwright.text import infill
from gemwright.text.chat import Conversation, read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.stop import find_stop_ids
from gemwright.text.tokenizer import Tokenizer

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Functions that a model may call: JSON schemas, as transformers takes them."""
Images: TypeAlias = Sequence[Any]
"""Images of one text: paths, files' bytes, Pillow images or uint8 arrays [height, width, 3]."""
MAX_TOP_LOGPROBS = 64
"""Maximum number of most likely tokens reported at each step."""


class Options(TypedDict, total=False):
    """Options of a call; those not given have the model's defaults.

    Attributes:
        max_tokens: Maximum number of tokens to generate (256); never more than fit in the context.
        stop: Strings that end the text, which are not part of it.
        logprobs: Whether to report the log-probability of each token, which takes a pass over the whole vocabulary
            (False).
        top_logprobs: Number of most likely tokens to report at each step, 0 to 64; implies `logprobs`.
        seed: One seed, or one for each text.
        lookup: Whether to propose draft tokens from the text so far instead of a draft model (False). It changes only
            the speed, and pays if the text repeats itself or the prompt.
        pan_and_scan: Whether Gemma 3 also gets crops of images that are far from square (False).
        temperature, top_k, top_p, min_p, repetition_penalty: As in `Sampling`.
    """

    max_tokens: int
    stop: str | Sequence[str]
    logprobs: bool
    top_logprobs: int
    seed: int | Sequence[int]
    lookup: bool
    pan_and_scan: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a text.

    Attributes:
        tokens: Ids of the text, after the id that precedes them: BOS, or the last of a prompt.
        logprobs: Natural log-probability of each id but the first, given all ids before it.
    """

    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """Return the exponential of the mean negative log-probability per token; 1.0 for an empty text."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs)) if self.logprobs else 1.0


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer; `gemwright.load` makes one.

    Attributes:
        name: The name or path from which it was loaded.
        engine: The weights and the programs that run them.
        tokenizer: The tokenizer.
        chat_template: The template of its conversations.
        defaults: Default sampling.
        stop_ids: Ids that end a text.
        tuned: Whether the checkpoint has a chat template, as instruction-tuned ones have.
        image_prompter: The vision tower, if the model has one.
        draft: A smaller model with the same vocabulary, which proposes draft tokens.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    defaults: Sampling
    stop_ids: tuple[int, ...]
    tuned: bool
    image_prompter: ImagePrompter | None = None
    draft: Engine | None = None

    @overload
    def generate(self, prompt: str, images: Images = (), **options: Unpack[Options]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(
        self, prompt: Sequence[str], images: Sequence[Images] = (), **options: Unpack[Options]
    ) -> list[Completion]: ...
    def generate(
        self, prompt: str | Sequence[str], images: Images = (), **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continue a text, or each of several.

        Args:
            prompt: The text, or several.
            images: Images that come before the text; for several texts, a sequence of images for each.
            **options: See `Options`.

        Raises:
            GemwrightError: A prompt does not fit in the context, an image cannot be read, the model does not accept
                images, or an option is unknown or out of range.
        """
        if isinstance(prompt, str):
            return self._complete([self._prompt(prompt, images, options)], self.stop_ids, options)[0]
        if images and len(images) != len(prompt):
            raise GemwrightError(
                f"images has {len(images)} entries for {len(prompt)} texts; pass one sequence of images for each text."
            )
        pairs = zip(prompt, images or [()] * len(prompt), strict=True)
        return self._complete([self._prompt(text, own, options) for text, own in pairs], self.stop_ids, options)

    def chat(
        self,
        messages: Conversation,
        *,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Answer the last message of a conversation.

        Args:
            messages: `Message`s, or mappings with "role" (system, developer, user, assistant, model or tool), "content"
                (text, or a list of parts of type text or image), and optional "images" and "tool_calls".
            tools: Functions that the model may call.
            variables: Variables of the chat template, such as {"enable_thinking": True}.
            **options: As for `generate`.

        Raises:
            GemwrightError: The chat template refuses the conversation, or as for `generate`.
        """
        conversation = self._conversation(messages, options, tools, variables)
        return self._complete([conversation], self.chat_stop_ids, options)[0]

    def infill(self, before: str, after: str, **options: Unpack[Options]) -> Completion:
        """Generate the code between two pieces of code (CodeGemma 2B and 7B), by default greedily.

        Raises:
            GemwrightError: The vocabulary has no fill-in-the-middle tokens, or as for `generate`.
        """
        greedy: Options = {"temperature": 0.0}
        ids = infill.render(self.tokenizer, before, after)
        return self._complete([ids], infill.stop_ids(self.tokenizer), greedy | options)[0]

    def stream(self, prompt: str | Conversation, images: Images = (), **options: Unpack[Options]) -> Stream:
        """Continue a text or answer a conversation, as a stream of pieces of whole characters.

        The images of a conversation are in its messages. Options and errors are those of `generate`.
        """
        if isinstance(prompt, str):
            return Stream(self._run([self._prompt(prompt, images, options)], self.stop_ids, options))
        if images:
            raise GemwrightError('Images of a conversation belong to its messages; pass them there, as "images".')
        return Stream(self._run([self._conversation(prompt, options)], self.chat_stop_ids, options))

    def score(self, text: str, prompt: str = "", images: Images = ()) -> Score:
        """Return the log-likelihood of each token of a text after an optional prompt with images.

        Raises:
            GemwrightError: The text does not fit in the context, or as for the images of `generate`.
        """
        before, scored = self._prompt(prompt, images, {}), self.tokenizer.encode(text)
        whole = before.then(scored) if isinstance(before, Prompt) else [*before, *scored]
        ids = whole.ids if isinstance(whole, Prompt) else whole
        first = len(before) - 1
        return Score(list(ids[first:]), self.engine.score([whole])[0][first:].astype(float).tolist())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt: BOS, then the text."""
        return self.tokenizer.with_bos(self.tokenizer.encode(text))

    def encode_chat(self, messages: Conversation, tools: Tools | None = None, **variables: Any) -> list[int]:
        """Return the ids of a conversation up to the model's answer; image soft tokens are -1.

        Args:
            messages: As for `chat`.
            tools: Functions that the model may call.
            **variables: Variables of the chat template, such as `enable_thinking`.
        """
        conversation = self._conversation(messages, {}, tools, variables)
        return list(conversation.ids if isinstance(conversation, Prompt) else conversation)

    @property
    def chat_stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer."""
        return tuple(dict.fromkeys((*self.stop_ids, self.tokenizer.eos_id, *self.chat_template.end_ids)))

    def _prompt(self, text: str, images: Images, options: Options) -> Ids | Prompt:
        prompter = self.image_prompter
        if prompter is None and images:
            raise GemwrightError(f"{self.name} does not accept images; use a model that does, such as gemma-3-4b-it.")
        if prompter is None or not (images or prompter.style == "prefix"):
            return self.encode(text)
        if prompter.style == "prefix" and options.get("pan_and_scan"):
            raise GemwrightError("pan_and_scan is for Gemma 3; PaliGemma encodes each image once, at one size.")
        return prompter.before(text, _views(images, options))

    def _conversation(
        self,
        messages: Conversation,
        options: Options,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Ids | Prompt:
        talk, sources = read_messages(messages)
        prompter = self.image_prompter
        if prompter is None or prompter.style == "prefix":
            if sources:
                raise GemwrightError(
                    "This model does not accept images in a conversation; use one that does, such as gemma-3-4b-it."
                )
            return self.chat_template.encode(talk, tools, (), variables)
        images = _views(sources, options)
        insertions = [prompter.insertion(views) for views in images]
        ids = self.chat_template.encode(talk, tools, insertions, variables)
        return prompter.prompt(ids, [view for views in images for view in views]) if images else ids

    def _complete(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> list[Completion]:
        if not prompts:
            return []
        batch = self._run(prompts, stop_ids, options)
        for _ in batch:
            pass
        return batch.completions

    def _run(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> OutputBatch:
        _check_names(options)
        max_tokens, top_logprobs = options.get("max_tokens", 256), options.get("top_logprobs")
        if max_tokens < 1 or not 0 <= (top_logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise GemwrightError(f"max_tokens must be at least 1, and top_logprobs from 0 to {MAX_TOP_LOGPROBS}.")
        if top_logprobs is None and options.get("logprobs"):
            top_logprobs = 0
        stop = options.get("stop", ())
        samplings = self._samplings(options, len(prompts))
        proposer = self._proposer(samplings, options)
        stop_ids = (*stop_ids, *find_stop_ids(self.tokenizer, [stop] if isinstance(stop, str) else stop))
        steps = self.engine.generate(prompts, samplings, max_tokens, top_logprobs, proposer, stop_ids)
        lengths = [len(prompt) for prompt in prompts]
        return OutputBatch(steps, self.tokenizer, lengths, stop_ids, [stop] if isinstance(stop, str) else stop)

    def _proposer(self, samplings: Sequence[Sampling], options: Options) -> Proposer | None:
        if options.get("lookup"):
            return Lookup()
        if self.draft is None:
            return None
        vocabulary = min(self.draft.vocabulary, self.engine.vocabulary)
        return Draft(self.draft.config, self.draft.params, vocabulary, samplings, self.draft.state_dtype)

    def _samplings(self, options: Options, count: int) -> list[Sampling]:
        given: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING}
        seed = given.pop("seed", self.defaults.seed)
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise GemwrightError(f"seed has {len(seeds)} seeds for {count} texts; pass one, or one for each text.")
        return [replace(self.defaults, **given, seed=seed) for seed in seeds]


_SAMPLING = frozenset(Sampling.__dataclass_fields__)


def _check_names(options: Options) -> None:
    """Raise if an option is unknown: type checkers enforce a TypedDict, Python does not."""
    known = Options.__annotations__.keys()
    for name in options.keys() - known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(known)}."
        raise GemwrightError(f"There is no option {name!r}; {remedy}")


def _views(images: Images, options: Options) -> list[list[Image]]:
    """Return each image, followed by its crops if they are wanted."""
    if isinstance(images, str | bytes | Path):
        raise GemwrightError("images must be a list of images; put the image into a list.")
    loaded = [load_image(image) for image in images]
    return [[image, *(pan_and_scan(image) if options.get("pan_and_scan") else ())] for image in loaded]
