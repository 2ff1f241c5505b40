"""`--shield`: screen the messages and replies of a command."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemwright.cli import render
from gemwright.errors import GemwrightError, PolicyError

if TYPE_CHECKING:
    from gemwright.generate.output import Completion
    from gemwright.shield.classifier import Shield


@dataclass
class Screening:
    """The screening of a command's texts; without a shield, all pass.

    Attributes:
        shield: What judges the texts.
        refusal: Why the last refused reply was refused.
    """

    shield: "Shield | None" = None
    refusal: PolicyError | None = None

    def check(self, texts: Iterable[str]) -> None:
        """Judge messages.

        Raises:
            PolicyError: One is refused.
        """
        for text in dict.fromkeys(texts) if self.shield is not None else ():
            violation = self.shield.find_violation(text) if self.shield is not None else None
            if violation is not None:
                raise PolicyError(violation.sentence)

    def pieces(self, text: str, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a reply to a text in parts that have been judged.

        Raises:
            PolicyError: The reply is refused; what came before was yielded.
        """
        if self.shield is None:
            yield from pieces
            return
        from gemwright.shield.screen import screen

        yield from screen(self.shield, text, pieces)

    def completions(self, texts: Sequence[str], completions: "Sequence[Completion]") -> "list[Completion]":
        """Return whole replies, those that are refused without text; `refusal` says why."""
        return [self._completion(*each) for each in zip(texts, completions, strict=True)]

    def _completion(self, text: str, completion: "Completion") -> "Completion":
        violation = None if self.shield is None else self.shield.find_violation(text, completion.text)
        if violation is None:
            return completion
        self.refusal = PolicyError(violation.sentence)
        return replace(completion, text="", tokens=[], logprobs=[], top_logprobs=[], finish_reason="content_filter")


def load_screening(shield: str | None, policy: Path | None) -> Screening:
    """Return the screening of `--shield` and `--policy`.

    Raises:
        GemwrightError: One of them is missing, or as for `load_shield`.
    """
    check_options(shield, policy)
    if shield is None or policy is None:
        return Screening()
    render.status(f"Loading {Path(shield).name} ...")
    from gemwright.cli.loading import find
    from gemwright.shield.classifier import load_shield

    find(shield)
    loaded = load_shield(shield, policy)
    render.clear_status()
    return Screening(loaded)


def check_options(shield: str | None, policy: Path | None) -> None:
    """Check that `--shield` and `--policy` are given together.

    Raises:
        GemwrightError: One of them is missing.
    """
    if (shield is None) != (policy is None):
        given, missing = ("--policy", "--shield") if shield is None else ("--shield", "--policy")
        raise GemwrightError(f"{given} needs {missing}; pass both.")
