"""The facts of each Gemma family that are not shapes: prompts, sampling, and the names that other tools use.

A family is a generation or a branch of Gemma, such as Gemma 3 or PaliGemma 2; its published shapes are in
`gemwright.variants`. To add a family, add its row to `FAMILIES`. This module is plain data, for every layer above the
models.

Sources: the model cards on the hub; huggingface/transformers `models/*gemma*` (5.23); ggml-org/llama.cpp
`conversion/gemma.py`; google-research/big_vision `models/proj/paligemma`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from gemwright.model.config import Attention, Config, Recurrent

ImagePrompt: TypeAlias = Literal["prefix", "inline"]
"""`prefix`: images come before the text, and the whole prompt attends both ways. `inline`: images are part of the text,
and only the tokens of one image attend to each other both ways."""
Resample: TypeAlias = Literal["bilinear", "bicubic"]

TERMS = "https://ai.google.dev/gemma/terms"
"""The Gemma Terms of Use, under which all families here are published."""


@dataclass(frozen=True)
class FillInTheMiddle:
    """The special tokens of a fill-in-the-middle prompt."""

    prefix: str
    suffix: str
    middle: str
    separator: str


@dataclass(frozen=True)
class PublishedVocabulary:
    """The vocabulary that a family was trained with.

    Attributes:
        special: The id of each special token.
        text: First id, and the one after the last, of the bytes and learned pieces that texts consist of.
        digest: SHA-256 of these pieces, as `text.vocabulary.Vocabulary` spells them, each followed by a newline.
    """

    special: Mapping[str, int]
    text: tuple[int, int]
    digest: str


@dataclass(frozen=True)
class HuggingFaceNames:
    """A `model_type` of transformers and its class; the class with a head of scores, if there is one."""

    model_type: str
    model_class: str
    reward_class: str | None = None


@dataclass(frozen=True)
class Processor:
    """The processor of transformers that prepares images for a family.

    Attributes:
        name: Its class.
        image_class: The class of its image processor.
        tokens: The special tokens of an image, by the name of the attribute.
        convert_rgb: The image processor's `do_convert_rgb`.
        has_own_file: Whether it is saved with a `processor_config.json`.
    """

    name: str
    image_class: str
    tokens: Mapping[str, str]
    convert_rgb: bool | None
    has_own_file: bool


_CONTROL = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
VOCABULARY = PublishedVocabulary(
    MappingProxyType({**_CONTROL, "<mask>": 4, "<start_of_turn>": 106, "<end_of_turn>": 107}),
    (217, 255_969),
    "59182a4da33a7e63d76795c0997c5901363007fb22ec155b2fc958f9557f9f4a",
)
"""That of Gemma 1 and 2 and of the families made of them."""
VOCABULARY_3 = PublishedVocabulary(
    MappingProxyType(
        {
            **_CONTROL,
            "<mask>": 4,
            "<start_of_turn>": 105,
            "<end_of_turn>": 106,
            "<start_of_image>": 255_999,
            "<end_of_image>": 256_000,
        }
    ),
    (238, 255_968),
    "bc0b5a345b20eb3f5e37d1a5e0e0acf5339dd69b1c47d45b606ed2c7b22b6ef0",
)
"""That of Gemma 3."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: Its name.
        matches: Return whether a config is of this family, or of one that comes earlier in `FAMILIES`.
        names: The table of tensor names that its checkpoints use, see `gemwright.checkpoint.names`.
        chat_format: Name of its format for checkpoints without a chat template; see `gemwright.text.chat.FORMATS`.
        text_model: Names of the decoder in transformers; None if it is that of another family.
        vision_model: Names of the model with images in transformers; None if it has none.
        gguf: The architecture in GGUF files; None if the format has none.
        sampling: The published sampling settings, as arguments of `Sampling`.
        image_prompt: How images are part of a prompt; None without images.
        resample: How images were resized in training.
        hub_resample: How the hub's processor resizes images.
        processor: The processor in transformers.
        added_pieces: Tokens that follow those of the tokenizer file.
        fill_in_the_middle: Special tokens of fill-in-the-middle prompts.
        vocabulary: Its published vocabulary.
        license: Name of the license of the weights.
        terms: URL of its text.
    """

    name: str
    matches: Callable[[Config], bool]
    names: Literal["gemma", "recurrent"] = "gemma"
    chat_format: Literal["gemma", "gemma3"] = "gemma"
    text_model: HuggingFaceNames | None = None
    vision_model: HuggingFaceNames | None = None
    gguf: Literal["gemma", "gemma2", "gemma3"] | None = None
    sampling: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({"temperature": 1.0, "top_k": 64, "top_p": 0.95})
    )
    image_prompt: ImagePrompt | None = None
    resample: Resample = "bilinear"
    hub_resample: Resample = "bilinear"
    processor: Processor | None = None
    added_pieces: tuple[str, ...] = ()
    fill_in_the_middle: FillInTheMiddle | None = None
    vocabulary: PublishedVocabulary = VOCABULARY
    license: str = "Gemma Terms of Use"
    terms: str = TERMS

    def resampling(self, checkpoint_format: str) -> Resample:
        """Return how to resize images for a checkpoint of a format: as the code that reads this format does."""
        return self.hub_resample if checkpoint_format == "safetensors" else self.resample


def _is_recurrent(config: Config) -> bool:
    """Return whether there is a recurrent layer, or an MLP with biases, which no other family has."""
    return any(isinstance(layer.mixer, Recurrent) or layer.mlp.bias for layer in config.layers)


def _is_paligemma(config: Config) -> bool:
    return config.vision is not None and config.vision.projector == "affine" and not _has_qk_norm(config)


def _has_post_norms(config: Config) -> bool:
    return any(layer.post_norms for layer in config.layers)


def _has_soft_cap(config: Config) -> bool:
    return any(isinstance(layer.mixer, Attention) and layer.mixer.soft_cap is not None for layer in config.layers)


def _has_qk_norm(config: Config) -> bool:
    return any(isinstance(layer.mixer, Attention) and layer.mixer.qk_norm for layer in config.layers)


FILL_IN_THE_MIDDLE = FillInTheMiddle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>")
"""CodeGemma's tokens (arXiv:2406.11409)."""

