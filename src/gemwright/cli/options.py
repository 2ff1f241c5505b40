"""Options shared by several commands, and the settings built from them."""

import difflib
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError
from gemwright.precision import parse_precision
from gemwright.runtime import machine
from gemwright.variants import VARIANTS

if TYPE_CHECKING:
    from gemwright.api import Options
    from gemwright.generate.sampling import Sampling


def _check_dtype(name: str | None) -> str | None:
    return None if name is None else parse_precision(name)


def _check_variant(name: str | None) -> str | None:
    """Raise if a variant is unknown, also for a format that records its own."""
    if name is None or name in VARIANTS:
        return name
    nearest = difflib.get_close_matches(name, VARIANTS, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else "`gemwright models` lists the names."
    raise GemwrightError(f"There is no variant {name!r:.200}; {remedy}")


def _set_threads(count: int | None) -> int | None:
    """Limit the threads of this process, before JAX is imported."""
    if count is not None:
        machine.set_threads(count)
    return count


def complete_model(incomplete: str) -> list[str]:
    """Return the published names and the paths that begin with some letters, for the shell's completion."""
    names = [name for variant in VARIANTS.values() for name in variant.checkpoints if name.startswith(incomplete)]
    if not incomplete:
        return names
    folder, begin = os.path.split(incomplete)
    with suppress(OSError):
        for path in sorted(Path(folder or ".").iterdir()):
            if path.name.startswith(begin) and (path.suffix == ".gguf" or path.is_dir()):
                names.append(os.path.join(folder, path.name))  # noqa: PTH118 keeps `./`, which the shell compares
    return names


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Path, name listed by `gemwright models`, or hub id.",
        autocompletion=complete_model,
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Path, name listed by `gemwright models`, or hub id.",
        autocompletion=complete_model,
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=_check_variant,
        help="Model variant; required for Orbax and .npz, which do not record it.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", callback=_set_threads, help="Number of CPU threads. Default: all cores."),
]
MeshOption = Annotated[
    str | None,
    typer.Option(
        metavar="AXIS=N,...",
        help="How devices share the work: sizes of slice, data, fsdp, sequence and tensor. Default: fsdp, all devices.",
    ),
]
ModelMeshOption = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        metavar="AXIS=N,...",
        help="How devices share the model, such as tensor=8: docs/scale.md. Default: one device has all of it.",
    ),
]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")]
DTypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="[stored|float32|bfloat16]",
        callback=_check_dtype,
        help="Data type. Default: as stored (CPU with native kernels), float32 (other CPUs), bfloat16 (GPU, TPU).",
    ),
]
MaxTokensOption = Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of tokens to generate.")]
TemperatureOption = Annotated[
    float | None, typer.Option(metavar="X", help="Randomness; 0 is greedy. Default: the model's own.")
]
TopKOption = Annotated[int | None, typer.Option(metavar="N", help="Sample from the N most likely tokens; 0: all.")]
TopPOption = Annotated[
    float | None, typer.Option(metavar="X", help="Sample from the most likely tokens whose probabilities sum to X.")
]
MinPOption = Annotated[
    float | None, typer.Option(metavar="X", help="Drop tokens less than X times as likely as the most likely one.")
]
PenaltyOption = Annotated[
    float | None, typer.Option(metavar="X", help="Above 1: make tokens that already occur in the text less likely.")
]
PresenceOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Subtracted from the logit of each token that the text has."),
]
FrequencyOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Subtracted from the logit of a token for each time that the text has it."),
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="Random seed; the same seed gives the same text. Default: random.")
]
StopOption = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Stop before TEXT; may be repeated.")]
LogprobsOption = Annotated[bool, typer.Option("--logprobs", help="Report the log-probability of each token.")]
TopLogprobsOption = Annotated[
    int | None,
    typer.Option(min=0, max=64, metavar="N", help="Also report the N most likely tokens at each step."),
]
LookupOption = Annotated[
    bool,
    typer.Option("--lookup", help="Prompt-lookup speculative decoding: faster on repetitive text, same output."),
]
DraftOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Draft model for speculative decoding, with the same vocabulary: same output."),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ADAPTER[=WEIGHT]", help="LoRA adapter: a PEFT folder or GGUF file; may be repeated."),
]
ShieldOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Model that screens messages and replies by --policy: a ShieldGemma, or an adapter of your own.",
    ),
]
PolicyOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Policies of --shield, in TOML; docs/shield.md describes them.")
]
WatermarkOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Mark the text with the keys of FILE, so that `gemwright detect` finds it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, one object per line.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print model, memory and speed to standard error.")
]


