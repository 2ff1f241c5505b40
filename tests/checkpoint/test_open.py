"""Every defect of a checkpoint gives a one-sentence error that names the file, before weights are read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orbax import checkpoint as ocp
from safetensors.numpy import load_file, save_file

from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.variants import VARIANTS, Variant
from tests.tiny.config import make_config
from tests.tiny.flax import make_flax_tree
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model
from tests.tiny.vocabulary import make_vocabulary


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in four shards."""
    return write_model(tmp_path_factory.mktemp("sound"), max_shard_size="60kB")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "folder")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def change(folder: Path, name: str, **settings: Any) -> None:
    data = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(data | settings))


def one_file(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a folder with edited weights in one file."""
    tensors = {name: value for shard in shards(folder) for name, value in load_file(shard).items()}
    for shard in (*shards(folder), folder / "model.safetensors.index.json"):
        shard.unlink()
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[new] = tensors.pop(old)

    return edit


def load(path: Path) -> None:
    """Do everything that loading a model does."""
    checkpoint = open_checkpoint(path)
    checkpoint.vocabulary()
    load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


VOCAB = make_vocabulary().size
NORM, TABLE = "model.norm.weight", "model.embed_tokens.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tensor missing": (lambda f: one_file(f, lambda t: t.pop(NORM)), f"model.safetensors: tensor {NORM} is missing"),
    "tensor renamed": (lambda f: one_file(f, rename(NORM, "x.y")), f"model.safetensors: tensor {NORM} is missing"),
    "tensor too many": (
        lambda f: one_file(f, lambda t: t.update({"x.y": np.ones(3, np.float32)})),
        "model.safetensors: tensor x.y is not part of this model",
    ),
    "tensor of another shape": (
        lambda f: one_file(f, lambda t: t.update({NORM: np.ones((8, 8), np.float32)})),
        f"model.safetensors: tensor {NORM} has shape [8, 8] where the model needs [64]",
    ),
    "tensor of whole numbers": (
        lambda f: one_file(f, lambda t: t.update({NORM: np.ones(64, np.int32)})),
        f"model.safetensors: tensor '{NORM}' has encoding I32; use a file with F32, F16, BF16",
    ),
    "table with too few rows": (
        lambda f: one_file(f, lambda t: t.update({TABLE: t[TABLE][:-1]})),
        f"model.safetensors: tensor {TABLE} has shape",
    ),
    "shard missing": (lambda f: shards(f)[1].unlink(), "model-00002-of-"),
    "shard cut": (lambda f: shards(f)[1].write_bytes(shards(f)[1].read_bytes()[:-9]), "model-00002-of-"),
    "index cut": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight'),
        "model.safetensors.index.json",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: is missing; fetch the whole folder"),
    "config cut": (lambda f: (f / "config.json").write_text('{"model_type'), "config.json: cannot be read as JSON"),
    "config of 100000 brackets": (
        lambda f: (f / "config.json").write_text("[" * 10**5),
        "config.json: cannot be read as JSON",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: does not hold a JSON object"),
    "config too large": (
        lambda f: (f / "config.json").write_bytes(b" " * 64_000_001),
        "config.json: is larger than 64,000,000 bytes; fetch it again.",
    ),
    "config not text": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\xfd"),
        "config.json: cannot be read as JSON",
    ),
    "another architecture": (lambda f: change(f, "config.json", model_type="llama"), "config.json"),
    "more layers in the config": (
        lambda f: change(f, "config.json", num_hidden_layers=3, layer_types=None),
        "tensors model.layers.2.input_layernorm.weight",
    ),
    "fewer layers in the config": (
        lambda f: change(f, "config.json", num_hidden_layers=1, layer_types=None),
        "are not part of this model; its config does not describe this file",
    ),
    "more rows in the config": (
        lambda f: change(f, "config.json", vocab_size=VOCAB + 1),
        f"tensor {TABLE} has shape [{VOCAB}, 64] where the model needs [{VOCAB + 1}, 64]",
    ),
    "fewer rows in the config": (
        lambda f: change(f, "config.json", vocab_size=VOCAB - 1),
        f"tokenizer.model has {VOCAB} tokens and the model has {VOCAB - 1}; use the model's own tokenizer",
    ),
    "settings of generation": (
        lambda f: change(f, "generation_config.json", top_k="many"),
        "generation_config.json",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "has neither tokenizer.model nor tokenizer.json"),
    "tokenizer cut": (
        lambda f: (f / "tokenizer.model").write_bytes((f / "tokenizer.model").read_bytes()[:-3]),
        "tokenizer.model: ",
    ),
    "tokenizer.json a list": (
        lambda f: (f / "tokenizer.model").rename(f / "tokenizer.json").write_text("[]"),
        "tokenizer.json: The tokenizer.json is damaged",
    ),
    "tokenizer of another model": (
        lambda f: (f / "tokenizer.model").write_bytes(fewer_pieces(300).sentencepiece_model()),
        f"tokenizer.model has {make_vocabulary().size - 300} tokens and the model has {make_vocabulary().size}",
    ),
}


def fewer_pieces(count: int) -> Any:
    whole = make_vocabulary()
    size = whole.size - count
    return replace(whole, pieces=whole.pieces[:size], scores=whole.scores[:size], kinds=whole.kinds[:size])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_sentence(damage: str, folder: Path) -> None:
    load(folder)
    apply, message = DAMAGE[damage]
    apply(folder)
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    sentence = str(raised.value)
    assert str(folder) in sentence
    assert message in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_no_weight_is_read_of_an_incomplete_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_file(folder, lambda tensors: tensors.pop(NORM))
    checkpoint = open_checkpoint(folder)
    monkeypatch.delattr(type(checkpoint.file), "read_rows")
    with pytest.raises(CheckpointError, match="is missing"):
        load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


def test_a_folder_and_its_file_are_the_same_checkpoint(folder: Path) -> None:
    one_file(folder, lambda tensors: None)
    whole, single = open_checkpoint(folder), open_checkpoint(folder / "model.safetensors")
    assert whole.config == single.config
    assert whole.mapping == single.mapping
    assert whole.vocabulary().pieces == single.vocabulary().pieces == make_vocabulary().pieces


def test_the_path_of_a_shard_opens_all_shards(folder: Path) -> None:
    assert open_checkpoint(shards(folder)[1]).file.tensors == open_checkpoint(folder).file.tensors
    load(shards(folder)[1])


@pytest.mark.parametrize("name", ["notes.txt", "a file"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("no tensors")
    with pytest.raises(CheckpointError, match=rf"{name} is not a checkpoint; give a GGUF, safetensors or \.npz"):
        open_checkpoint(tmp_path / name)
    with pytest.raises(
        CheckpointError, match="holds no safetensors, GGUF or Orbax checkpoint; give a folder that does"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="absent does not exist; give a file"):
        open_checkpoint(tmp_path / "absent")


def test_a_folder_may_hold_one_gguf_and_not_several(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf")
    load(tmp_path)
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"holds several GGUF files \(a\.gguf, b\.gguf\); give the path of one"):
        open_checkpoint(tmp_path)


def rewritten(source: Path, target: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Write a GGUF file with other keys and tensors; None removes one."""
    file = open_gguf(source)
    values = {name: file.read(name) for name in file.tensors} | tensors
    written = [GgufTensor(name, value.shape, "F32", [value]) for name, value in values.items() if value is not None]
    metadata = {key: value for key, value in (dict(file.metadata) | keys).items() if value is not None}
    write_gguf(target, metadata, written)
    return target


TOKENS = [f"<unused{n}>" for n in range(VOCAB + 1)]
GGUF_DAMAGE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one part of several": (
        {"split.count": 3, "split.no": 0},
        {},
        "model.gguf: is one of 3 parts of a model, whose name does not tell the others; name the parts like ",
    ),
    "another architecture": (
        {"general.architecture": "llama"},
        {},
        "the architecture 'llama' is not supported yet; supported are gemma, gemma2, gemma3.",
    ),
    "no architecture": ({"general.architecture": None}, {}, "general.architecture"),
    "more layers": ({"gemma3.block_count": 3}, {}, "model.gguf: tensors blk.2.attn_k.weight"),
    "fewer layers": ({"gemma3.block_count": 1}, {}, "blk.1.attn_k.weight"),
    "no table": ({}, {"token_embd.weight": None}, "tensor 'token_embd.weight' is missing"),
    "tensor too many": ({}, {"x.y": np.ones(3, np.float32)}, "model.gguf: tensor x.y is not part of this model"),
    "norm of another shape": (
        {},
        {"output_norm.weight": np.ones((4, 8), np.float32)},
        "tensor output_norm.weight has shape [4, 8] where the model needs [32]",
    ),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {}, "model.gguf: The GGUF metadata has no 'tokenizer.ggml.tokens'"),
    "tokens and scores differ": ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, {}, "model.gguf: The vocabulary"),
    "more tokens than rows": ({"tokenizer.ggml.tokens": TOKENS}, {}, f"the tokenizer has {VOCAB + 1} tokens"),
}


