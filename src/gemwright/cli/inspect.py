"""`gemwright inspect`: describe a checkpoint without reading its weights."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import CheckpointError

if TYPE_CHECKING:
    from gemwright.checkpoint.open import Checkpoint
    from gemwright.model.config import Config, Layer, Mixer


@dataclass(frozen=True)
class Encoding:
    """The number of tensors stored in one encoding and their total size in bytes."""

    tensors: int
    nbytes: int


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path, or name of a local model.")],
    variant: o.VariantOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list all tensors.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Describe a checkpoint or an adapter without loading it."""
    render.status(f"Reading {Path(model).name} ...")
    import_jax()
    from gemwright.checkpoint.adapters import is_adapter
    from gemwright.checkpoint.open import open_checkpoint
    from gemwright.cli.loading import find

    path = find(model, may_download=False)
    if is_adapter(path):
        _describe_adapter(path, as_json=as_json)
        return
    checkpoint = open_checkpoint(path, variant)
    if as_json:
        render.write_json(_record(checkpoint, tensors=tensors))
        return
    render.facts(_rows(checkpoint), render.out())
    if tensors:
        render.write("\n")
        for name, info in checkpoint.file.tensors.items():
            shape = " x ".join(map(str, info.shape))
            render.write(f"{name:<40} {info.encoding:<6} {render.size(info.nbytes):>8}  {shape}\n")


def _describe_adapter(path: Path, *, as_json: bool) -> None:
    from gemwright.checkpoint.adapters import open_adapter

    adapter = open_adapter(path)
    factors = [info.shape for name, info in adapter.file.tensors.items() if name.endswith(("lora_A.weight", "lora_a"))]
    ranks = sorted({min(shape) for shape in factors if shape})
    kind = "PEFT folder" if adapter.format == "peft" else "GGUF file"
    nbytes = sum(info.nbytes for info in adapter.file.tensors.values())
    if as_json:
        record = {"path": str(path), "format": adapter.format, "base": adapter.base, "bytes": nbytes, "ranks": ranks}
        render.write_json(record)
        return
    rows = [
        ("path", str(path)),
        ("format", f"LoRA adapter, {kind}"),
        ("base", adapter.base or "not named"),
        ("tensors", f"{len(adapter.file.tensors)}, {render.size(nbytes)}"),
        ("rank", ", ".join(map(str, ranks))),
    ]
    render.facts(rows, render.out())


def variants_of(config: "Config") -> list[str]:
    """Return the published variants with this config; the embedding may have more padding rows."""
    from gemwright.variants import VARIANTS

    return [
        name
        for name, variant in VARIANTS.items()
        if config.vocab >= variant.config.vocab and replace(config, vocab=variant.config.vocab) == variant.config
    ]


def encodings_of(checkpoint: "Checkpoint") -> dict[str, Encoding]:
    """Return the encodings of the file's tensors, largest total size first."""
    tensors, nbytes = Counter[str](), Counter[str]()
    for info in checkpoint.file.tensors.values():
        tensors[info.encoding] += 1
        nbytes[info.encoding] += info.nbytes
    return {name: Encoding(tensors[name], count) for name, count in nbytes.most_common()}


def problem_of(checkpoint: "Checkpoint") -> str | None:
    """Return why the weights cannot be loaded (a missing, unexpected or mis-shaped tensor), or None."""
    from gemwright.checkpoint.names.mapping import check, plain_name

    shapes = {plain_name(name): info.shape for name, info in checkpoint.file.tensors.items()}
    try:
        check(checkpoint.mapping, shapes, str(checkpoint.file.path))
    except CheckpointError as error:
        return str(error)
    return None


def _record(checkpoint: "Checkpoint", *, tensors: bool) -> dict[str, Any]:
    from gemwright.cli.loading import default_settings, sampling_source
    from gemwright.model.params import parameter_count

    encodings = encodings_of(checkpoint)
    record: dict[str, Any] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "variants": variants_of(checkpoint.config),
        "parameters": parameter_count(checkpoint.config),
        "bytes": sum(encoding.nbytes for encoding in encodings.values()),
        "encodings": {name: dataclasses.asdict(encoding) for name, encoding in encodings.items()},
        "config": dataclasses.asdict(checkpoint.config),
        "chat_template": checkpoint.chat_template is not None,
        "sampling": default_settings(checkpoint) | {"source": sampling_source(checkpoint)},
        "memory": [
            {"dtype": dtype, "tokens": tokens, "weights": need.weights, "state": need.state, "total": need.total}
            for dtype, tokens, need in _needs(checkpoint)
        ],
        "problem": problem_of(checkpoint),
    }
    if tensors:
        record["tensors"] = {
            name: {"shape": info.shape, "encoding": info.encoding, "bytes": info.nbytes}
            for name, info in checkpoint.file.tensors.items()
        }
    return record


