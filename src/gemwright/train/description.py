"""A run described by a TOML file: `read_description`, and `prepare_described`.

```toml
model = "tiny"
out = "run"
objective = "next-token"

[recipe]              # fields of gemwright.train.recipe.Recipe
method = "full"
steps = 1000

[[data]]
name = "prose"
path = "prose.txt"

[[data]]
name = "python"
path = "library"
infill = 0.8

[[stages]]
share = 0.9           # or steps
weights = { prose = 0.8, python = 0.2 }

[[stages]]
share = 0.1
weights = { prose = 0.4, python = 0.6 }
```

The settings of an objective are in a table of its name.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.open import open_checkpoint
from gemwright.data import Dataset
from gemwright.data.code import open_code
from gemwright.data.dataset import join
from gemwright.data.mixture import Source, Stage, check_weights, mix
from gemwright.errors import DataError, GemwrightError
from gemwright.text.tokenizer import Tokenizer
from gemwright.train import held_out as holding
from gemwright.train.objectives import image_text
from gemwright.train.objectives.distill import Distill
from gemwright.train.objectives.objective import Objective
from gemwright.train.objectives.policy import Grpo, Reinforce
from gemwright.train.objectives.preference import Dpo
from gemwright.train.objectives.reward import Reward
from gemwright.train.prepare import Run, check_length, make_batches
from gemwright.train.recipe import Recipe

OBJECTIVES: Mapping[str, type[Objective]] = {
    objective.name: objective
    for objective in (Objective, Distill, Dpo, Reward, Grpo, Reinforce)
}  # fmt: skip
"""Every objective by name. The keys of its table are its fields."""
MAX_BYTES = 1 << 20
"""Maximum size of a description in bytes."""
T = TypeVar("T")


@dataclass(frozen=True)
class DataDescription:
    """A table of `[[data]]`.

    Attributes:
        path: A file or folder of records, or several; of source code if `infill` or `repository` is set.
        name: Its name in `[[stages]]`.
        epochs: Maximum number of passes over it in a mixture.
        infill: Share of the files of source code that become fill-in-the-middle; None if they are no source code.
        repository: Whether files of source code follow each other by their imports.
    """

    path: str | list[str]
    name: str = "data"
    epochs: int = 1
    infill: float | None = None
    repository: bool = False

    @property
    def paths(self) -> list[str]:
        """Return the files and folders."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def is_code(self) -> bool:
        """Whether these are files of source code."""
        return self.infill is not None or self.repository


@dataclass(frozen=True)
class StageDescription:
    """A table of `[[stages]]`.

    Attributes:
        weights: Share of the tokens by name of the data.
        share: Share of the steps of the run.
        steps: Number of steps, instead of a share.
    """

    weights: dict[str, float]
    share: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Description:
    """A run as it is described.

    Attributes:
        model: A path, name or hub id.
        out: The folder of the results.
        data: The sources.
        recipe: The settings.
        objective: What is minimized.
        stages: The stages of a mixture; without any, each epoch is all data in random order.
        held_out: Files of held-out records, or the share of the records of each source that is held out.
        chat: Whether prompts and completions are conversations.
        samples: Prompts that are continued now and then.
    """

    model: str
    out: Path
    data: tuple[DataDescription, ...]
    recipe: Recipe
    objective: Objective
    stages: tuple[StageDescription, ...] = ()
    held_out: float | str | list[str] | None = None
    chat: bool | None = None
    samples: tuple[str, ...] = ()


