"""RecurrentGemma, PaliGemma and Gemma 3 with its tower: files of transformers, Orbax and big_vision."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from orbax import checkpoint as ocp
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from gemwright import tree
from gemwright.checkpoint.configs.huggingface import to_huggingface
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.load import load_weights, read_weights
from gemwright.checkpoint.names.flax import map_big_vision
from gemwright.checkpoint.names.huggingface import map_huggingface
from gemwright.checkpoint.names.mapping import check, plain_name
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.kernels.native import native_enabled
from gemwright.model.params import param_specs
from gemwright.variants import VARIANTS, Variant
from tests.tiny.flax import (
    make_big_vision_arrays,
    make_flax_tree,
    make_griffin_tree,
    make_siglip_frame,
    make_siglip_layer,
)
from tests.tiny.hf import IMAGE_SIZE, PATCH_SIZE, VISION_HEADS, VISION_KINDS, VISION_LAYERS, make_model, write_model
from tests.tiny.vocabulary import make_vocabulary

kinds = pytest.mark.parametrize("kind", ["recurrent_gemma", *VISION_KINDS])
TEMPLATE = "{{ messages[0]['content'] }}"


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def as_saved(kind: str) -> dict[str, np.ndarray]:
    """Return transformers' parameters in memory by our plain names."""
    return {plain_name(name): value.detach().numpy() for name, value in make_model(kind).named_parameters()}


@kinds
@pytest.mark.parametrize("names_in_memory", [False, True])
def test_transformers_files_are_read_as_they_are(kind: str, names_in_memory: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind, save_original_format=not names_in_memory)
    checkpoint = open_checkpoint(folder)
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    theirs = as_saved(kind)
    found = {
        plain_name(checkpoint.mapping[path].name): checkpoint.mapping[path].as_stored(np.asarray(value))
        for path, value in tree.flatten(weights).items()
    }
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@kinds
def test_weights_have_the_meaning_that_the_table_states(kind: str, tmp_path: Path) -> None:
    """Check the tensors whose axes ours and theirs order differently."""
    checkpoint = open_checkpoint(write_model(tmp_path, kind))
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    theirs = as_saved(kind)
    if kind == "recurrent_gemma":
        conv = theirs["model.layers.0.temporal_block.conv_1d.weight"]
        np.testing.assert_array_equal(np.asarray(weights.layers[0].mixer.conv)[3], conv[:, 0, 3])
        return
    assert weights.vision is not None
    patch = theirs["vision_tower.embeddings.patch_embedding.weight"]
    ours = np.asarray(weights.vision.patch).reshape(-1, 3, PATCH_SIZE, PATCH_SIZE)
    np.testing.assert_array_equal(ours[:, 2, 1, 5], patch[:, 2, 1, 5])
    if kind == "gemma3":
        projection = theirs["multi_modal_projector.mm_input_projection_weight"]
        np.testing.assert_array_equal(np.asarray(weights.vision.project), projection.T)


@kinds
def test_only_matrices_keep_their_stored_format(kind: str, tmp_path: Path) -> None:
    if not native_enabled():
        pytest.skip("the C++ kernels are not installed")
    checkpoint = open_checkpoint(write_model(tmp_path, kind, torch.bfloat16))
    kept = tree.flatten(load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "stored"))
    plain = dict(read_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, np.float32))
    for path, param in tree.flatten(param_specs(checkpoint.config)).items():
        in_rows_as_ours = checkpoint.mapping[path].permute is None
        assert (path not in kept) == (param.linear and in_rows_as_ours), path
        if path in kept:
            np.testing.assert_array_equal(np.asarray(kept[path]), plain[path], err_msg=path)


def load(folder: Path, kind: str) -> Any:
    auto = AutoModelForCausalLM if kind == "recurrent_gemma" else AutoModelForImageTextToText
    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return loaded


def check_same_model(folder: Path, kind: str) -> None:
    """Check that transformers loads the model of `kind` from a folder: every parameter and the configuration."""
    loaded, original = load(folder, kind), make_model(kind)
    assert type(loaded) is type(original)
    state, expected = loaded.state_dict(), original.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@kinds
