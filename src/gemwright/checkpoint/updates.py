"""The updates that an adapter makes to the weights of a model, and merging them.

Sources: arXiv:2106.09685 (LoRA), arXiv:2312.03732 (rank-stabilized scale), arXiv:2402.09353 (DoRA); huggingface/peft
`src/peft/tuners/lora/layer.py` (0.21); ggml-org/llama.cpp `src/llama-adapter.h` (scale), `src/llama-graph.cpp` (table).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.adapters import Adapter, open_adapter
from gemwright.checkpoint.files.atomic import file_error
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import SCORE, map_huggingface
from gemwright.checkpoint.names.mapping import TensorMapping, plain_name
from gemwright.errors import CheckpointError
from gemwright.model.config import Config

_NAMES = {
    "peft": re.compile(
        r"base_model\.model\.(.+?)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
        r"|base_layer|weight)(?:\.(?:default|weight))*"
    ),
    "gguf": re.compile(r"(.+)\.weight\.(lora_[ab])"),
}
_PARTS = {
    "peft": {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"},
    "gguf": {"lora_a": "a", "lora_b": "b"},
}
# The factors of the transposed embedding table.
_TABLE_PARTS = {
    "peft": {"lora_embedding_A": "b", "lora_embedding_B": "a"},
    "gguf": {"lora_a": "b", "lora_b": "a"},
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update `scale * b @ a` of a matrix [outputs, inputs].

    Attributes:
        a: [rank, inputs] float32.
        b: [outputs, rank] float32.
        scale: Factor of the product.
        magnitude: [outputs] float32, the norms of the rows of the updated matrix (DoRA); None if they are free.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Updates:
    """The changes that an adapter makes to a model, by path of our weight.

    Attributes:
        low_rank: The update of each matrix.
        replaced: Whole weights in place of the model's, in our shape or that of the file.
        vocab: Number of rows of the tables, more than the model's if tokens were added.
        weight: Factor of the low-rank updates.
    """

    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, NDArray[np.float32]]
    vocab: int
    weight: float = 1.0


def read_all(adapters: Mapping[Path, float], config: Config, *, reward: bool = False) -> tuple[Updates, ...]:
    """Read adapters for a model.

    Args:
        adapters: Path and weight of each.
        config: The model.
        reward: Whether those of reward models are wanted.

    Raises:
        CheckpointError: As for `read_updates` and `open_adapter`.
    """
    return tuple(
        replace(read_updates(open_adapter(path), config, reward=reward), weight=w) for path, w in adapters.items()
    )


def read_updates(adapter: Adapter, config: Config, *, reward: bool = False) -> Updates:
    """Read the updates of an adapter for a model; of a reward model, all but its head.

    Raises:
        CheckpointError: A tensor is unknown, lacks its counterpart, is not finite, or is for a model of another shape.
    """
    vocab = _find_vocab(adapter, config)
    modules = map_modules(adapter.format, replace(config, vocab=vocab))
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    replaced: dict[str, NDArray[np.float32]] = {}
    for name in adapter.file.tensors:
        match = _NAMES[adapter.format].fullmatch(name)
        module = plain_name(match[1]) if match else ""
        if f"{module}.weight" == SCORE and reward:
            continue
        if f"{module}.weight" == SCORE:
            raise _error(adapter, "is of a reward model, which gives no text", "use it with gemwright score --reward")
        if match is None or module not in modules:
            raise _error(adapter, f"has {name:.120}, which is not for this model", "use the model it names")
        path, tensor = modules[module]
        values = np.asarray(adapter.file.read(name), np.float32)
        if not np.isfinite(values).all():
            raise _error(adapter, f"has values in {name:.120} that are not finite", "train it again")
        if match[2] in ("weight", "base_layer"):
            whole = _check_replaced(adapter, name, values, tensor)
            if match[2] == "weight" or vocab > config.vocab:  # else PEFT's copy of the base's table
                replaced[path] = whole
            continue
        part = (_TABLE_PARTS if path == "embed" else _PARTS)[adapter.format].get(match[2])
        if part is None:
            raise _error(adapter, f"has {name:.120}, which is not supported", "merge it with PEFT first")
        parts.setdefault(module, {})[part] = values
    low_rank = {modules[module][0]: _join(adapter, module, *modules[module], found) for module, found in parts.items()}
    return Updates(low_rank, replaced, vocab)


def _find_vocab(adapter: Adapter, config: Config) -> int:
    """Return the number of rows of the tables: the model's, or those of a table that was extended in training."""
    rows = [
        info.shape[0]
        for name, info in adapter.file.tensors.items()
        if name.endswith(("embed_tokens.weight", "embed_tokens.base_layer.weight", "lm_head.weight"))
        if len(info.shape) == 2 and "lora_" not in name
    ]
    return max([config.vocab, *rows])


def map_modules(adapter_format: str, config: Config) -> dict[str, tuple[str, TensorMapping]]:
    """Return the path and tensor of each of our weights by the plain name of its module in adapters of a format."""
    untied = replace(config, tied=False)  # an adapter may update the head alone
    mapping = map_huggingface(untied) if adapter_format == "peft" else map_gguf(replace(untied, vision=None))
    return {
        plain_name(tensor.name).removesuffix(".weight"): (path, tensor)
        for path, tensor in mapping.items()
        if tensor.permute is None
    }


