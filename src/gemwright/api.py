"""A loaded model: text in, text out.

model = gemwright.load("gemma-3-270m")
print(model.generate("Once upon a time", max_tokens=100).text)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemwright import memory
from gemwright.checkpoint.load import Progress, load_weights
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import Checkpoint, open_checkpoint, open_gguf_checkpoint
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.errors import GemwrightError
from gemwright.generate.engine import Engine
from gemwright.generate.output import Completion, OutputBatch, Stream
from gemwright.generate.prompts import Ids, Prompt
from gemwright.generate.sampling import Sampling
from gemwright.generate.speculation import Draft, Lookup, Proposer, refuse_recurrent
from gemwright.images.image_prompt import ImagePrompter, Picture
from gemwright.images.load import load_image
from gemwright.images.preprocess import pan_and_scan
from gemwright.kernels.native import native_enabled
from gemwright.model.config import Attention
from gemwright.model.state import state_dtype
from gemwright.runtime import startup
from gemwright.runtime.cache_dir import enable_cache
from gemwright.text import chat, infill
from gemwright.text.chat import ChatFormat, Message
from gemwright.text.tokenizer import Tokenizer

PUBLISHED = Sampling(temperature=1.0, top_k=64, top_p=0.95)
"""Sampling where a checkpoint says nothing: what Gemma 3 is published with."""
Conversation = Sequence[Message | Mapping[str, Any]]
Images = Sequence[Any]
"""Pictures of one text: paths, files' bytes, Pillow images or uint8 arrays [height, width, 3]."""


