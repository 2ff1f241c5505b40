"""The tables of names against transformers' own models, and the check that comes before any reading."""

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemwright import tree
from gemwright.checkpoint.names.flax import map_deepmind
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import check, plain_name
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.config import pattern
from gemwright.model.params import param_specs
from tests.tiny.config import make_config
from tests.tiny.hf import TEXT_KINDS, make_model, write_model

TIED = replace(make_config(), tied=True)
PLAN = map_huggingface(make_config())
SHAPES = {stored.name: stored.shape for stored in PLAN.values()}


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_hugging_face_names_and_shapes_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    mapping = map_huggingface(open_checkpoint(write_model(tmp_path, kind)).config)
    theirs = {name: tuple(parameter.shape) for name, parameter in make_model(kind).named_parameters()}
    assert {stored.name: stored.shape for stored in mapping.values()} == theirs


@pytest.mark.parametrize(
    ("kind", "architecture"), [("gemma", "GEMMA"), ("gemma2", "GEMMA2"), ("gemma3_text", "GEMMA3")]
)
def test_gguf_names_are_those_of_gguf_py(kind: str, architecture: str, tmp_path: Path) -> None:
    """It maps Hugging Face's names; for the norm before the MLP it has one name for all models."""
    import gguf

    config = open_checkpoint(write_model(tmp_path, kind)).config
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], len(config.layers))
    theirs = {path: table.get_name(stored.name, (".weight",)) for path, stored in map_huggingface(config).items()}
    assert {path: stored.name for path, stored in map_gguf(config).items()} == theirs


def test_a_plan_fits_its_own_shapes() -> None:
    check(PLAN, SHAPES, "file")


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_names_of_a_multimodal_file_are_the_plain_ones(prefix: str) -> None:
    assert plain_name(f"{prefix}layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert plain_name("language_model.lm_head.weight") == "lm_head.weight"
    assert plain_name("model.norm.weight") == "model.norm.weight"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.multi_modal_projector.mm_soft_emb_norm.weight",
        "v.blk.0.attn_q.weight",
        "mm.mm_input_projection.weight",
    ],
)
def test_tensors_of_other_modules_are_ignored(name: str) -> None:
    check(PLAN, SHAPES | {plain_name(name): (3, 5)}, "file")


def test_the_head_of_a_tied_model_is_a_copy() -> None:
    mapping = map_huggingface(TIED)
    check(mapping, SHAPES, "file")
    assert "lm_head.weight" in SHAPES


NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.0.mlp.up_proj.weight"
BAD: dict[str, tuple[dict[str, tuple[int, ...]], list[str], str]] = {
    "missing": ({}, [NORM], f"tensor {NORM} is missing; the file is incomplete"),
    "several missing": ({}, [NORM, UP], f"tensors {UP}, {NORM} are missing"),
    "many missing": ({}, list(SHAPES), "and 26 more are missing"),
    "extra": ({"model.extra": (1,)}, [], "tensor model.extra is not part of this model; its config does not describe"),
    "more layers": (
        {NORM.replace("1", "2", 1): (32,)},
        [],
        "model.layers.2.input_layernorm.weight is not part of this",
    ),
    "transposed": ({UP: (32, 64)}, [], rf"{UP} has shape [32, 64] where the model needs [64, 32]"),
    "longer": ({NORM: (33,)}, [], f"{NORM} has shape [33] where the model needs [32]"),
    "no axis": ({UP: ()}, [], f"{UP} has shape [] where"),
    "one more axis": ({UP: (64, 32, 1)}, [], f"{UP} has shape [64, 32, 1] where"),
    "fewer rows": ({"model.embed_tokens.weight": (3, 32)}, [], "model.embed_tokens.weight has shape [3, 32] where"),
    "more rows, narrower": ({"lm_head.weight": (4000, 16)}, [], "lm_head.weight has shape [4000, 16] where"),
    "table without axes": ({"lm_head.weight": ()}, [], "lm_head.weight has shape [] where"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_error_names_the_wrong_tensor(case: str) -> None:
    changed, removed, message = BAD[case]
    shapes = {name: shape for name, shape in (SHAPES | changed).items() if name not in removed}
    with pytest.raises(CheckpointError, match=f"^file: .*{re.escape(message)}.*\\.$"):
        check(PLAN, shapes, "file")


FLAX = map_deepmind(TIED, {})


@given(st.sampled_from(sorted({stored.name for stored in FLAX.values()})), st.lists(st.integers(0, 2**62), max_size=5))
def test_any_shape_is_refused_or_sound(name: str, shape: list[int]) -> None:
    """Stacked tensors too: a part that a shape lacks is never asked for."""
    parts = Counter(stored.name for stored in FLAX.values())
    sound = {s.name: (parts[s.name],) * len(s.index) + s.shape for s in FLAX.values()}
    check(FLAX, sound, "file")
    found = tuple(shape)
    needed = sound[name]
    fits = found == needed or (
        "input_embedding" in name and len(found) == 2 and found[0] > needed[0] and found[1] == 32
    )
    if fits:
        check(FLAX, sound | {name: found}, "file")
    else:
        with pytest.raises(CheckpointError, match=name):
            check(FLAX, sound | {name: found}, "file")


def test_checking_takes_time_in_proportion() -> None:
    """Fifty thousand tensors that are passed over, and 6500 that are known."""
    layers = pattern(500, *make_config().layers)
    deep = replace(make_config(), layers=layers)
    mapping = map_huggingface(deep)
    shapes = {stored.name: stored.shape for stored in mapping.values()} | {f"v.{n}.weight": (1,) for n in range(50_000)}
    start = time.process_time()
    check(mapping, shapes, "file")
    assert time.process_time() - start < 5


def test_places_in_the_flax_tree_are_inverse_permutations() -> None:
    """A file's shape, permuted, is ours."""
    for path, param in tree.flatten(param_specs(TIED)).items():
        stored = FLAX[path]
        axes = stored.permute or tuple(range(len(stored.shape)))
        assert tuple(stored.shape[axis] for axis in axes) == param.shape
