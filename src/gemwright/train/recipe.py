"""What a run is made with: plain data, written beside its results and compared when it is resumed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from gemwright.data.packing import Packing
from gemwright.errors import GemwrightError
from gemwright.model.stack import Remat

Method: TypeAlias = Literal["lora", "qlora", "full"]
Schedule: TypeAlias = Literal["cosine", "constant", "rsqrt"]
MAX_COUNT = 2**31 - 1
"""Maximum of a count: those of steps are int32."""
LARGEST = {"rank": 1 << 14, "length": 1 << 20}
"""Maximum of some settings, to bound the work before the forecast of memory."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run.

    Attributes:
        method: Train low-rank updates of the layers' linear maps; the same over weights in their stored format, such
            as 4 bits, which takes the least memory; or all weights.
        rank: Rank of the updates.
        alpha: The updates are multiplied by alpha / rank.
        learning_rate: The highest learning rate; by default that of the method.
        schedule: Shape of the learning rate after its warm-up: a cosine to a tenth, constant, or the reciprocal square
            root of the step with a linear cool-down.
        warmup: Share of the steps in which the learning rate grows linearly.
        cooldown: Share of the steps at the end of `rsqrt` in which the learning rate falls to zero.
        optimizer: AdamW, or Adafactor, whose state is smaller.
        weight_decay: Of matrices only, and never of the RG-LRU's; AdamW only.
        clip: Largest norm of the gradient.
        length: Tokens of a sequence.
        batch_size: Sequences of a step.
        accumulation: Parts into which the sequences of a step are divided.
        epochs: Passes over the data.
        steps: Number of steps instead of a number of epochs.
        packing: How documents are packed into sequences.
        ema: Decay of an average of the weights, which is then the result; None for none.
        dtype: Dtype of activations and frozen weights; float32 for `qlora`. Trained weights are float32.
        remat: What is kept for the gradient.
        seed: Seed of the updates' start and of the order of the data.
    """

    method: Method = "lora"
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float | None = None
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    cooldown: float = 0.2
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    length: int = 512
    batch_size: int = 4
    accumulation: int = 1
    epochs: int = 1
    steps: int | None = None
    packing: Packing = "best-fit"
    ema: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "products"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GemwrightError: One is not valid, or two do not fit each other.
        """
        for name, hint in get_type_hints(Recipe).items():
            _check_choice(name, getattr(self, name), get_args(hint))
        for name in ("rank", "length", "batch_size", "accumulation", "epochs", "steps", "seed"):
            most = LARGEST.get(name, MAX_COUNT)
            _check_whole(name, getattr(self, name), 0 if name == "seed" else 1, most, optional=name == "steps")
        for name in ("alpha", "learning_rate", "clip"):
            check_number(name, getattr(self, name), optional=name == "learning_rate", above=0.0)
        check_number("weight_decay", self.weight_decay, least=0.0)
        for name in ("warmup", "cooldown"):
            check_number(name, getattr(self, name), least=0.0, most=1.0)
        check_number("ema", self.ema, optional=True, above=0.0, below=1.0)
        if self.batch_size * self.length > MAX_COUNT:
            raise GemwrightError(
                f"A step of {self.batch_size:,} x {self.length:,} tokens is too large; use a smaller batch size."
            )
        if self.batch_size % self.accumulation:
            raise GemwrightError(
                f"accumulation {self.accumulation} does not divide the batch size {self.batch_size}; choose a divisor."
            )
        if self.optimizer == "adafactor" and self.weight_decay:
            raise GemwrightError("weight_decay is an option of adamw; leave it out for adafactor.")
        if self.method == "qlora" and self.dtype != "float32":
            raise GemwrightError("qlora computes in float32; leave dtype out, or use the method lora for bfloat16.")

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or (1e-5 if self.method == "full" else 2e-4)

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Check a setting that is one of some names."""
    if not any(isinstance(choice, str) for choice in choices) or value in choices:
        return
    if name == "dtype" and str(value) in ("float16", "fp16", "half"):
        raise GemwrightError(
            "dtype float16 is not supported: Gemma's activations exceed its range (65504); use bfloat16 or float32."
        )
    raise GemwrightError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r:.40}.")


def _check_whole(name: str, value: Any, least: int, most: int, *, optional: bool) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise GemwrightError(f"{name} must be a whole number of at least {least}, got {value!r:.40}.")
    if value > most:
        raise GemwrightError(f"{name} must be at most {most:,}, got {value!r:.40}.")


def check_number(
    name: str,
    value: Any,
    *,
    optional: bool = False,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Check a setting that is a number.

    Raises:
        GemwrightError: It is none, or out of bounds.
    """
    if optional and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (above < value < below and least <= value <= most):
        bounds = {"above": above, "at least": least, "at most": most, "below": below}
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise GemwrightError(f"{name} must be a number {wanted}, got {value!r:.40}.")