@dataclass(frozen=True)
class Settings:
    """The validated options of one command.

    Attributes:
        max_tokens: Maximum number of tokens to generate.
        stop: Strings that end a text.
        logprobs: Whether to report the log-probability of each token.
        top_logprobs: Number of the most likely tokens to report at each step; implies `logprobs`.
        seed: Seed of the first text; each further text uses the next number.
        sampling: The given sampling parameters by name; the others keep the model's defaults.
        lookup: Whether to use prompt-lookup speculative decoding.
        watermark: A file of keys to mark the text with.
    """

    max_tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    top_logprobs: int | None
    seed: int
    sampling: Mapping[str, float]
    lookup: bool = False
    watermark: Path | None = None

    def options(self, texts: int = 1) -> "Options":
        """Return the keyword options of `gemwright.Model` for a number of texts."""
        named = {
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "seed": self.seed if texts == 1 else [self._seed(text) for text in range(texts)],
        }
        return cast("Options", {**self.sampling, **named, "lookup": self.lookup, "watermark": self.watermark})

    @property
    def reports_logprobs(self) -> bool:
        """Whether to report log-probabilities."""
        return self.logprobs or self.top_logprobs is not None

    def resolve(self, defaults: "Sampling", text: int = 0) -> "Sampling":
        """Return the sampling parameters of one text, given the model's defaults."""
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
    watermark: Path | None = None,
    **sampling: float | None,
) -> Settings:
    """Return validated settings, before anything is loaded; draw a seed if none is given.

    Raises:
        GemwrightError: an option is out of range.
    """
    import_jax()
    from gemwright.generate.sampling import Sampling
    from gemwright.generate.watermark import read_watermark
    from gemwright.text.stop import StopStrings

    given = {name: value for name, value in sampling.items() if value is not None}
    seed = secrets.randbelow(2**32) if seed is None else seed
    checked = Settings(max_tokens, tuple(stop or ()), logprobs, top_logprobs, seed, given, lookup, watermark)
    StopStrings(checked.stop)
    checked.resolve(Sampling(seed=seed))  # both validate their arguments
    if watermark is not None:
        read_watermark(watermark)
    return checked


def adapters(given: list[str] | None) -> dict[str, float]:
    """Return the weight of each adapter of `--adapter`, 1 by default."""
    weights: dict[str, float] = {}
    for text in given or ():
        name, separator, weight = text.rpartition("=")
        try:
            weights |= {name: float(weight)} if separator and name else {text: 1.0}
        except ValueError:  # a name that contains "="
            weights[text] = 1.0
    return weights


def finite(number: float) -> float | None:
    """Return the number, or None (null in JSON) if it is infinite or NaN."""
    return number if math.isfinite(number) else None


def no_text(name: str) -> GemwrightError:
    """Return the error of a command without input."""
    return GemwrightError(f"There is no {name}; pass it as an argument or on standard input.")


def check_output(path: Path) -> None:
    """Check that a file can be written, before the work.

    Raises:
        GemwrightError: It is a folder, or its folder is missing or not writable.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise GemwrightError(f"{path} is a folder; choose the name of a file.")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "is not writable" if folder.is_dir() else "does not exist"
        raise GemwrightError(f"{path} cannot be written, as the folder {folder} {problem}; choose another path.")