def _check_replaced(
    adapter: Adapter, name: str, values: NDArray[np.float32], tensor: TensorMapping
) -> NDArray[np.float32]:
    rows = tensor.shape[0]
    if values.shape[1:] != tensor.shape[1:] or len(values) < rows or (len(values) > rows and not tensor.extra_rows):
        raise _shape_error(adapter, name, list(values.shape), list(tensor.shape))
    return values[:rows]


def _join(
    adapter: Adapter, module: str, path: str, tensor: TensorMapping, parts: Mapping[str, NDArray[np.float32]]
) -> LowRank:
    """Check the factors of a matrix against each other and its shape, and find their scale."""
    if not {"a", "b"} <= parts.keys():
        raise _error(adapter, f"has only one of the two factors of {module:.120}", "save the adapter again")
    a, b, magnitude = parts["a"], parts["b"], parts.get("magnitude")
    if path == "embed":
        a, b = a.T, b if adapter.format == "gguf" else b.T
    outputs, inputs = tensor.shape[0], math.prod(tensor.shape[1:])
    fits = a.ndim == b.ndim == 2 and (len(b), a.shape[1]) == (outputs, inputs) and 0 < len(a) == b.shape[1]
    if not fits or (magnitude is not None and magnitude.size != outputs):
        raise _shape_error(adapter, module, [*b.shape[:1], *a.shape[1:]], [outputs, inputs])
    return LowRank(a, b, _scale(adapter, module, len(a)), None if magnitude is None else magnitude.reshape(-1))


def _error(adapter: Adapter, problem: str, remedy: str) -> CheckpointError:
    return file_error(adapter.path, f"the adapter for {adapter.base or 'an unnamed model'} {problem}", remedy)


def _shape_error(adapter: Adapter, name: str, found: object, needed: object) -> CheckpointError:
    problem = f"has {name:.120} of shape {found} where the model needs {needed}"
    return _error(adapter, problem, "use the model that it was trained on")


def _scale(adapter: Adapter, module: str, rank: int) -> float:
    """Return the factor of the product of a module's factors."""
    settings = adapter.settings
    if adapter.format == "gguf":
        alpha = float(settings.get("adapter.lora.alpha", 0.0))
        return alpha / rank if alpha else 1.0
    patterns = settings.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, Mapping) else {}
    alpha = next((alpha for key, alpha in patterns.items() if _matches(key, module)), settings.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _error(adapter, f"has an alpha for {module} that is not a number", "save the adapter again")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    """Return whether a key of `alpha_pattern` is the end of a module's name.

    In PEFT the keys are regular expressions; those with more than escaped dots and an anchor match nothing here.
    """
    plain = plain_name(pattern.removeprefix("^").replace("\\.", "."))
    return module == plain or module.endswith(f".{plain}")


def update_config(config: Config, updates: Sequence[Updates]) -> Config:
    """Return the config of the updated model.

    It has a head of its own if an adapter changes the embedding or the head, and as many tokens as they have.
    """
    changed = {path for update in updates for path in (*update.low_rank, *update.replaced)}
    vocab = max([config.vocab, *(update.vocab for update in updates)])
    tied = config.tied and ("head" not in changed if vocab > config.vocab else not changed & {"embed", "head"})
    return replace(config, tied=tied, vocab=vocab)


def replacement(path: str, updates: Sequence[Updates]) -> NDArray[np.float32] | None:
    """Return the weight that takes the place of the model's; the last if several adapters have one."""
    return next((update.replaced[path] for update in reversed(updates) if path in update.replaced), None)


def fit(whole: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a whole weight in our shape; a table may have more rows."""
    return whole.reshape(-1, *shape[1:])[: shape[0]]


def sum_updates(
    path: str, updates: Sequence[Updates], base: Callable[[], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None] | None:
    """Return the sum of all updates of a weight W as a [rank, inputs], b [outputs, rank] and gain [outputs].

    The updated weight is `gain * W + b @ a`, with None for a gain of one. For no updates the result is None.

    Args:
        path: The weight.
        updates: The updates of each adapter.
        base: Returns W as [outputs, inputs]; called for DoRA only.
    """
    found = [(update.low_rank[path], update.weight) for update in updates if path in update.low_rank]
    if not found:
        return None
    gain: NDArray[np.float32] | None = None
    scaled: list[NDArray[np.float32]] = []
    for update, weight in found:
        b = update.b * np.float32(update.scale * weight)
        if update.magnitude is not None:
            norms = np.linalg.norm(base() + b @ update.a, axis=1).astype(np.float32)
            relative = update.magnitude / norms
            gain = relative if gain is None else gain + relative - 1
            b = b * relative[:, None]
        scaled.append(b)
    return np.concatenate([update.a for update, _ in found]), np.concatenate(scaled, axis=1), gain


def merge(path: str, values: NDArray[np.float32], updates: Sequence[Updates]) -> NDArray[np.float32]:
    """Return a weight with the low-rank updates merged into it.

    Args:
        path: The weight.
        values: Its base in any shape; a table may lack the last rows.
        updates: The updates of each adapter.
    """
    if (whole := replacement(path, updates)) is not None:
        values = fit(whole, values.shape)
    rows = next((len(update.low_rank[path].b) for update in updates if path in update.low_rank), 0)
    rows = len(values) if path in ("embed", "head") else rows

    def matrix() -> NDArray[np.float32]:
        return values.reshape(rows, -1)

    found = sum_updates(path, updates, matrix)
    if found is None:
        return values
    a, b, gain = found
    b = b[:rows]
    base = matrix() if gain is None else matrix() * gain[:rows, None]
    return np.add(base, b @ a, dtype=np.float32).reshape(values.shape)