def _needs(checkpoint: "Checkpoint") -> list[tuple[str, int, Any]]:
    """Return memory forecasts, the default dtype first: dtype, number of tokens of one sequence, and forecast."""
    from gemwright.generate import buckets
    from gemwright.loading.model import choose_precision, forecast

    context = checkpoint.config.max_length
    lengths = dict.fromkeys((buckets.capacity(1, context), context))
    dtypes = dict.fromkeys((choose_precision(), "float32", "bfloat16"))
    return [(dtype, tokens, forecast(checkpoint, dtype, tokens)) for dtype in dtypes for tokens in lengths]


def _rows(checkpoint: "Checkpoint") -> list[tuple[str, str]]:
    from gemwright.cli.loading import describe, sampling_source
    from gemwright.loading.model import default_sampling
    from gemwright.model.params import parameter_count

    config, encodings = checkpoint.config, encodings_of(checkpoint)
    names = variants_of(config)
    stored = [f"{name} {e.tensors} tensors, {render.size(e.nbytes)}" for name, e in encodings.items()]
    problem = problem_of(checkpoint)
    needs = _needs(checkpoint)
    memory = [
        f"{'as stored' if dtype == 'stored' else dtype:<9} {render.size(need.total):>8} for {_tokens(tokens)}"
        f"{' (default)' if dtype == needs[0][0] else ''}"
        for dtype, tokens, need in needs
    ]
    return [
        ("path", str(checkpoint.path)),
        ("format", f"{checkpoint.format}, {render.size(sum(e.nbytes for e in encodings.values()))}"),
        ("variant", " or ".join(names) if names else "not a published variant"),
        ("parameters", f"{parameter_count(config):,}"),
        ("encodings", "\n".join(stored)),
        *_shape_rows(config),
        ("chat", "has a chat template" if checkpoint.chat_template else "no chat template (base model)"),
        ("sampling", f"{describe(default_sampling(checkpoint))}, from {sampling_source(checkpoint)}"),
        ("memory", "\n".join(memory)),
        *([("problem", problem)] if problem else []),
    ]


def _shape_rows(config: "Config") -> list[tuple[str, str]]:
    from gemwright.model.config import Attention, stages

    attention = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    heads = Counter((mixer.heads, mixer.kv_heads, mixer.head_dim) for mixer in attention)
    hidden = sorted({layer.mlp.hidden for layer in config.layers})
    return [
        ("layers", f"{len(config.layers)} layers: {', then '.join(itertools.starmap(_stage, stages(config.layers)))}"),
        ("width", f"{config.width}, MLP {', '.join(map(str, hidden))}"),
        ("heads", "\n".join(f"{q} query, {kv} key/value, dimension {width}" for q, kv, width in heads)),
        ("context", _tokens(config.max_length)),
        ("vocabulary", f"{config.vocab:,}{'' if config.tied else ', untied output head'}"),
        *_vision_rows(config),
    ]


def _stage(pattern: "Sequence[Layer]", repeats: int) -> str:
    """Return a stage as text, such as `3 x (5 sliding-window 512 + 1 full attention)`."""
    if len(pattern) == 1:
        return f"{repeats} {_describe(pattern[0].mixer)}"
    runs = itertools.groupby(_describe(layer.mixer) for layer in pattern)
    text = " + ".join(f"{len(list(run))} {mixer}" for mixer, run in runs)
    return f"{repeats} x ({text})" if repeats > 1 else text


def _describe(mixer: "Mixer") -> str:
    from gemwright.model.config import Recurrent

    if isinstance(mixer, Recurrent):
        return f"recurrent (width {mixer.width})"
    return f"sliding-window {mixer.window}" if mixer.window else "full attention"


def _vision_rows(config: "Config") -> list[tuple[str, str]]:
    vision = config.vision
    if vision is None:
        return []
    return [
        ("images", f"{vision.image_size} x {vision.image_size} pixels, {vision.tokens:,} tokens each"),
        ("vision", f"{vision.depth} layers, width {vision.width}, MLP {vision.hidden}, {vision.heads} heads"),
    ]


def _tokens(count: int) -> str:
    from gemwright.checkpoint.configs.reader import MAX_POSITIONS

    return "unlimited" if count == MAX_POSITIONS else f"{count:,} tokens"