class Options(TypedDict, total=False):
    """What a call may say; what it does not say is the model's default.

    Attributes:
        max_tokens: Tokens to write at most (256); never more than fit in the context.
        stop: Strings that end the text; they are not part of it.
        logprobs: Whether to report the log-probability of each token, which costs a pass over the whole vocabulary
            (False).
        top_logprobs: Number of the most likely tokens to report at each step, 0 to 64; implies `logprobs`.
        seed: One seed, or one for each text.
        lookup: Whether to guess tokens from the text so far, which changes the speed only: it pays where text repeats
            itself or the prompt (False). It takes the place of a draft.
        pan_and_scan: Whether Gemma 3 also sees crops of pictures that are far from square (False).
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
    """How likely a text is to a model.

    Attributes:
        tokens: Ids of the text, behind the one that they follow: BOS, or the last of a prompt.
        logprobs: Natural log-probability of each id after the first, given all before it.
    """

    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token; 1.0 for an empty text."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs)) if self.logprobs else 1.0


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer. Made by `gemwright.load`.

    Attributes:
        name: What it was loaded as.
        engine: The weights and what runs them.
        tokenizer: Text to ids and back.
        chat_format: How conversations are written for it.
        defaults: Sampling where a call does not say otherwise.
        stop_ids: Ids that end a text.
        tuned: Whether the checkpoint came with a chat template, as instruction-tuned ones do.
        image_prompter: What sees pictures, if the model does.
        draft: A smaller model of the same vocabulary, which guesses tokens for this one to verify.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_format: ChatFormat
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
            images: Pictures that go before the text; for several texts, the pictures of each.
            **options: See `Options`.

        Raises:
            GemwrightError: a prompt does not fit in the context, a picture cannot be read or is given to a model that
                sees none, or an option is out of range.
        """
        if isinstance(prompt, str):
            return self._complete([self._prompt(prompt, images, options)], self.stop_ids, options)[0]
        if images and len(images) != len(prompt):
            raise GemwrightError(
                f"There are pictures for {len(images)} texts and {len(prompt)} texts; give each its own."
            )
        pairs = zip(prompt, images or [()] * len(prompt), strict=True)
        return self._complete([self._prompt(text, own, options) for text, own in pairs], self.stop_ids, options)

    def chat(self, messages: Conversation, **options: Unpack[Options]) -> Completion:
        """Answer the last message of a conversation.

        Args:
            messages: `Message`s, or mappings with "role" (system, user or assistant), "content" and perhaps "images".
            **options: As for `generate`.

        Raises:
            GemwrightError: roles do not alternate, or as for `generate`.
        """
        return self._complete([self._conversation(messages, options)], self.chat_stop_ids, options)[0]

    def infill(self, before: str, after: str, **options: Unpack[Options]) -> Completion:
        """Write what stands between two pieces of code (CodeGemma 2B and 7B); greedy unless told otherwise."""
        greedy: Options = {"temperature": 0.0}
        ids = infill.render(self.tokenizer, before, after)
        return self._complete([ids], infill.stop_ids(self.tokenizer), greedy | options)[0]

    def stream(self, prompt: str | Conversation, images: Images = (), **options: Unpack[Options]) -> Stream:
        """Continue a text or answer a conversation, piece by piece; a piece never holds half a character.

        The pictures of a conversation are in its messages.
        """
        if isinstance(prompt, str):
            return Stream(self._run([self._prompt(prompt, images, options)], self.stop_ids, options))
        if images:
            raise GemwrightError('The pictures of a conversation belong to its messages; give them there, as "images".')
        return Stream(self._run([self._conversation(prompt, options)], self.chat_stop_ids, options))

    def score(self, text: str, prompt: str = "", images: Images = ()) -> Score:
        """Log-likelihood of a text, token by token, after a prompt and pictures if there are any.

        Raises:
            GemwrightError: the text does not fit in the context, or a picture as for `generate`.
        """
        before, scored = self._prompt(prompt, images, {}), self.tokenizer.encode(text)
        whole = before.then(scored) if isinstance(before, Prompt) else [*before, *scored]
        ids = whole.ids if isinstance(whole, Prompt) else whole
        first = len(before) - 1
        return Score(list(ids[first:]), self.engine.score([whole])[0][first:].astype(float).tolist())

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt: BOS, then the text."""
        return self.tokenizer.with_bos(self.tokenizer.encode(text))

    def encode_chat(self, messages: Conversation) -> list[int]:
        """Ids of a conversation, up to where the model speaks; -1 for every row of a picture."""
        conversation = self._conversation(messages, {})
        return list(conversation.ids if isinstance(conversation, Prompt) else conversation)

    @property
    def chat_stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (*self.stop_ids, *chat.stop_ids(self.tokenizer, self.chat_format))

    def _prompt(self, text: str, images: Images, options: Options) -> Ids | Prompt:
        if self.image_prompter is None and images:
            raise GemwrightError(f"{self.name} sees no pictures; take a model that does, such as gemma-3-4b-it.")
        if self.image_prompter is None or not (images or self.image_prompter.vision.prefix_lm):
            return self.encode(text)
        if self.image_prompter.vision.prefix_lm and options.get("pan_and_scan"):
            raise GemwrightError("Pan and scan is for Gemma 3; a PaliGemma sees a picture once, in its own size.")
        return self.image_prompter.before(text, _views(images, options))

    def _conversation(self, messages: Conversation, options: Options) -> Ids | Prompt:
        turns = [_message(message, options) for message in messages]
        pictures = [view for turn in turns for views in turn.images for view in views]
        prompter = self.image_prompter
        inline = None if prompter is None or prompter.vision.prefix_lm else prompter
        ids = chat.render(self.chat_format, self.tokenizer, turns, inline and inline.insertion)
        return inline.prompt(ids, pictures) if inline and pictures else ids

    def _complete(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> list[Completion]:
        if not prompts:
            return []
        batch = self._run(prompts, stop_ids, options)
        for _ in batch:
            pass
        return batch.completions

    def _run(self, prompts: Sequence[Ids | Prompt], stop_ids: Iterable[int], options: Options) -> OutputBatch:
        max_tokens, top_logprobs = options.get("max_tokens", 256), options.get("top_logprobs")
        if max_tokens < 1 or not 0 <= (top_logprobs or 0) <= 64:
            raise GemwrightError("max_tokens must be at least 1, and top_logprobs between 0 and 64.")
        if top_logprobs is None and options.get("logprobs"):
            top_logprobs = 0
        stop = options.get("stop", ())
        samplings = self._samplings(options, len(prompts))
        proposer = self._proposer(samplings, options)
        steps = self.engine.generate(prompts, samplings, max_tokens, top_logprobs, proposer)
        lengths = [len(prompt) for prompt in prompts]
        return OutputBatch(steps, self.tokenizer, lengths, stop_ids, [stop] if isinstance(stop, str) else stop)

    def _proposer(self, samplings: Sequence[Sampling], options: Options) -> Proposer | None:
        if options.get("lookup"):
            return Lookup()
        if self.draft is None:
            return None
        vocabulary = min(self.draft.vocabulary, self.engine.vocabulary)
        return Draft(self.draft.config, self.draft.params, vocabulary, samplings, self.draft.state_dtype)

    def _samplings(self, options: Options, rows: int) -> list[Sampling]:
        given: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING}
        seed = given.pop("seed", self.defaults.seed)
        seeds = [seed] * rows if isinstance(seed, int) else list(seed)
        if len(seeds) != rows:
            raise GemwrightError(f"There are {len(seeds)} seeds for {rows} texts; give one, or one for each.")
        return [replace(self.defaults, **given, seed=seed) for seed in seeds]


_SAMPLING = frozenset(Sampling.__dataclass_fields__)


def load(
    model: str | Path,
    *,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    draft: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    early: GgufPrefetch | None = None,
) -> Model:
    """Load a model; `gemwright.load` reads a GGUF file while this module, and JAX with it, is being imported.

    Args:
        model: A path, a name of `gemwright models`, or a hub id.
        dtype: Of weights and activations. By default what `choose_dtype` says.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        draft: A smaller model of the same vocabulary, which guesses tokens for this one to verify; as `model` names it.
        progress: Called with the bytes read so far and the bytes in all.
        early: What was read of it before.

    Raises:
        GemwrightError: it cannot be found, read or held in memory, or the draft does not fit it; the message says why.
    """
    enable_cache()
    checkpoint = open_gguf_checkpoint(early.file.result()) if early else open_checkpoint(locate(str(model)), variant)
    config = checkpoint.config
    precision = choose_dtype(dtype)
    memory.require(forecast(checkpoint, precision), str(model))
    repacked = early.repacked() if early and precision is None else None
    # The tokenizer keeps one core busy, reading weights mostly waits.
    with startup.paused(), ThreadPoolExecutor(1) as beside:
        made = early.tokenizer if early else beside.submit(lambda: Tokenizer(checkpoint.vocabulary()))
        params = load_weights(checkpoint.file, checkpoint.mapping, config, precision, progress, repacked)
        tokenizer = made.result()
    checkpoint.check_vocabulary(tokenizer.size, tokenizer.is_control, checkpoint.path)
    eyes = None
    if config.vision is not None and params.vision is not None:
        # The resizing that Gemma 3 and big_vision's PaliGemma were given; the processors of the hub's PaliGemma differ.
        bicubic = config.vision.prefix_lm and checkpoint.format == "safetensors"
        eyes = ImagePrompter(config.vision, params.vision, "bicubic" if bicubic else "bilinear", tokenizer)
    third_generation = any(isinstance(layer.mixer, Attention) and layer.mixer.qk_norm for layer in config.layers)
    loaded = Model(
        name=str(model),
        engine=Engine(config, params, min(tokenizer.size, config.vocab), state_dtype(precision)),
        tokenizer=tokenizer,
        chat_format=chat.GEMMA3 if third_generation else chat.GEMMA,
        defaults=default_sampling(checkpoint),
        stop_ids=checkpoint.stop_ids or (tokenizer.eos_id,),
        tuned=checkpoint.chat_template is not None,
        image_prompter=eyes,
    )
    return loaded if draft is None else replace(loaded, draft=_draft(load(draft, dtype=dtype), loaded))


def choose_dtype(given: DTypeLike | None) -> jnp.dtype | None:
    """The dtype of weights and activations: the one given, or the one that suits the device.

    That is bfloat16 on an accelerator. On a CPU with gemwright-native it is None: weights stay at their own bits,
    activations are float32 and the state is bfloat16. On a CPU without, it is float32, in which XLA's products are
    fastest.
    """
    if given is not None:
        return jnp.dtype(given)
    if jax.default_backend() != "cpu":
        return jnp.dtype(jnp.bfloat16)
    return None if native_enabled() else jnp.dtype(jnp.float32)


def forecast(checkpoint: Checkpoint, dtype: jnp.dtype | None, capacity: int = 1024) -> memory.Forecast:
    """What a checkpoint needs with its weights in a dtype, or at their own bits where that is None.

    Our own quantised matrices stay as they are.
    """
    if dtype is not None and not checkpoint.quantized:
        return memory.forecast(checkpoint.config, dtype, capacity=capacity)
    stored = sum(
        info.nbytes if dtype is None or info.panels else math.prod(info.shape) * dtype.itemsize
        for info in checkpoint.file.tensors.values()
    )
    return memory.forecast(checkpoint.config, dtype, capacity=capacity, stored=stored)


def default_sampling(checkpoint: Checkpoint) -> Sampling:
    """Sampling as a `generation_config.json` has it, in the words and with the defaults of that format."""
    generation, vision = checkpoint.generation, checkpoint.config.vision
    keys = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {key: generation[key] for key in keys if key in generation}
    if "do_sample" not in generation and not given:
        return Sampling() if vision is not None and vision.prefix_lm else PUBLISHED
    if not generation.get("do_sample", False):
        return Sampling(repetition_penalty=given.get("repetition_penalty", 1.0))
    return replace(Sampling(temperature=1.0, top_k=50), **given)


def _draft(draft: Model, model: Model) -> Engine:
    """What guesses for a model. One of the two may have more ids, such as those of pictures."""
    shared = min(draft.engine.vocabulary, model.engine.vocabulary)
    if draft.tokenizer.pieces[:shared] != model.tokenizer.pieces[:shared]:
        raise GemwrightError(
            f"{draft.name} and {model.name} have different vocabularies; a draft must be of the model's generation."
        )
    refuse_recurrent(draft.engine.config)
    refuse_recurrent(model.engine.config)
    return draft.engine


def _views(images: Images, options: Options) -> list[list[Picture]]:
    """Each picture, and the crops that are shown after it."""
    if isinstance(images, str | bytes | Path):
        raise GemwrightError("images must be a list of pictures; put the one into a list.")
    pictures = [load_image(image) for image in images]
    return [[picture, *(pan_and_scan(picture) if options.get("pan_and_scan") else ())] for picture in pictures]


def _message(message: Message | Mapping[str, Any], options: Options) -> Message:
    """A message whose pictures are read."""
    if isinstance(message, Message):
        return replace(message, images=tuple(_views(message.images, options)))
    if message.get("role") not in ("system", "user", "assistant") or not isinstance(message.get("content"), str):
        raise GemwrightError("A message needs a role (system, user or assistant) and its content as text.")
    images = _views(message.get("images", ()), options)
    return Message(cast(chat.Role, message["role"]), message["content"], tuple(images))