RECURRENTGEMMA = Family(
    name="RecurrentGemma",
    matches=_is_recurrent,
    names="recurrent",
    text_model=HuggingFaceNames("recurrent_gemma", "RecurrentGemmaForCausalLM"),
)
PALIGEMMA = Family(
    name="PaliGemma",
    matches=_is_paligemma,
    vision_model=HuggingFaceNames("paligemma", "PaliGemmaForConditionalGeneration"),
    sampling=MappingProxyType({}),  # greedy
    image_prompt="prefix",
    hub_resample="bicubic",
    processor=Processor(
        name="PaliGemmaProcessor",
        image_class="SiglipImageProcessor",
        tokens=MappingProxyType({"image_token": "<image>"}),
        convert_rgb=None,
        has_own_file=False,
    ),
    added_pieces=(*(f"<loc{n:04}>" for n in range(1024)), *(f"<seg{n:03}>" for n in range(128))),
)
PALIGEMMA_2 = Family(
    name="PaliGemma 2",
    matches=lambda config: _is_paligemma(config) and _has_post_norms(config),
    vision_model=PALIGEMMA.vision_model,
    sampling=PALIGEMMA.sampling,
    image_prompt=PALIGEMMA.image_prompt,
    hub_resample=PALIGEMMA.hub_resample,
    processor=PALIGEMMA.processor,
    added_pieces=PALIGEMMA.added_pieces,
)
GEMMA_3 = Family(
    name="Gemma 3",
    matches=_has_qk_norm,
    chat_format="gemma3",
    text_model=HuggingFaceNames("gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
    vision_model=HuggingFaceNames("gemma3", "Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification"),
    gguf="gemma3",
    vocabulary=VOCABULARY_3,
    image_prompt="inline",
    processor=Processor(
        name="Gemma3Processor",
        image_class="Gemma3ImageProcessor",
        tokens=MappingProxyType(
            {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
        ),
        convert_rgb=True,
        has_own_file=True,
    ),
)
GEMMA_2 = Family(
    name="Gemma 2",
    matches=_has_post_norms,
    text_model=HuggingFaceNames("gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
    gguf="gemma2",
)
VAULTGEMMA = Family(
    name="VaultGemma",
    matches=_has_soft_cap,
    text_model=HuggingFaceNames("vaultgemma", "VaultGemmaForCausalLM"),
)
GEMMA_1 = Family(
    name="Gemma 1",
    matches=lambda config: True,
    text_model=HuggingFaceNames("gemma", "GemmaForCausalLM", "GemmaForSequenceClassification"),
    gguf="gemma",
)
CODEGEMMA = Family(
    name="CodeGemma",  # a Gemma 1 in shape; only its tokenizer tells it apart
    matches=GEMMA_1.matches,
    text_model=GEMMA_1.text_model,
    gguf=GEMMA_1.gguf,
    fill_in_the_middle=FILL_IN_THE_MIDDLE,
)

FAMILIES = (RECURRENTGEMMA, PALIGEMMA_2, PALIGEMMA, GEMMA_3, GEMMA_2, VAULTGEMMA, GEMMA_1, CODEGEMMA)
"""Every family, special ones first: the first that matches a config is its family."""


def find_family(config: Config) -> Family:
    """Return the family of a config. A CodeGemma is found as Gemma 1, whose shapes it has."""
    return next(family for family in FAMILIES if family.matches(config))
