"""The model card: from what was recorded, and from what a person said.

Sources of its form: the sections of Google's cards of Gemma; the hub's metadata (huggingface_hub `repocard_data.py`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.release.publishing.answers import Answers
from gemwright.release.publishing.notices import POLICY, License
from gemwright.release.publishing.provenance import to_iso
from gemwright.release.publishing.records import (
    Benchmarks,
    Evaluation,
    Memorization,
    MemorizedShare,
    Records,
    Run,
    Safety,
)
from gemwright.release.publishing.results import percent, to_eval_results
from gemwright.release.publishing.subject import Subject

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
UNSAID = "not stated by the authors."
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True)
class Content:
    """All that a card says.

    Attributes:
        name: Name of the model.
        subject: What is published.
        records: What was recorded about it.
        of_base: Evaluations of its base model.
        answers: What a person said about it.
        license: Its license.
        change: The sentence that says that files were modified.
    """

    name: str
    subject: Subject
    records: Records
    of_base: Records
    answers: Answers
    license: License
    change: str


def render_card(content: Content) -> str:
    """Return the card in Markdown, with its metadata."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=False)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    subject, records = content.subject, content.records
    text = template.render(
        name=_plain(content.name),
        short=re.sub(r"[^\w.-]", "-", content.name),
        subject=subject,
        answers=content.answers,
        license=content.license,
        policy=POLICY,
        change=content.change,
        unsaid=UNSAID,
        made=_describe_kind(subject),
        family=subject.family.name if subject.family else "not known",
        parameters=None if subject.variant is None else subject.variant.parameters,
        exported=_name_library(subject) in ("litert", "litert-lm", "onnx"),
        runs=[_describe_run(run) for run in records.runs],
        filterings=[
            {
                "kept": one.kept,
                "records": one.records,
                "share": f"{one.kept / max(1, one.records):.1%}",
                "steps": one.steps,
            }
            for one in records.filterings
        ],
        benchmarks=list(_tables(content, "benchmarks")),
        safety=list(_tables(content, "safety")),
        memorization=list(_tables(content, "memorization")),
        carbon=describe_carbon(records.runs, content.answers),
        not_measured=list(_list_unmeasured(content)),
    )
    text = re.sub(r"[ \t]+\n", "\n", re.sub(r"\n{3,}", "\n\n", text))
    return f"---\n{make_metadata(content).to_yaml()}\n---\n\n{text.strip()}\n"


def make_metadata(content: Content) -> "ModelCardData":
    """Return the metadata of a card for the hub."""
    from huggingface_hub import ModelCardData

    subject = content.subject
    task = "image-text-to-text" if subject.sees else "text-generation"
    results = to_eval_results(content.records.benchmarks, task)
    more: dict[str, Any] = {} if subject.relation is None else {"base_model_relation": subject.relation}
    return ModelCardData(
        license=content.license.hub,
        license_link=content.license.url,
        base_model=subject.base.partition(":")[0],
        library_name=_name_library(subject),
        pipeline_tag=task,
        tags=["gemma", "gemwright", *(["lora"] if subject.relation == "adapter" else [])],
        language=list(content.answers.languages) if content.answers.languages else None,
        datasets=list(content.answers.datasets) if content.answers.datasets else None,
        model_name=content.name if results else None,
        eval_results=results or None,
        **more,
    )


def _name_library(subject: Subject) -> str | None:
    """Return the library that opens the files, in the words of the hub."""
    if subject.relation == "adapter":
        return "peft"
    names = {file.suffix for file in subject.path.iterdir()} if subject.path.is_dir() else {subject.path.suffix}
    known = {".gguf": "gguf", ".tflite": "litert", ".litertlm": "litert-lm", ".onnx": "onnx"}
    return next((library for suffix, library in known.items() if suffix in names), "transformers")


def _describe_kind(subject: Subject) -> str:
    base = f"`{subject.base}`"
    match subject.relation:
        case "adapter":
            return f"A LoRA adapter for {base}."
        case "finetune":
            return f"A tuned {base}."
        case "quantized":
            return f"A quantized {base}."
        case None:
            return f"The weights of {base} in another format."


def _describe_run(run: Run) -> dict[str, Any]:
    files = [(path, digest, "training") for path, digest in run.data.items()]
    files += [(path, digest, "held out") for path, digest in run.held_out.items() if path not in run.data]
    shown = run.algorithm == "sha256"
    machine = run.machine
    return {
        "data": [(_code(Path(path).name), role, _code(digest) if shown else "–") for path, digest, role in files],
        "metrics": run.metrics,
        "recipe": [(_plain(key), _plain(str(value))) for key, value in run.recipe.items() if value is not None],
        "device": _plain(f"{machine.get('device', 'not recorded')}, {machine.get('threads', '?')} threads"),
        "software": _plain(f"gemwright {run.version}, JAX {machine.get('jax', '?')}"),
        "losses": " ".join(_describe_losses(run)),
    }


def _describe_losses(run: Run) -> Iterator[str]:
    if run.metrics is None:
        return
    for title, losses in (("training", run.metrics.loss), ("held-out", run.metrics.held_out)):
        if losses is not None:
            yield f"The {title} loss went from {losses[0]:.4f} to {losses[1]:.4f} nats per token."


