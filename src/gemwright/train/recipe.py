"""What a run is made with: plain data, written beside its results and compared when it is resumed."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from gemwright.data.packing import Packing
from gemwright.errors import GemwrightError
from gemwright.model.stack import Remat

Method: TypeAlias = Literal["lora", "full"]
Schedule: TypeAlias = Literal["cosine", "constant", "rsqrt"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a run.

    Attributes:
        method: Train low-rank updates of the layers' linear maps, or all weights.
        rank: Rank of the updates.
        alpha: The updates are multiplied by alpha / rank.
        learning_rate: The highest learning rate; by default that of the method.
        schedule: Shape of the learning rate after its warm-up: a cosine to a tenth, constant, or the reciprocal square
            root of the step with a linear cool-down.
        warmup: Share of the steps in which the learning rate grows linearly.
        cooldown: Share of the steps at the end of `rsqrt` in which the learning rate falls to zero.
        optimizer: AdamW, or Adafactor, whose state is smaller.
        weight_decay: Of matrices only, and never of the RG-LRU's decay.
        clip: Largest norm of the gradient.
        length: Tokens of a sequence.
        batch_size: Sequences of a step.
        accumulation: Parts into which the sequences of a step are divided.
        epochs: Passes over the data.
        steps: Number of steps instead of a number of epochs.
        packing: How documents are packed into sequences.
        ema: Decay of an average of the weights, which is then the result; None for none.
        dtype: Dtype of activations and frozen weights. Trained weights are float32.
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
        """Check the settings."""
        for name in ("rank", "length", "batch_size", "accumulation", "epochs"):
            if getattr(self, name) < 1:
                raise GemwrightError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size % self.accumulation:
            raise GemwrightError(
                f"accumulation {self.accumulation} does not divide the batch size {self.batch_size}; choose a divisor."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or (2e-4 if self.method == "lora" else 1e-5)

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)
