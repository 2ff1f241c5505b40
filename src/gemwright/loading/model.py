"""Make a `Model` of a checkpoint: precision, memory forecast, weights, tokenizer, sampling and draft model."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from gemwright import memory, sharding
from gemwright.api import Model
from gemwright.checkpoint.load import Progress, load_weights
from gemwright.checkpoint.locate import locate
from gemwright.checkpoint.merge import adapt
from gemwright.checkpoint.open import Checkpoint, check_variant, open_checkpoint, open_gguf_checkpoint
from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.errors import GemwrightError
from gemwright.generate.drafts import refuse_recurrent
from gemwright.generate.engine import Engine
from gemwright.generate.sampling import Sampling
from gemwright.images.image_prompt import ImagePrompter
from gemwright.kernels.native import native_enabled
from gemwright.model.params import ModelWeights
from gemwright.precision import Precision, activation_dtype, cache_dtype, parse_precision
from gemwright.runtime import fork, heap, machine, startup
from gemwright.runtime.cache_dir import enable_cache
from gemwright.text.chat import FORMATS
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer


def load_model(
    model: str | Path,
    dtype: Any = None,
    *,
    variant: str | None = None,
    draft: str | Path | None = None,
    adapters: Mapping[Path, float] = MappingProxyType({}),
    mesh: str | None = None,
    progress: Progress = lambda done, total: None,
    prefetch: GgufPrefetch | None = None,
) -> Model:
    """Load a model, as `gemwright.load`.

    Args:
        model: A path, a name from `gemwright models`, or a hub id.
        dtype: See `choose_precision`.
        variant: Name of the published variant, for an Orbax tree or an `.npz`.
        draft: A smaller model with the same vocabulary.
        adapters: Path and weight of each adapter of the model.
        mesh: Sizes of the mesh's axes; None for one device.
        progress: Called with the number of bytes read and the total.
        prefetch: A running prefetch of the model's file, whose results are used.

    Raises:
        GemwrightError: As for `gemwright.load`.
    """
    fork.require_not_forked()
    fork.watch()
    machine.set_threads()
    enable_cache()
    checkpoint = (
        open_gguf_checkpoint(prefetch.file.result()) if prefetch else open_checkpoint(locate(str(model)), variant)
    )
    check_variant(checkpoint, variant)
    precision = choose_precision(dtype)
    devices = None if mesh is None else sharding.make_mesh_from_text(mesh)
    memory.require(forecast(checkpoint, precision), str(model), devices)
    checkpoint, updates = adapt(checkpoint, adapters)
    config = checkpoint.config
    repacked = prefetch.repacked() if prefetch and precision == "stored" and mesh is None else None
    # Making the tokenizer keeps one core busy, while reading weights mostly waits.
    with startup.paused(), ThreadPoolExecutor(1) as pool:
        cached = prefetch.tokenizer if prefetch and checkpoint.tokenizer is None else None
        pending = cached or pool.submit(lambda: Tokenizer(checkpoint.vocabulary()))
        with sharding.use(devices):
            params = load_weights(
                checkpoint.file, checkpoint.mapping, config, precision, progress, repacked, updates=updates
            )
        tokenizer = pending.result()
    checkpoint.check_vocabulary(tokenizer.size, tokenizer.is_control, checkpoint.tokenizer or checkpoint.path)
    vocabulary = min(tokenizer.size, config.vocab)
    loaded = Model(
        name=str(model),
        engine=Engine(config, params, vocabulary, jnp.dtype(cache_dtype(precision))),
        tokenizer=tokenizer,
        chat_template=make_chat_template(checkpoint, tokenizer),
        defaults=default_sampling(checkpoint),
        stop_ids=checkpoint.stop_ids or (tokenizer.eos_id,),
        tuned=bool(checkpoint.chat_templates),
        image_prompter=_image_prompter(checkpoint, params, tokenizer),
    )
    heap.trim()
    return loaded if draft is None else replace(loaded, draft=_draft(load_model(draft, dtype, mesh=mesh), loaded))


def choose_precision(given: Any = None) -> Precision:
    """Return the precision given by name or dtype, or else the best one for the device.

    That is bfloat16 on an accelerator. On a CPU it is `stored` with the C++ kernels, and without it float32, in which
    XLA multiplies fastest.

    Raises:
        GemwrightError: The precision is not supported, or not on this machine.
    """
    if given is None:
        if jax.default_backend() != "cpu":
            return "bfloat16"
        return "stored" if native_enabled() else "float32"
    precision = parse_precision(given)
    if precision == "stored" and not native_enabled():
        on_cpu = jax.default_backend() == "cpu"
        reason = "the C++ kernels are not installed" if on_cpu else f"JAX computes on a {jax.default_backend()}"
        remedy = "install a C++ compiler and reinstall gemwright, or use float32" if on_cpu else "use bfloat16"
        raise GemwrightError(f"The precision stored needs native CPU kernels, and {reason}; {remedy}.")
    return precision


def forecast(checkpoint: Checkpoint, precision: Precision, capacity: int = 1024) -> memory.Forecast:
    """Forecast the memory of a checkpoint in a precision; our own quantized matrices keep their stored format."""
    if precision != "stored" and not checkpoint.quantized:
        return memory.forecast(checkpoint.config, precision, capacity=capacity)
    itemsize = jnp.dtype(activation_dtype(precision)).itemsize
    stored = sum(
        info.nbytes if precision == "stored" or info.panels else math.prod(info.shape) * itemsize
        for info in checkpoint.file.tensors.values()
    )
    return memory.forecast(checkpoint.config, precision, capacity=capacity, stored=stored)


def default_sampling(checkpoint: Checkpoint) -> Sampling:
    """Return the sampling of a checkpoint, with the defaults of `generation_config.json`, or that of its family."""
    generation = checkpoint.generation
    keys = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {key: generation[key] for key in keys if key in generation}
    if "do_sample" not in generation and not given:
        return Sampling(**checkpoint.family.sampling)
    if not generation.get("do_sample", False):
        return Sampling(repetition_penalty=given.get("repetition_penalty", 1.0))
    return replace(Sampling(temperature=1.0, top_k=50), **given)


def make_chat_template(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the checkpoint's chat template, or that of its family."""
    sources = checkpoint.chat_templates or {"default": FORMATS[checkpoint.family.chat_format].template}
    return ChatTemplate(tokenizer, sources, checkpoint.special_tokens)


def _image_prompter(checkpoint: Checkpoint, params: ModelWeights, tokenizer: Tokenizer) -> ImagePrompter | None:
    family, vision = checkpoint.family, checkpoint.config.vision
    if vision is None or params.vision is None or family.image_prompt is None:
        return None
    return ImagePrompter(vision, params.vision, family.image_prompt, family.resampling(checkpoint.format), tokenizer)


def _draft(draft: Model, model: Model) -> Engine:
    """Return the engine of a draft model if it fits. One of the two may have more ids, such as those of images."""
    shared = min(draft.engine.vocabulary, model.engine.vocabulary)
    if draft.tokenizer.pieces[:shared] != model.tokenizer.pieces[:shared]:
        raise GemwrightError(
            f"{draft.name} and {model.name} have different vocabularies; use a draft model of the same generation."
        )
    refuse_recurrent(draft.engine.config)
    refuse_recurrent(model.engine.config)
    return draft.engine
