"""What is published: a model, an adapter or an export of one, and the published model that it derives from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from gemwright.checkpoint.adapters import find_model
from gemwright.checkpoint.digest import model_digest, weights_digest
from gemwright.checkpoint.files.parts import find_parts
from gemwright.checkpoint.find import adapter_base
from gemwright.checkpoint.hub import is_repo_id
from gemwright.checkpoint.locate import locate, name_base
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.families import FAMILIES, Family
from gemwright.release.publishing.records import Benchmarks, Evaluation, Memorization, Records, Safety
from gemwright.variants import VARIANTS, Variant

E = TypeVar("E", Benchmarks, Safety, Memorization)
Relation = Literal["adapter", "finetune", "quantized"]
"""How a model derives from its base, in the words of the hub."""


@dataclass(frozen=True)
class Subject:
    """What is published.

    Attributes:
        path: Its file or folder.
        base: Hub id of the published model that it derives from.
        base_files: The files of that model on this machine.
        variant: The published shape; None if it is not known.
        family: Its family; None if it is not known.
        relation: How it derives from its base; None if it has the same weights in another format.
        digest: What evaluations of it recorded: the first 16 digits of the digest of its weights.
        base_digest: The same of the base model; None if that is not on this machine.
        written: When its weights were last written, in seconds since 1970.
        sees: Whether it reads images.
        chat: Whether it has a chat template.
    """

    path: Path
    base: str
    base_files: tuple[Path, ...]
    variant: Variant | None
    family: Family | None
    relation: Relation | None
    digest: str
    base_digest: str | None
    written: float
    sees: bool
    chat: bool


def describe_subject(path: Path, base: str | None, records: Records) -> Subject:
    """Describe what is published.

    Args:
        path: A model, an adapter, or the folder of an export.
        base: The published model that it derives from; by default that of its run, or of the adapter.
        records: What was recorded about it.

    Raises:
        GemwrightError: It cannot be opened, or its base is not known by a hub id.
    """
    adapter = adapter_base(path)
    checkpoint = None if adapter else _open(path)
    run = records.runs[0] if records.runs else None
    given = base or (run.model if run else adapter)
    name = name_base(given) if given else ""
    if not is_repo_id(name):
        raise GemwrightError(
            f"The base model of {path} is {f'{name!r:.200}, which is no hub id' if name else 'not known'}; add --base, "
            f"such as {_suggest(checkpoint)}."
        )
    source, base_checkpoint = _find_base(path, name, adapter, run.model if run else None)
    variant = _find_variant(name)
    known = base_checkpoint or checkpoint
    family = next((one for one in FAMILIES if variant is not None and one.name == variant.family), None)
    return Subject(
        path=path,
        base=name,
        base_files=_list_files(source),
        variant=variant,
        family=family or (known.family if known else None),
        relation=_relate(adapter, run is not None, checkpoint),
        digest=(model_digest(checkpoint) if checkpoint else weights_digest(path))[:16],
        base_digest=None if base_checkpoint is None else model_digest(base_checkpoint)[:16],
        written=max(file.stat().st_mtime for file in list_weights(path)),
        sees=known is not None and known.config.vision is not None,
        chat=_has_template(path) if checkpoint is None else checkpoint.chat_template is not None,
    )


def list_weights(path: Path) -> list[Path]:
    """Return the files of weights of a path, or all its files if they are of another runtime."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    if not files:
        raise GemwrightError(f"{path} has no files; give a model, an adapter or an export.")
    return [file for file in files if file.suffix in (".safetensors", ".gguf", ".npz")] or files


def _open(path: Path) -> Checkpoint | None:
    """Open a checkpoint; None if it is an export for a runtime whose format is not read."""
    exported = path.suffix in (".tflite", ".litertlm", ".onnx") or (
        path.is_dir() and any(file.suffix in (".tflite", ".litertlm", ".onnx", ".stablehlo") for file in path.iterdir())
    )
    return None if exported else open_checkpoint(path)


def _find_base(path: Path, name: str, adapter: str | None, given: str | None) -> tuple[Path | None, Checkpoint | None]:
    """Return the base model on this machine, which is looked for but not downloaded."""
    for candidate in dict.fromkeys(filter(None, (given, name))):
        try:
            found = locate(candidate, may_download=False)
            return found, open_checkpoint(found)
        except CheckpointError:
            continue
    try:
        return (found, open_checkpoint(found)) if adapter and (found := find_model(path)[0]) else (None, None)
    except GemwrightError:
        return None, None


def _find_variant(name: str) -> Variant | None:
    short = name.removeprefix("google/").partition(":")[0].lower()
    return next((variant for variant in VARIANTS.values() if short in variant.checkpoints), None)


def _suggest(checkpoint: Checkpoint | None) -> str:
    """Return the published models of a checkpoint's shape as hub ids."""
    same = [one for one in VARIANTS.values() if checkpoint is not None and one.config == checkpoint.config]
    return " or ".join(f"google/{name}" for name in same[0].checkpoints) if same else "google/gemma-3-270m"


def _list_files(path: Path | None) -> tuple[Path, ...]:
    if path is None:
        return ()
    if path.is_dir():
        return tuple(file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith("."))
    return tuple(find_parts(path))


def _relate(adapter: str | None, tuned: bool, checkpoint: Checkpoint | None) -> Relation | None:
    if adapter is not None:
        return "adapter"
    if tuned:
        return "finetune"
    encodings = set() if checkpoint is None else {info.encoding for info in checkpoint.file.tensors.values()}
    return "quantized" if encodings - {"F32", "F16", "BF16"} else None


def _has_template(path: Path) -> bool:
    if not path.is_dir():
        return False
    if (path / "chat_template.jinja").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and b'"chat_template"' in config.read_bytes()


def is_of(subject: Subject, evaluation: Evaluation) -> bool:
    """Return whether an evaluation is one of these weights: by their digest, or else by the times of the files."""
    tested = evaluation.tested
    if tested.digest is None:
        return evaluation.source.written >= subject.written
    if subject.relation == "adapter":
        return [entry.split()[-2:] for entry in tested.adapters] == [[subject.digest, "1"]]
    return not tested.adapters and tested.digest == subject.digest


def is_of_base(subject: Subject, evaluation: Evaluation, records: Records) -> bool:
    """Return whether an evaluation is one of the base model without adapters."""
    digests = {subject.base_digest, *(run.digest[:16] for run in records.runs)} - {None}
    return not evaluation.tested.adapters and evaluation.tested.digest in digests


def split_evaluations(subject: Subject, records: Records) -> tuple[Records, Records]:
    """Return the records of these weights, with runs and filters, and the evaluations of the base model.

    Raises:
        GemwrightError: An evaluation is of other weights, such as earlier ones.
    """
    for evaluation in records.evaluations:
        if not is_of(subject, evaluation) and not is_of_base(subject, evaluation, records):
            raise GemwrightError(
                f"{evaluation.source.path} was made with other weights than {subject.path} has now, or before they "
                "were written; evaluate them again, or leave it out."
            )

    def keep(of_base: bool) -> Records:
        def chosen(evaluations: tuple[E, ...]) -> tuple[E, ...]:
            return tuple(one for one in evaluations if is_of(subject, one) != of_base)

        return replace(
            records,
            benchmarks=chosen(records.benchmarks),
            safety=chosen(records.safety),
            memorization=chosen(records.memorization),
        )

    return keep(False), keep(True)
