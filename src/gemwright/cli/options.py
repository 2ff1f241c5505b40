"""Options that several commands share, and the settings that they make."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from gemwright.api import Options
    from gemwright.generate.sampling import Sampling

DType = Literal["float32", "bfloat16"]

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="A path, a name of `gemwright models`, or a hub id.")
]
VariantOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The published variant, for an Orbax tree or an .npz, which do not say."),
]
DTypeOption = Annotated[
    DType | None, typer.Option(help="Of weights and activations: float32 on a CPU, else bfloat16, unless given.")
]
MaxTokensOption = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to write at most.")]
TemperatureOption = Annotated[float | None, typer.Option(metavar="X", help="0 always takes the likeliest token.")]
TopKOption = Annotated[int | None, typer.Option(metavar="N", help="Choose among the N likeliest tokens; 0: all.")]
TopPOption = Annotated[
    float | None, typer.Option(metavar="X", help="Choose among the likeliest tokens that together reach X.")
]
MinPOption = Annotated[
    float | None, typer.Option(metavar="X", help="Choose among tokens at least X times as likely as the likeliest.")
]
PenaltyOption = Annotated[
    float | None, typer.Option(metavar="X", help="Above 1, tokens that stand in the text become less likely.")
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="The same seed gives the same text; random unless given.")
]
StopOption = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the text before TEXT; may be given several times.")
]
LogprobsOption = Annotated[bool, typer.Option("--logprobs", help="Report the log-probability of each token.")]
TopLogprobsOption = Annotated[
    int | None,
    typer.Option(min=0, max=64, metavar="N", help="Also report the N most likely tokens at each step."),
]
LookupOption = Annotated[
    bool,
    typer.Option("--lookup", help="Guess tokens from the text so far; the same text, sooner where it repeats itself."),
]
DraftOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A smaller model of the same vocabulary that guesses; the same text, sooner."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say on standard error what is loaded and how fast it is.")
]


@dataclass(frozen=True)
class Settings:
    """What a person asked of a call, checked.

    Attributes:
        max_tokens: Tokens to write at most.
        stop: Strings that end a text.
        logprobs: Whether to report the log-probability of each token.
        top_logprobs: Number of the most likely tokens to report at each step; implies `logprobs`.
        seed: Of the first text; each further one takes the next number.
        sampling: The sampling settings that were given, by name; the others are the model's own.
        lookup: Whether to guess tokens from the text so far.
    """

    max_tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int | None
    seed: int
    sampling: Mapping[str, float]
    lookup: bool = False

    def options(self, texts: int = 1) -> "Options":
        """The same as `gemwright.Model` takes it, for that many texts."""
        seeds = self.seed if texts == 1 else [self._seed(index) for index in range(texts)]
        named = {
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "seed": seeds,
        }
        return cast("Options", {**self.sampling, **named, "lookup": self.lookup})

    @property
    def reports_logprobs(self) -> bool:
        """Whether log-probabilities are reported."""
        return self.logprobs or self.top_logprobs is not None

    def resolve(self, defaults: "Sampling", text: int = 0) -> "Sampling":
        """How one of the texts is sampled, by a model with these defaults."""
        given: dict[str, Any] = dict(self.sampling)
        return replace(defaults, **given, seed=self._seed(text))

    def _seed(self, text: int) -> int:
        return (self.seed + text) % 2**32


def settings(
    *,
    max_tokens: int,
    seed: int | None,
    stop: list[str] | None = None,
    logprobs: bool = False,
    top_logprobs: int | None = None,
    lookup: bool = False,
    **sampling: float | None,
) -> Settings:
    """Settings from options, checked before anything is loaded; a seed is drawn if none was given.

    Raises:
        GemwrightError: one is out of range.
    """
    import_jax()
    from gemwright.generate.sampling import Sampling
    from gemwright.text.stop import StopStrings

    given = {name: value for name, value in sampling.items() if value is not None}
    seed = secrets.randbelow(2**32) if seed is None else seed
    checked = Settings(max_tokens, tuple(stop or ()), logprobs, top_logprobs, seed, given, lookup)
    StopStrings(checked.stop)
    checked.resolve(Sampling(seed=seed))  # each checks what it is made of
    return checked


def finite(number: float) -> float | None:
    """The number, or None, JSON's null, where it is none."""
    return number if math.isfinite(number) else None


def no_text(what: str) -> GemwrightError:
    """The error of a command that was given nothing to work on."""
    return GemwrightError(f"There is no {what}; give it as an argument, or through a pipe.")