def test_a_folder_goes_to_a_folder_that_transformers_reads(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", kind)
    convert(source, tmp_path / "ours", "huggingface")
    check_same_model(tmp_path / "ours", kind)
    assert open_checkpoint(tmp_path / "ours").config == open_checkpoint(source).config
    convert(tmp_path / "ours", tmp_path / "again", "huggingface")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(
        path.name for path in (tmp_path / "ours").iterdir()
    )
    for path in (tmp_path / "ours").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_written_names_are_the_hubs(tmp_path: Path) -> None:
    convert(write_model(tmp_path / "theirs", "gemma3"), tmp_path / "ours", "huggingface")
    written = tensors(tmp_path / "ours").keys()
    assert "language_model.model.layers.1.self_attn.q_norm.weight" in written
    assert "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias" in written
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in written
    assert "multi_modal_projector.mm_input_projection_weight" in written


@pytest.fixture
def variant(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publish a model under the name `tiny`, as trees and arrays do not describe themselves."""

    def publish(config: Any, family: str) -> None:
        monkeypatch.setitem(VARIANTS, "tiny", Variant(family, config, 0, ()))

    return publish


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_recurrent_tree_goes_to_a_folder(wrapped: bool, variant: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", "recurrent_gemma")
    variant(open_checkpoint(source).config, "RecurrentGemma")
    nested = make_griffin_tree(tensors(source), padding=16)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"params": nested} if wrapped else nested)
    (source / "tokenizer.model").rename(tmp_path / "orbax" / "tokenizer.model")
    convert(tmp_path / "orbax", tmp_path / "ours", "huggingface", variant="tiny")
    check_same_model(tmp_path / "ours", "recurrent_gemma")


def test_a_gemma3_tree_goes_to_a_folder(variant: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", "gemma3")
    config = open_checkpoint(source).config
    variant(config, "Gemma 3")
    theirs = tensors(source)
    text = {name.removeprefix("language_model."): value for name, value in theirs.items()}
    text = {name: value for name, value in text.items() if name.startswith("model.")}
    leaves = make_flax_tree(text, 2, 1, swapped=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "text", leaves)
    leaves["transformer/embedder/mm_input_projection"] = {
        "w": theirs["multi_modal_projector.mm_input_projection_weight"]
    }
    leaves["transformer/embedder/mm_soft_embedding_norm"] = {
        "scale": theirs["multi_modal_projector.mm_soft_emb_norm.weight"]
    }
    tower = make_siglip_frame(theirs)
    for layer in range(VISION_LAYERS):
        tower |= {
            f"Transformer/encoderblock_{layer}/{name}": value
            for name, value in make_siglip_layer(theirs, VISION_HEADS, layer).items()
        }
    for name, value in tower.items():
        place, _, leaf = f"SigLiPFromPatches_0/siglip_encoder/{name}".rpartition("/")
        leaves.setdefault(place, {})[leaf] = np.ascontiguousarray(value)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", leaves)
    (source / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    convert(tmp_path / "orbax", tmp_path / "ours", "huggingface", variant="tiny")
    check_same_model(tmp_path / "ours", "gemma3")
    assert open_checkpoint(tmp_path / "text", "tiny").config.vision is None


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", ["paligemma", "paligemma2"])
def test_big_visions_arrays_go_to_a_folder(kind: str, swapped: bool, variant: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", kind)
    variant(open_checkpoint(source).config, "PaliGemma")
    save = np.savez_compressed if swapped else np.savez
    save(tmp_path / "tiny.npz", **make_big_vision_arrays(tensors(source), swapped=swapped))
    (source / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    convert(tmp_path / "tiny.npz", tmp_path / "ours", "huggingface", variant="tiny")
    check_same_model(tmp_path / "ours", kind)


def test_arrays_of_bfloat16_go_to_a_folder_bit_by_bit(variant: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", "paligemma", torch.bfloat16)
    variant(open_checkpoint(source).config, "PaliGemma")
    np.savez(tmp_path / "tiny.npz", **make_big_vision_arrays(tensors(source)))
    (source / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    convert(tmp_path / "tiny.npz", tmp_path / "ours", "huggingface", variant="tiny")
    written = {plain_name(name): value for name, value in tensors(tmp_path / "ours").items()}
    for name, value in tensors(source).items():
        assert written[plain_name(name)].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(written[plain_name(name)].view(np.uint16), value.view(np.uint16), err_msg=name)


def test_arrays_do_not_describe_themselves(tmp_path: Path) -> None:
    np.savez(tmp_path / "pt_224.npz", x=np.zeros(3, np.float32))
    for name in (None, "gemma-2b"):
        with pytest.raises(CheckpointError, match=r"pt_224\.npz is an \.npz, .*--variant, one of paligemma-3b-224, "):
            open_checkpoint(tmp_path / "pt_224.npz", name)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of transformers' own
@pytest.mark.parametrize("kind", ["paligemma", "gemma3"])
def test_a_processor_reads_the_folder(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", kind)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    convert(source, tmp_path / "ours", "huggingface")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    loaded = load(tmp_path / "ours", kind)
    image = Image.new("RGB", (40, 30), "white")
    text = "<image>the man" if kind == "paligemma" else "<start_of_image>the man"
    inputs = processor(images=image, text=text, return_tensors="pt")
    config = open_checkpoint(source).config
    assert config.vision is not None
    assert inputs["pixel_values"].shape[-3:] == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(inputs["pixel_values"], torch.ones_like(inputs["pixel_values"]))  # white is one
    assert (inputs["input_ids"] == loaded.config.image_token_id).sum() == config.vision.tokens
    assert processor.chat_template == TEMPLATE
    with torch.no_grad():
        assert loaded(**{k: v for k, v in inputs.items() if k != "labels"}).logits.isfinite().all()


def test_places_and_masks_are_added_to_gemmas_vocabulary(tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", "paligemma")
    base, ours = make_vocabulary("paligemma").size, open_checkpoint(source).vocabulary()
    assert ours.size == base + 1152
    assert (ours.pieces[base], ours.pieces[base + 1023]) == ("<loc0000>", "<loc1023>")
    assert (ours.pieces[base + 1024], ours.pieces[base + 1151]) == ("<seg000>", "<seg127>")
    convert(source, tmp_path / "ours", "huggingface")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "ours").tokenizer
    assert tokenizer.convert_tokens_to_ids(["<loc0000>", "<seg127>", "<image>"]) == [base, base + 1151, base + 1152]
    assert tokenizer("<loc0007><seg003>", add_special_tokens=False)["input_ids"] == [base + 7, base + 1024 + 3]
    assert open_checkpoint(tmp_path / "ours").vocabulary().pieces == (*ours.pieces, "<image>")


def test_a_gemma3_with_vision_becomes_two_gguf_files(tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", "gemma3")
    convert(source, tmp_path / "model.gguf", "gguf")
    whole, both = open_checkpoint(source), open_checkpoint(tmp_path / "model.gguf")
    assert both.config == whole.config
    weights = dict(read_weights(both.file, both.mapping, both.config, np.float32))
    for path, value in read_weights(whole.file, whole.mapping, whole.config, np.float32):
        np.testing.assert_allclose(weights[path], value, rtol=0, atol=1e-6, err_msg=path)
    (tmp_path / "mmproj-model.gguf").unlink()
    assert open_checkpoint(tmp_path / "model.gguf").config == replace(whole.config, vision=None)


@pytest.mark.parametrize(("kind", "name"), [("recurrent_gemma", "RecurrentGemma"), ("paligemma2", "PaliGemma 2")])
def test_gguf_has_no_such_architecture(kind: str, name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", kind)
    with pytest.raises(CheckpointError, match=f"GGUF has no architecture for {name}; choose huggingface"):
        convert(source, tmp_path / "no.gguf", "gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_missing_tower_is_named(tmp_path: Path) -> None:
    source = write_model(tmp_path, "gemma3")
    kept = {name: value for name, value in tensors(source).items() if "fc1" not in name}
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(source)
    with pytest.raises(CheckpointError, match=r"tensors vision_tower\.encoder\.layers\.0\.mlp\.fc1\.bias, .* missing"):
        load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


def test_a_decoder_alone_is_read_from_a_file_that_has_a_tower(tmp_path: Path) -> None:
    source = write_model(tmp_path, "gemma3")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"vision_config": None}))
    checkpoint = open_checkpoint(source)
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    assert weights.vision is None


def test_padding_rows_beyond_the_vocabulary_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gemwright.checkpoint.configs import huggingface_vision

    source = write_model(tmp_path, "paligemma")
    whole = tensors(source)["language_model.model.embed_tokens.weight"]
    monkeypatch.setattr(huggingface_vision, "PALIGEMMA_VOCAB", whole.shape[0] - 5)
    checkpoint = open_checkpoint(source)
    weights = load_weights(checkpoint.file, map_huggingface(checkpoint.config), checkpoint.config, "float32")
    np.testing.assert_array_equal(np.asarray(weights.embed), whole[:-5])


@pytest.mark.parametrize("name", ["recurrentgemma-2b", "paligemma-3b-224", "paligemma2-3b-448", "gemma-3-4b"])
def test_published_sizes_have_the_names_and_shapes_of_transformers(name: str) -> None:
    """Without allocating: its classes are built on torch's meta device."""
    config = VARIANTS[name].config
    settings = to_huggingface(config, "bfloat16")
    auto = AutoModelForImageTextToText if config.vision else AutoModelForCausalLM
    with torch.device("meta"):
        made = auto.from_config(CONFIG_MAPPING[settings["model_type"]].from_dict(settings))
    theirs = {plain_name(name): tuple(value.shape) for name, value in made.named_parameters()}
    ours = {plain_name(stored.name): stored.shape for stored in map_huggingface(config).values()}
    assert ours == theirs


BIG_VISION_3B = {  # after `params/`; google-research/big_vision `models/ppp/gemma.py` and `models/vit.py`
    "img/embedding/kernel": (14, 14, 3, 1152),
    "img/embedding/bias": (1152,),
    "img/pos_embedding": (1, 256, 1152),
    **{f"img/Transformer/encoderblock/LayerNorm_{n}/{leaf}": (27, 1152) for n in (0, 1) for leaf in ("scale", "bias")},
    **{
        f"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/{part}/{leaf}": shape
        for part in ("query", "key", "value")
        for leaf, shape in (("kernel", (27, 1152, 16, 72)), ("bias", (27, 16, 72)))
    },
    "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": (27, 16, 72, 1152),
    "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/bias": (27, 1152),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": (27, 4304),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel": (27, 4304, 1152),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias": (27, 1152),
    "img/Transformer/encoder_norm/scale": (1152,),
    "img/Transformer/encoder_norm/bias": (1152,),
    "img/head/kernel": (1152, 2048),
    "img/head/bias": (2048,),
    "llm/embedder/input_embedding": (257_152, 2048),
    "llm/final_norm/scale": (2048,),
    "llm/layers/attn/q_einsum/w": (18, 8, 2048, 256),
    "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
    "llm/layers/attn/attn_vec_einsum/w": (18, 8, 256, 2048),
    "llm/layers/mlp/gating_einsum": (18, 2, 2048, 16_384),
    "llm/layers/mlp/linear": (18, 16_384, 2048),
    "llm/layers/pre_attention_norm/scale": (18, 2048),
    "llm/layers/pre_ffw_norm/scale": (18, 2048),
}


@pytest.mark.parametrize("changed", [None, *BIG_VISION_3B])
def test_the_published_arrays_of_a_paligemma_are_the_planned_ones(changed: str | None) -> None:
    mapping = map_big_vision(VARIANTS["paligemma-3b-224"].config, {})
    shapes = {f"params/{name}": shape for name, shape in BIG_VISION_3B.items()}
    if changed is None:
        check(mapping, shapes, "file")
        return
    for other in (BIG_VISION_3B[changed][1:], (*BIG_VISION_3B[changed], 1), (3, *BIG_VISION_3B[changed][1:])):
        with pytest.raises(CheckpointError, match=f"tensor params/{changed} has shape"):
            check(mapping, shapes | {f"params/{changed}": other}, "file")
    with pytest.raises(CheckpointError, match=f"tensor params/{changed} is missing"):
        check(mapping, {name: shape for name, shape in shapes.items() if name != f"params/{changed}"}, "file")