def read_description(path: Path) -> Description:
    """Read a description.

    Raises:
        GemwrightError: The file cannot be read, is not TOML, or has a key or value that is not allowed.
    """
    where = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GemwrightError(f"{where} has more than {MAX_BYTES:,} bytes; give the description of a run.")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GemwrightError(f"{where} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise GemwrightError(f"{where} is not TOML ({error}); correct it.") from error
    name = document.get("objective", Objective.name)
    if name not in OBJECTIVES:
        raise GemwrightError(f"{where}: objective is {name!r:.60}; use one of {', '.join(OBJECTIVES)}.")
    known = {field.name for field in dataclasses.fields(Description)} | {name}
    _check_keys(document, known, where)
    data = [_make(DataDescription, table, f"{where}, data {n}") for n, table in _tables(document, "data", where)]
    stages = [_make(StageDescription, table, f"{where}, stage {n}") for n, table in _tables(document, "stages", where)]
    given = {key: value for key, value in document.items() if key in ("model", "out", "held_out", "chat", "samples")}
    top = _make(_Top, given, where)
    described = Description(
        model=top.model,
        out=Path(top.out),
        data=tuple(data),
        recipe=_make(Recipe, _table(document, "recipe", where), f"{where}, recipe"),
        objective=_make(OBJECTIVES[name], _table(document, name, where), f"{where}, {name}"),
        stages=tuple(stages),
        held_out=top.held_out,
        chat=top.chat,
        samples=tuple(top.samples),
    )
    _check(described, where)
    return described


@dataclass(frozen=True)
class _Top:
    """The keys of a description that are not tables."""

    model: str
    out: str
    held_out: float | str | list[str] | None = None
    chat: bool | None = None
    samples: list[str] = dataclasses.field(default_factory=list[str])


def _check(described: Description, where: str) -> None:
    """Check what no table can check alone."""
    names = [data.name for data in described.data]
    if not names:
        raise GemwrightError(f"{where} has no data; add a table [[data]] with a path.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise GemwrightError(f"{where}: two data are called {twice!r:.60}; give each a name of its own.")
    for data in described.data:
        if data.epochs < 1 or (data.infill is not None and not 0 <= data.infill <= 1):
            raise GemwrightError(f"{where}: data {data.name}: epochs is at least 1, and infill lies between 0 and 1.")
    kind = type(described.objective)
    if kind.pack is not Objective.pack and (described.stages or any(data.is_code for data in described.data)):
        raise GemwrightError(f"{where}: stages and source code do not fit the objective {kind.name}; leave them out.")
    for number, stage in enumerate(described.stages, 1):
        check_weights(stage.weights, names, f"Stage {number} of {where}")
    held_out = described.held_out
    if isinstance(held_out, int | float) and not 0 <= held_out < 1:
        raise GemwrightError(f"{where}: held_out is {held_out}; a share lies between 0 and 1.")


def _tables(document: Mapping[str, Any], key: str, where: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Return the tables of an array of tables, numbered."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise GemwrightError(f"{where}: {key} is written as tables [[{key}]]; correct it.")
    return enumerate(found, 1)


def _table(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise GemwrightError(f"{where}: {key} is written as a table [{key}]; correct it.")
    return found


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise GemwrightError(f"{where}: there is no key {key!r:.60}; {hint}")


def _make(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Return a dataclass with the values of a table, whose keys and types are checked."""
    fields = [field for field in dataclasses.fields(kind) if field.init]  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(kind)
    _check_keys(table, (field.name for field in fields), where)
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in table:
            raise GemwrightError(f"{where}: the key {field.name} is missing; add it.")
    for key, value in table.items():
        if not _fits(value, hints[key]):
            raise GemwrightError(f"{where}: {key} is {value!r:.60}; it must be {_name(hints[key])}.")
    try:
        return kind(**table)
    except GemwrightError as error:
        raise GemwrightError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of TOML is of a type: a class, a union, a `Literal`, a list or a mapping."""
    origin, parts = getattr(hint, "__origin__", None), get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if parts and not isinstance(parts[0], str):
        return any(_fits(value, part) for part in parts)
    if parts:
        return isinstance(value, str) and value in parts
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _name(hint: Any) -> str:
    """Return the name of a type for a message."""
    words = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    parts = get_args(hint)
    if hint in words:
        return words[hint]
    if parts and isinstance(parts[0], str):
        return f"one of {', '.join(map(str, parts))}"
    origin = getattr(hint, "__origin__", None)
    if origin in (list, dict):
        return f"a {'list' if origin is list else 'table'} of which each value is {_name(parts[-1])}"
    return " or ".join(_name(part) for part in parts if part is not type(None))


def prepare_described(described: Description) -> Run:
    """Open the model and the data of a description.

    Raises:
        GemwrightError: They cannot be read, do not fit each other, or a source runs dry.
    """
    objective, recipe = described.objective, described.recipe
    checkpoint = open_checkpoint(locate(described.model))
    check_length(recipe, checkpoint, described.model)
    tokenizer = Tokenizer(checkpoint.vocabulary())

    def read(data: DataDescription) -> Dataset:
        if not data.is_code:
            return objective.read(data.paths, checkpoint, tokenizer, recipe, described.chat)
        return open_code(
            data.paths,
            tokenizer,
            max_length=recipe.length,
            infill=data.infill or 0.0,
            repository=data.repository,
            seed=recipe.seed,
        )

    sources = {data.name: (data, read(data)) for data in described.data}
    if isinstance(described.held_out, list | str):
        held = objective.read(described.held_out, checkpoint, tokenizer, recipe, described.chat)
        split = {name: (dataset, None) for name, (_, dataset) in sources.items()}
    else:
        held, split = None, {
            name: holding.split(dataset, described.held_out, recipe.seed) for name, (_, dataset) in sources.items()
        }  # fmt: skip
        parts = [part for _, part in split.values() if part is not None]
        held = join(parts) if parts else None
    whole = [dataset for dataset, _ in split.values()]
    objective, recipe, whole, held = image_text.choose(objective, recipe, checkpoint, whole, held)
    training = dict(zip(split, whole, strict=True))
    if described.stages:
        recipe, stages = resolve_stages(described.stages, recipe)
        epochs = {data.name: data.epochs for data in described.data}
        dataset, made = mix(
            {name: Source(dataset, epochs[name]) for name, dataset in training.items()},
            stages,
            batch_size=recipe.batch_size,
            length=recipe.length,
            packing=recipe.packing,
            seed=recipe.seed,
        )
    else:
        dataset = join(whole)
        made = make_batches(objective, dataset, recipe)
    return Run(
        described.model, checkpoint, tokenizer, dataset, made, held, recipe, described.out, described.samples, objective
    )


def resolve_stages(stages: Sequence[StageDescription], recipe: Recipe) -> tuple[Recipe, list[Stage]]:
    """Return the recipe with the steps of all stages, and the stages with theirs.

    Raises:
        DataError: Stages have neither steps nor shares, or their sum is not that of the run.
    """
    if all(stage.steps is not None and stage.share is None for stage in stages):
        steps = [stage.steps or 0 for stage in stages]
        if recipe.steps not in (None, sum(steps)):
            raise DataError(
                f"The stages have {sum(steps):,} steps and the recipe {recipe.steps:,}; leave out the latter."
            )
    elif all(stage.share is not None and stage.steps is None for stage in stages):
        if recipe.steps is None:
            raise DataError("Stages with a share need the number of steps of the run; add steps to the recipe.")
        check_weights(
            {str(n): stage.share or 0.0 for n, stage in enumerate(stages)},
            [str(n) for n in range(len(stages))],
            "The shares",
        )
        ends = [round(recipe.steps * sum(stage.share or 0.0 for stage in stages[: n + 1])) for n in range(len(stages))]
        steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    else:
        raise DataError("Every stage has either steps or a share of the steps, all stages the same; correct them.")
    if min(steps) < 1:
        raise DataError(f"Stage {steps.index(min(steps)) + 1} has no step; give it more or leave it out.")
    return replace(recipe, steps=sum(steps)), [
        Stage(count, stage.weights) for count, stage in zip(steps, stages, strict=True)
    ]