@pytest.mark.parametrize("damage", GGUF_DAMAGE)
def test_a_damaged_gguf_is_one_sentence(damage: str, tmp_path: Path) -> None:
    keys, tensors, message = GGUF_DAMAGE[damage]
    source = write_tiny_gguf(tmp_path / "sound.gguf")
    load(rewritten(source, tmp_path / "same.gguf", {"split.count": 1}, {}))
    path = rewritten(source, tmp_path / "model.gguf", keys, tensors)
    with pytest.raises(CheckpointError) as raised:
        load(path)
    sentence = str(raised.value)
    assert str(path) in sentence
    assert message in sentence
    assert "\n" not in sentence


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 30, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            load(path)


def test_a_table_may_be_padded_and_control_tokens_may_exceed_it(folder: Path) -> None:
    """Gemma 3's tokenizer has one more token, for images, than its text models have embeddings."""
    whole = make_vocabulary()
    more = replace(
        whole,
        pieces=(*whole.pieces, "<image_soft_token>"),
        scores=np.append(whole.scores, np.float32(0)),
        kinds=np.append(whole.kinds, np.uint8(3)),
    )
    (folder / "tokenizer.model").write_bytes(more.sentencepiece_model())
    load(folder)
    (folder / "tokenizer.model").write_bytes(fewer_pieces(12).sentencepiece_model())
    load(folder)


