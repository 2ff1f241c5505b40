"""A loaded model: text in, text out.

model = gemwright.load("gemma-3-270m")
print(model.generate("Once upon a time", max_tokens=100).text)
"""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, Unpack, cast, overload

from gemwright.errors import GemwrightError, NotFiniteError
from gemwright.generate.drafts import Draft, Lookup, Proposer
from gemwright.generate.engine import Engine
from gemwright.generate.output import Completion, OutputBatch, Stream
from gemwright.generate.prompts import Ids, Prompt, token_ids, windows
from gemwright.generate.sampling import Sampling
from gemwright.generate.step import Step
from gemwright.generate.tournament import TournamentKeys
from gemwright.generate.watermark import read_watermark
from gemwright.images.image_prompt import Image, ImagePrompter
from gemwright.images.load import load_image
from gemwright.images.preprocess import pan_and_scan
from gemwright.inputs import Text, is_conversation, parse_conversations, parse_texts
from gemwright.options import Options, Windows, check_options, check_windows, parse_seeds
from gemwright.runtime.fork import require_not_forked
from gemwright.runtime.heap import TrimAtEnd
from gemwright.text import infill
from gemwright.text.chat import Conversation, read_messages
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.stop import find_stop_ids
from gemwright.text.tokenizer import Tokenizer

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Functions that a model may call: JSON schemas, as transformers takes them."""
Images: TypeAlias = Sequence[Any]
"""Images of one text: paths, files' bytes, Pillow images or uint8 arrays [height, width, 3]."""
DEFAULT_MAX_TOKENS = 256
"""Maximum number of tokens to generate unless given."""


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a text.

    Attributes:
        tokens: Ids of the text, after the id that precedes them: BOS, or the last of a prompt. Nothing precedes a text
            that was given as ids without a prompt.
        logprobs: Natural log-probability of each id but the first, given all ids before it.
    """

    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """Return the exponential of the mean negative log-probability per token."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


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
    _trim: TrimAtEnd = field(default_factory=TrimAtEnd, compare=False)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.engine.summary})"

    @overload
    def generate(self, prompt: Text, images: Images = (), **options: Unpack[Options]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(
        self, prompt: Sequence[Text], images: Sequence[Images] = (), **options: Unpack[Options]
    ) -> list[Completion]: ...
    def generate(
        self, prompt: Text | Sequence[Text], images: Images = (), **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Continue a text, or each of several.

        Args:
            prompt: The text or its token ids, to which no BOS is added; or several of them.
            images: Images that come before the text; for several texts, a sequence of images for each.
            **options: See `Options`.

        Raises:
            GemwrightError: A prompt does not fit in the context, an image cannot be read, the model does not accept
                images, or an option is unknown, of another type or out of range.
        """
        checked = check_options(options)
        texts, single = parse_texts(prompt)
        pairs = zip(texts, [images] if single else _images_of(len(texts), images), strict=True)
        completions = self._complete([self._prompt(*pair, checked) for pair in pairs], self.stop_ids, checked)
        return completions[0] if single else completions

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> list[Completion]: ...
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Answer the last message of a conversation, or of each of several.

        Args:
            messages: `Message`s, or mappings with "role" (system, developer, user, assistant, model or tool), "content"
                (text, or a list of parts of type text or image), and optional "images" and "tool_calls"; or several
                such lists.
            tools: Functions that the model may call.
            variables: Variables of the chat template, such as {"enable_thinking": True}.
            **options: As for `generate`.

        Raises:
            GemwrightError: The chat template refuses the conversation, or as for `generate`.
        """
        checked = check_options(options)
        conversations, single = parse_conversations(messages)
        prompts = [self._conversation(conversation, checked, tools, variables) for conversation in conversations]
        completions = self._complete(prompts, self.chat_stop_ids, checked)
        return completions[0] if single else completions

    def infill(self, before: str, after: str, **options: Unpack[Options]) -> Completion:
        """Generate the code between two pieces of code (CodeGemma 2B and 7B), by default greedily.

        Raises:
            GemwrightError: The vocabulary has no fill-in-the-middle tokens, or as for `generate`.
        """
        greedy: Options = {"temperature": 0.0}
        checked = greedy | check_options(options)
        if not (isinstance(before, str) and isinstance(after, str)):
            raise GemwrightError("The code before and after the gap must be strings.")
        ids = infill.render(self.tokenizer, before, after)
        return self._complete([ids], infill.stop_ids(self.tokenizer), checked)[0]

    def stream(self, prompt: Text | Conversation, images: Images = (), **options: Unpack[Options]) -> Stream:
        """Continue a text or answer a conversation, as a stream of pieces of whole characters.

        The images of a conversation are in its messages. Options and errors are those of `generate`.
        """
        checked = check_options(options)
        if is_conversation(prompt):
            if images:
                raise GemwrightError('Images of a conversation belong to its messages; pass them there, as "images".')
            return Stream(self._run([self._conversation(prompt, checked)], self.chat_stop_ids, checked))
        texts, single = parse_texts(prompt)
        if not single:
            raise GemwrightError("A stream continues one prompt; pass a list of prompts to generate.")
        return Stream(self._run([self._prompt(texts[0], images, checked)], self.stop_ids, checked))

    @overload
    def score(self, text: Text, prompt: Text = "", images: Images = (), **windows: Unpack[Windows]) -> Score: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def score(
        self,
        text: Sequence[Text],
        prompt: Text | Sequence[Text] = "",
        images: Sequence[Images] = (),
        **windows: Unpack[Windows],
    ) -> list[Score]: ...
    def score(
        self,
        text: Text | Sequence[Text],
        prompt: Text | Sequence[Text] = "",
        images: Images = (),
        **windows: Unpack[Windows],
    ) -> Score | list[Score]:
        """Return the log-likelihood of each token of a text, or of each of several, after an optional prompt.

        Args:
            text: The text or its token ids, to which no BOS is added; or several of them, which run as one batch.
            prompt: A text before it that is not scored; for several texts, one for all or one for each.
            images: Images before the prompt; for several texts, a sequence of images for each.
            **windows: See `Windows`, for texts longer than the context.

        Raises:
            GemwrightError: A text is empty or does not fit in the context, or as for the images of `generate`.
        """
        require_not_forked()
        spans = check_windows(windows, self.engine.config.max_length)
        texts, single = parse_texts(text)
        prompts, shared = parse_texts(prompt)
        if shared:
            prompts *= len(texts)
        elif len(prompts) != len(texts):
            raise GemwrightError(f"prompt has {len(prompts)} texts for {len(texts)}; pass one, or one for each text.")
        each = [images] if single else _images_of(len(texts), images)
        parts = [self._scored(*part) for part in zip(texts, prompts, each, strict=True)]
        with self._named_errors():
            logprobs = [self._score_in_windows(*part, *spans) for part in parts] if spans else self._score(parts)
        scores = [
            Score([*token_ids(before)[-1:], *ids], part) for (before, ids), part in zip(parts, logprobs, strict=True)
        ]
        return scores[0] if single else scores

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without control tokens.

        Raises:
            GemwrightError: One of them is not the id of a token.
        """
        texts, single = parse_texts(ids)
        if isinstance(ids, str) or not (single or not texts):
            raise GemwrightError("decode takes the token ids of one text, as a list of integers.")
        return self.tokenizer.decode(cast(Sequence[int], texts[0])) if texts else ""

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

    def prepare(self, text: Text, images: Images = (), **options: Unpack[Options]) -> Ids | Prompt:
        """Return the prompt of a text, for `engine`; arguments and errors are those of `generate`."""
        return self._prompt(text, images, check_options(options))

    def prepare_chat(
        self,
        messages: Conversation,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        answer: str = "",
        **options: Unpack[Options],
    ) -> Ids | Prompt:
        """Return the prompt of a conversation and the beginning of its answer, for `engine`.

        Other arguments, and errors, are those of `chat`.
        """
        return self._conversation(messages, check_options(options), tools, variables, answer)

    @property
    def chat_stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer."""
        return tuple(dict.fromkeys((*self.stop_ids, self.tokenizer.eos_id, *self.chat_template.end_ids)))

    def _prompt(self, text: Text, images: Images, options: Options) -> Ids | Prompt:
        prompter = self.image_prompter
        if prompter is None and images:
            raise GemwrightError(f"{self.name} does not accept images; use a model that does, such as gemma-3-4b-it.")
        if not isinstance(text, str):
            if images:
                raise GemwrightError("Images need a prompt of text; pass it as a string instead of token ids.")
            return text
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
        answer: str = "",
    ) -> Ids | Prompt:
        talk, sources = read_messages(messages)
        prompter = self.image_prompter
        if prompter is None or prompter.style == "prefix":
            if sources:
                raise GemwrightError(
                    "This model does not accept images in a conversation; use one that does, such as gemma-3-4b-it."
                )
            return self.chat_template.encode(talk, tools, (), variables, answer)
        images = _views(sources, options)
        insertions = [prompter.insertion(views) for views in images]
        ids = self.chat_template.encode(talk, tools, insertions, variables, answer)
        return prompter.prompt(ids, [view for views in images for view in views]) if images else ids

    def _complete(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> list[Completion]:
        if not prompts:
            return []
        batch = self._run(prompts, stop_ids, options)
        for _ in batch:
            pass
        return batch.completions

    def _run(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> OutputBatch:
        require_not_forked()
        top_logprobs, stop = options.get("top_logprobs"), options.get("stop")
        stops = [stop] if isinstance(stop, str) else stop or ()
        if top_logprobs is None and options.get("logprobs"):
            top_logprobs = 0
        samplings = self._samplings(options, len(prompts))
        proposer = self._proposer(samplings, options)
        stop_ids = (*stop_ids, *find_stop_ids(self.tokenizer, stops))
        max_tokens = options.get("max_tokens") or DEFAULT_MAX_TOKENS
        file = options.get("watermark")
        watermark = None if file is None else TournamentKeys.place(read_watermark(Path(file)))
        steps = self.engine.generate(
            prompts, samplings, max_tokens, top_logprobs, proposer, stop_ids, watermark=watermark
        )
        prompt_tokens, seeds = [len(prompt) for prompt in prompts], [sampling.seed for sampling in samplings]
        return OutputBatch(self._named(steps), self.tokenizer, prompt_tokens, stop_ids, stops, seeds)

    def _named(self, steps: Iterator[Step]) -> Iterator[Step]:
        with self._named_errors():
            yield from steps

    @contextmanager
    def _named_errors(self) -> Generator[None]:
        """Add the model's name to an error about its logits."""
        try:
            yield
        except NotFiniteError as error:
            raise NotFiniteError(f"{self.name}: {error}") from error

    def _scored(self, text: Text, prompt: Text, images: Images) -> tuple[Ids | Prompt, Ids]:
        """Return the prompt of a text to score, and the ids of the text."""
        ids = self.tokenizer.encode(text) if isinstance(text, str) else text
        is_alone = not isinstance(text, str) and not prompt and not images  # the ids hold their own BOS
        before = [] if is_alone else self._prompt(prompt, images, {})
        if len(ids) + min(len(before), 1) < 2:
            raise GemwrightError("There is no token to score; pass a text that is not empty, or two token ids.")
        return before, ids

    def _score(self, parts: Sequence[tuple[Ids | Prompt, Ids]]) -> list[list[float]]:
        """Return the log-probabilities of texts after their prompts, as one batch."""
        scores = self.engine.score([_join(*part) for part in parts]) if parts else []
        starts = [max(len(before) - 1, 0) for before, _ in parts]
        return [logprobs[start:].astype(float).tolist() for start, logprobs in zip(starts, scores, strict=True)]

    def _score_in_windows(self, before: Ids | Prompt, ids: Ids, max_length: int, stride: int) -> list[float]:
        """Return the log-probabilities of a text whose windows all begin with the prompt."""
        size, logprobs = max_length - len(before), list[float]()
        if stride > size - (not before):
            raise GemwrightError(f"stride is {stride}, and it must be at most {size - (not before)} in these windows.")
        for start, first, stop in windows(len(ids), size, stride):
            window = self._score([(before, ids[start:stop])])[0]
            logprobs += window[max(first - start - (not before), 0) :]
        return logprobs

    def _proposer(self, samplings: Sequence[Sampling], options: Options) -> Proposer | None:
        if options.get("lookup"):
            return Lookup()
        if self.draft is None:
            return None
        vocabulary = min(self.draft.vocabulary, self.engine.vocabulary)
        return Draft(self.draft.config, self.draft.params, vocabulary, samplings, self.draft.state_dtype)

    def _samplings(self, options: Options, count: int) -> list[Sampling]:
        given: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING and name != "seed"}
        return [replace(self.defaults, **given, seed=seed) for seed in parse_seeds(options, count)]


_SAMPLING = frozenset(Sampling.__dataclass_fields__)


def _join(before: Ids | Prompt, ids: Ids) -> Ids | Prompt:
    return before.then(ids) if isinstance(before, Prompt) else [*before, *ids]


def _images_of(count: int, images: Images) -> Sequence[Images]:
    """Return the images of each of several texts."""
    if images and len(images) != count:
        raise GemwrightError(
            f"images has {len(images)} entries for {count} texts; pass one sequence of images for each text."
        )
    return images or [()] * count


def _views(images: Images, options: Options) -> list[list[Image]]:
    """Return each image, followed by its crops if they are wanted."""
    if isinstance(images, str | bytes | Path):
        raise GemwrightError("images must be a list of images; put the image into a list.")
    loaded = [load_image(image) for image in images]
    return [[image, *(pan_and_scan(image) if options.get("pan_and_scan") else ())] for image in loaded]
