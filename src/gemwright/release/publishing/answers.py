"""What only a person can say about a model, from a TOML file."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from gemwright.errors import GemwrightError


@dataclass(frozen=True)
class Carbon:
    """What turns the time of a run into carbon.

    Attributes:
        watts: Mean power of the machine in W.
        overhead: Power of the whole data center by that of its machines (PUE); 1 for a machine at home.
        grams_per_kwh: Carbon intensity of the grid at that time, in g CO2 equivalent per kWh.
        source: Where these numbers come from.
    """

    watts: float
    grams_per_kwh: float
    source: str
    overhead: float = 1.0


@dataclass(frozen=True)
class Answers:
    """What only a person can say; None for what is not answered.

    Attributes:
        summary: What the model is, in a sentence or two.
        intended_use: What it is for, and whom it serves.
        out_of_scope: What it must not be used for, beside what its license restricts.
        limitations: What it does badly.
        risks: Risks for people, and what was done about them.
        data: What the training data are, who collected them, how, and under which license.
        data_license: License of the data themselves, if they are published: its name on the hub, or an address.
        languages: Codes of its languages (ISO 639).
        datasets: Hub ids of the training data.
        authors: Who made it.
        contact: Address of a page where they can be reached.
        citation: How to cite it.
        carbon: What turns the time of the run into carbon.
    """

    summary: str | None = None
    intended_use: str | None = None
    out_of_scope: str | None = None
    limitations: str | None = None
    risks: str | None = None
    data: str | None = None
    data_license: str | None = None
    languages: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    authors: str | None = None
    contact: str | None = None
    citation: str | None = None
    carbon: Carbon | None = None

    @property
    def unanswered(self) -> list[str]:
        """The names of what is not answered about a model."""
        asked = [field.name for field in fields(self) if field.name != "data_license"]
        return [name for name in asked if getattr(self, name) is None]


def read_answers(path: Path | None) -> Answers:
    """Read a file of answers.

    Raises:
        GemwrightError: It cannot be read, or an answer is unknown or of another type.
    """
    if path is None:
        return Answers()
    try:
        value = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GemwrightError(f"{path} cannot be read as TOML ({error}); correct the file.") from error
    known = get_type_hints(Answers)
    for name, answer in value.items():
        if name not in known:
            raise GemwrightError(f"{path} answers {name!r:.80}, which is not asked; choose from {', '.join(known)}.")
        value[name] = _read_answer(path, name, answer)
    return Answers(**value)


def _read_answer(path: Path, name: str, answer: Any) -> Any:
    match name, answer:
        case "carbon", dict():
            return _read_carbon(path, answer)
        case (("languages" | "datasets"), list()) if answer and all(isinstance(item, str) for item in answer):
            return tuple(answer)
        case (("carbon" | "languages" | "datasets"), _):
            form = "a table" if name == "carbon" else "a list of texts"
            raise GemwrightError(f"{path}: {name} is not {form}; correct the file.")
        case _, str() if answer.strip():
            return answer.strip()
        case _:
            raise GemwrightError(f"{path}: {name} is not a text; correct the file or leave it out.")


def _read_carbon(path: Path, value: dict[str, Any]) -> Carbon:
    try:
        carbon = Carbon(**value)
        numbers = (carbon.watts, carbon.grams_per_kwh, carbon.overhead)
        if all(isinstance(n, int | float) and n >= 0 for n in numbers) and carbon.overhead >= 1 and carbon.source:
            return carbon
    except TypeError:
        pass
    raise GemwrightError(
        f"{path}: carbon needs watts, grams_per_kwh and their source, and overhead if it is above 1; correct the file."
    )