def test_the_stop_tokens_of_older_folders_are_in_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    change(folder, "config.json", eos_token_id=[1, 106])
    assert open_checkpoint(folder).stop_ids == (1, 106)
    change(folder, "generation_config.json", eos_token_id=7)
    assert open_checkpoint(folder).stop_ids == (7,)


def test_a_chat_template_is_read_from_either_file(folder: Path) -> None:
    assert open_checkpoint(folder).chat_template is None
    change(folder, "tokenizer_config.json", chat_template="in the settings")
    assert open_checkpoint(folder).chat_template == "in the settings"
    (folder / "chat_template.jinja").write_text("in its own file")
    assert open_checkpoint(folder).chat_template == "in its own file"


@pytest.fixture(scope="module")
def orbax(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the shapes of an unpublished model."""
    tensors = {name: value for shard in shards(sound) for name, value in load_file(shard).items()}
    path = tmp_path_factory.mktemp("orbax") / "tree"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, make_flax_tree(tensors, 2, 1, swapped=True))
    return path


@pytest.mark.parametrize("variant", [None, "gemma-9"])
def test_an_orbax_tree_needs_a_known_variant(orbax: Path, variant: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"{orbax} is an Orbax tree.*--variant, one of {next(iter(VARIANTS))}, "):
        open_checkpoint(orbax, variant)


def test_an_orbax_tree_of_another_variant_is_refused(orbax: Path) -> None:
    checkpoint = open_checkpoint(orbax, "gemma-3-270m")
    with pytest.raises(CheckpointError, match=r"tensors transformer/layer_1\d?/.* missing; the file is incomplete"):
        load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")


def test_the_tokenizer_of_an_orbax_tree_is_in_it_or_in_the_folder_above(orbax: Path, tmp_path: Path) -> None:
    """The folder of a release contains the tree's folder and the tokenizer."""
    tree = shutil.copytree(orbax, tmp_path / "tree")
    checkpoint = replace(open_checkpoint(tree, "gemma-3-270m"), config=replace(make_config(), tied=True))
    assert isinstance(checkpoint, Checkpoint)
    with pytest.raises(CheckpointError, match="has neither tokenizer"):
        checkpoint.vocabulary()
    (tmp_path / "tokenizer.model").write_bytes(make_vocabulary().sentencepiece_model())
    assert checkpoint.vocabulary().size == VOCAB


def test_a_variant_has_to_agree_with_the_checkpoint(tmp_path: Path) -> None:
    folder, file = write_model(tmp_path / "folder"), write_tiny_gguf(tmp_path / "model.gguf")
    for path in (folder, file):
        config = open_checkpoint(path).config
        with pytest.raises(CheckpointError, match=r"with 18 layers of width 640; leave out the variant\."):
            open_checkpoint(path, "gemma-3-270m")
        with pytest.raises(CheckpointError, match=r"There is no variant 'gemma-9'; choose one of "):
            open_checkpoint(path, "gemma-9")
        variant = Variant("Gemma 3", replace(config, max_length=7), 1, ())
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(VARIANTS, "tiny", variant)
            assert open_checkpoint(path, "tiny").config == config