def _tables(content: Content, kind: str) -> Iterator[dict[str, Any]]:
    """Yield a table for each evaluation of a kind, those of the base model last."""
    for of_base, group in ((False, content.records), (True, content.of_base)):
        evaluations: Sequence[Evaluation] = getattr(group, kind)
        for one in evaluations:
            yield {"about": _describe_test(one, content, of_base), **_make_table(one)}


def _describe_test(evaluation: Evaluation, content: Content, of_base: bool) -> str:
    tested = evaluation.tested
    who = f"The base model `{content.subject.base}`" if of_base else "This model"
    limit = f", at most {tested.limit:,} items of each" if tested.limit else ""
    parts = [f"{who}, measured on {to_iso(evaluation.source.written)[:10]}{limit}"]
    if tested.dtype:
        parts.append(f"precision {_plain(tested.dtype)}")
    match evaluation:
        case Memorization(prefix=prefix, continuation=continuation):
            parts.append(
                f"documents whose next {continuation} tokens the model generates from {prefix}, with 95% intervals"
            )
        case _:
            parts.append("prompts in the chat template" if tested.chat else "prompts as plain text")
            parts.append("percent, with 95% intervals")
    if isinstance(evaluation, Benchmarks) and any(score.published is not None for score in evaluation.scores):
        parts.append("published is the score of the base model in its report")
    return "; ".join(parts) + "."


def _make_table(evaluation: Evaluation) -> dict[str, Any]:
    match evaluation:
        case Benchmarks():
            return {"rows": [_cells_of_score(score) for score in evaluation.scores]}
        case Safety():
            return {
                "rows": [
                    (
                        _plain(one.suite),
                        _plain(one.area),
                        _plain(one.metric) + (f" ({one.better} is better)" if one.better else ""),
                        _number(one.value, one.percent),
                        f"{_number(one.low, one.percent)} to {_number(one.high, one.percent)}",
                        f"{one.count:,}",
                    )
                    for one in evaluation.scores
                ],
                "cannot_say": [f"{_plain(one.suite)}: {_plain(one.cannot_say)}" for one in evaluation.scores],
            }
        case Memorization():
            return {"rows": [_cells_of_share(one) for one in evaluation.shares]}


def _cells_of_score(score: Any) -> tuple[str, ...]:
    items = f"{score.count:,}" if score.count == score.of else f"{score.count:,} of {score.of:,}"
    return (
        _plain(score.benchmark),
        _plain(score.metric),
        str(score.shots),
        items,
        f"{percent(score.value):.1f}",
        f"{percent(score.low):.1f} to {percent(score.high):.1f}",
        "–" if score.published is None else f"{score.published:g}",
    )


def _cells_of_share(one: MemorizedShare) -> tuple[str, ...]:
    def cell(share: tuple[float, float, float] | None) -> str:
        if share is None:
            return "–"
        return f"{share[0]:.2%} ({share[1]:.2%} to {share[2]:.2%})"

    return (
        _code(Path(one.corpus).name),
        f"{one.documents:,}",
        cell(one.exact),
        cell(one.approximate),
        str(one.personal),
    )


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f}" if is_share else f"{value:.2f}"


def describe_carbon(runs: Sequence[Run], answers: Answers) -> str:
    """Return what the run emitted, by the method of Gemma's reports.

    That is its energy, with the overhead of the data center, times the carbon intensity of the grid at that time.
    """
    seconds = sum(run.metrics.seconds for run in runs if run.metrics is not None)
    if not seconds:
        return "Nothing was trained, or its time was not recorded; the carbon of the base model is in its report."
    took = f"The steps of the run took {seconds / 3600:.3g} hours on the hardware above"
    carbon = answers.carbon
    if carbon is None:
        return (
            f"{took}. Carbon was not estimated: the power of the machine, the overhead of the data center and the "
            "carbon intensity of the grid were not stated."
        )
    kwh = seconds / 3.6e6 * carbon.watts * carbon.overhead
    return (
        f"{took}. At {carbon.watts:g} W, a data-center overhead of {carbon.overhead:g} and {carbon.grams_per_kwh:g} g "
        f"of CO2 equivalent per kWh ({carbon.source}), that is {kwh:.3g} kWh and "
        f"{kwh * carbon.grams_per_kwh / 1000:.3g} kg of CO2 equivalent. Loading, compiling and evaluation are "
        "not counted, nor is the training of the base model."
    )


def _list_unmeasured(content: Content) -> Iterator[str]:
    """Yield what a reader might look for and will not find."""
    records = content.records
    if not records.benchmarks:
        yield "Benchmarks of this model."
    for run in records.benchmarks:
        if run.tested.limit:
            yield f"More than {run.tested.limit:,} items of each benchmark."
    if not records.safety:
        yield "Safety of this model."
    missing = sorted({name for run in records.safety for name in run.missing})
    if missing:
        yield f"Safety suites whose data were not there: {', '.join(map(_plain, missing))}."
    if not records.memorization:
        yield "Memorization of the training data by this model."
    if not records.filterings:
        yield "Personal data and repeated texts in the training data."
    if content.answers.carbon is None:
        yield "Carbon."
    yield "Dangerous capabilities (offensive security, chemical and biological knowledge, self-proliferation)."


def _plain(text: str) -> str:
    """Return a text as one line that is no markup and fits a cell of a table."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", line)


def _code(text: str) -> str:
    """Return a text as code that fits a cell of a table."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"
