"""Round trips between formats are exact, and the reference program of each format loads a converted file."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemwright
from gemwright.checkpoint import convert as convert_module
from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.files.gguf import open_gguf
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.mixtures import MIXTURES
from gemwright.checkpoint.names.gguf import map_gguf
from gemwright.checkpoint.open import open_checkpoint
from gemwright.errors import CheckpointError
from gemwright.model.transformer import forward, logits
from gemwright.text.tokenizer import Tokenizer
from tests.helpers import run_in_new_process
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import TEXT, TEXT_KINDS, make_model, write_model
from tests.tiny.vocabulary import make_vocabulary

DTYPES = [torch.float32, torch.bfloat16]
GGUF_KINDS = [kind for kind in TEXT_KINDS if kind != "vaultgemma"]  # llama.cpp has no VaultGemma
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for shard in folder.glob("*.safetensors") for name, t in load_file(shard).items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], but: str = "none") -> None:
    """Assert equality bit by bit, except for tensors whose name ends with `but`."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert name.endswith(but) or torch.equal(ours[name], tensor), name


def with_gains(folder: Path, gains: Any) -> Path:
    """Replace the values of the norms in a folder."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weights[name] = torch.as_tensor(gains(weight.shape)).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def gains(exponents: tuple[int, int]) -> Any:
    """Return a maker of random bfloat16 values of either sign with exponents in a closed range."""
    random = np.random.default_rng(0)

    def draw(shape: Any) -> torch.Tensor:
        exponent = random.integers(exponents[0], exponents[1] + 1, shape)
        significand = 1 + random.integers(0, 128, shape) / 128
        return torch.tensor(random.choice([-1.0, 1.0], shape) * significand * 2.0**exponent).bfloat16()

    return draw


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_folder_converted_to_its_own_format_is_unchanged(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", kind, dtype)
    convert(source, tmp_path / "again", "huggingface")
    assert_same(tensors(tmp_path / "again"), tensors(source))
    assert open_checkpoint(tmp_path / "again").config == open_checkpoint(source).config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "source"]


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_bfloat16_goes_through_gguf_unchanged(kind: str, tmp_path: Path) -> None:
    """The file stores 1 + gain in float32, which is exact for every bfloat16 gain from 2^-16 on."""
    source = with_gains(write_model(tmp_path / "source", kind, torch.bfloat16), gains((-16, 12)))
    convert(source, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "huggingface")
    assert_same(tensors(tmp_path / "back"), tensors(source))
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config


def test_smaller_gains_lose_at_most_half_a_unit_of_float32(tmp_path: Path) -> None:
    source = with_gains(write_model(tmp_path / "source", dtype=torch.bfloat16), gains((-40, -17)))
    convert(source, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "huggingface", "float32")
    back, original = tensors(tmp_path / "back"), tensors(source)
    for name, weight in original.items():
        lost = (back[name] - weight.float()).abs().max()
        assert lost == 0 if not name.endswith("norm.weight") else 0 < lost <= 2.0**-24


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_float32_is_rounded_once_by_gguf(kind: str, tmp_path: Path) -> None:
    """Matrices are unchanged. A gain, here from -0.5 to 1, is rounded to a multiple of 2^-24 or 2^-23 once."""
    source = write_model(tmp_path / "source", kind)
    convert(source, tmp_path / "1.gguf", "gguf")
    convert(tmp_path / "1.gguf", tmp_path / "2", "huggingface")
    convert(tmp_path / "2", tmp_path / "3.gguf", "gguf")
    original, back = tensors(source), tensors(tmp_path / "2")
    assert_same(back, original, but="norm.weight")
    for name in original:
        assert (back[name] - original[name]).abs().max() <= 2.0**-24
    first, third = open_gguf(tmp_path / "1.gguf"), open_gguf(tmp_path / "3.gguf")
    for name in first.tensors:
        np.testing.assert_array_equal(first.raw(name), third.raw(name))


ERROR = {
    "float32": 0.0,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "q8_0": 0.5 / 127 + 2.0**-11,
    "q4_0": 1 / 8 + 2.0**-11,
}
"""Maximum error of a dtype relative to the largest value in a block of 32.

In 8 bits half a step, in 4 a whole one, which is what the end of the range lacks; both have float16 scales. Encodings
with a searched scale are in `test_mixtures`.
"""


@pytest.mark.parametrize("dtype", ERROR)
def test_gguf_py_reads_what_is_written(dtype: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    convert(source, path := tmp_path / "model.gguf", "gguf", dtype)
    checkpoint = open_checkpoint(source)
    original, file = tensors(source), open_gguf(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    mapping = map_gguf(checkpoint.config)
    assert theirs.keys() == {stored.name for stored in mapping.values()}
    for name, stored in mapping.items():
        tensor = theirs[stored.name]
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(stored.shape)
        np.testing.assert_array_equal(file.read(stored.name).astype(np.float32), read)
        expected = original[checkpoint.mapping[name].name].numpy() + np.float32(stored.offset)
        if len(stored.shape) == 1:
            assert tensor.tensor_type.name == "F32"
            np.testing.assert_array_equal(read, expected)
            continue
        assert tensor.tensor_type.name == ("Q8_0" if (name, dtype) == ("embed", "q4_0") else MIXTURES[dtype].encoding)
        error, blocks = np.abs(read - expected).reshape(-1, 32), np.abs(expected).reshape(-1, 32).max(axis=1)
        assert np.all(error.max(axis=1) <= ERROR[dtype] * blocks)
    load_weights(file, mapping, checkpoint.config, "float32")


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000], ids=["one file", "shards"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_transformers_loads_the_folder(
    kind: str, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = partial(convert_module.write_shards, shard_bytes=shard_bytes)
    monkeypatch.setattr(convert_module, "write_shards", write)
    convert(write_model(tmp_path / "source", kind), tmp_path / "made", "huggingface")
    assert (tmp_path / "made" / "model.safetensors.index.json").exists() == (shard_bytes == 40_000)
    checkpoint = open_checkpoint(tmp_path / "made")
    tokenizer = Tokenizer(checkpoint.vocabulary())
    ids = tokenizer.with_bos(tokenizer.encode(TEXT))
    assert AutoTokenizer.from_pretrained(tmp_path / "made")(TEXT).input_ids == ids

    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = made.eval()(torch.tensor([ids])).logits.numpy()
        np.testing.assert_array_equal(theirs, make_model(kind)(torch.tensor([ids])).logits.numpy())
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32")
    hidden, _ = forward(checkpoint.config, weights, jnp.asarray([ids]))
    np.testing.assert_allclose(logits(checkpoint.config, weights, hidden), theirs, rtol=0, atol=1e-4)


def test_settings_survive_every_conversion(tmp_path: Path) -> None:
    """Stop tokens, the chat template and sampling settings."""
    source = write_model(tmp_path / "source")
    turn_end = open_checkpoint(source).vocabulary().pieces.index("<end_of_turn>")
    settings = {"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": [1, turn_end]}
    (source / "generation_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text(TEMPLATE)
    convert(source, tmp_path / "again", "huggingface")
    convert(source, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "huggingface")
    for made in ("again", "model.gguf", "back"):
        checkpoint = open_checkpoint(tmp_path / made)
        assert checkpoint.chat_template == TEMPLATE
        assert checkpoint.stop_ids == (1, turn_end)
    assert open_checkpoint(tmp_path / "again").generation.items() >= settings.items()
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == TEMPLATE


def test_named_chat_templates_survive_every_conversion(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "chat_template.jinja").write_text(TEMPLATE)
    (source / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (source / "additional_chat_templates" / f"{name}.jinja").write_text(f"{TEMPLATE}{name}")
    expected = AutoTokenizer.from_pretrained(source).chat_template
    assert set(expected) == {"default", "tool_use", "rag"}
    convert(source, tmp_path / "again", "huggingface")
    convert(source, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "huggingface")
    for made in ("again", "model.gguf", "back"):
        assert open_checkpoint(tmp_path / made).chat_templates == expected
        if made != "model.gguf":
            assert AutoTokenizer.from_pretrained(tmp_path / made).chat_template == expected
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert sorted(fields["tokenizer.chat_templates"].contents()) == ["rag", "tool_use"]


def test_names_of_chat_templates_are_no_paths(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    rows = [{"name": name, "template": name} for name in ("default", "../../up", "a b", "/etc/x")]
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": rows}))
    convert(source, tmp_path / "made", "huggingface")
    written = {str(file.relative_to(tmp_path / "made")) for file in (tmp_path / "made").rglob("*.jinja")}
    names = ("______up", "a_b", "_etc_x")
    assert written == {"chat_template.jinja", *(f"additional_chat_templates/{name}.jinja" for name in names)}


def test_a_gguf_has_exactly_one_row_per_token(tmp_path: Path) -> None:
    """llama.cpp takes the vocabulary's size from the tokenizer; releases pad the table."""
    source, vocab = write_model(tmp_path / "source"), make_vocabulary().size
    settings = json.loads((source / "config.json").read_text()) | {"vocab_size": vocab + 64}
    weights = load_file(source / "model.safetensors")
    name = "model.embed_tokens.weight"
    padded = weights | {name: torch.cat([weights[name], torch.ones(64, 64)])}
    save_file(padded, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps(settings))
    assert open_checkpoint(source).config.vocab == vocab + 64
    convert(source, tmp_path / "model.gguf", "gguf")
    file = open_gguf(tmp_path / "model.gguf")
    np.testing.assert_array_equal(file.read("token_embd.weight"), weights[name].numpy())
    assert len(file.metadata["tokenizer.ggml.tokens"]) == vocab


def test_an_untied_head_survives_every_conversion(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "source.gguf")
    convert(source, tmp_path / "folder", "huggingface")
    assert "lm_head.weight" in tensors(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.gguf", "gguf")
    first, back = open_gguf(source), open_gguf(tmp_path / "back.gguf")
    assert first.tensors.keys() == back.tensors.keys()
    for name in first.tensors:
        np.testing.assert_array_equal(first.read(name), back.read(name))


def test_values_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    source = with_gains(write_model(tmp_path / "source"), lambda shape: np.full(shape, 1e6))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers.*norm.*too large for float16"):
        convert(source, tmp_path / "folder", "huggingface", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    convert(source, tmp_path / "model.gguf", "gguf", "float16")  # whose gains are float32
    assert open_gguf(tmp_path / "model.gguf").read("output_norm.weight")[0] == 1e6 + 1


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    for target, to in ((source, "huggingface"), (source / "config.json", "gguf")):
        with pytest.raises(CheckpointError, match=f"{target} exists; choose another name"):
            convert(source, target, to)


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
@pytest.mark.parametrize("target", ["/", "/dev/null", ".", "..", "~user-file"])
def test_no_existing_target_is_advised_to_be_removed(to: Any, target: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    if target == "~user-file":
        target = str(tmp_path / "file.gguf")
        Path(target).write_text("of the user")
    with pytest.raises(CheckpointError, match=r"exists; choose another name\.$"):
        convert(source, Path(target), to)


@pytest.mark.parametrize(("to", "name"), [("gguf", "x.txt"), ("gguf", "x.bin"), ("huggingface", "y.gguf")])
def test_a_name_for_another_format_is_refused(to: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} is no name for a (GGUF file|folder)"):
        convert(write_model(tmp_path / "source"), tmp_path / name, to)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("to", "dtype"), [("gguf", "int4"), ("huggingface", "q8_0")])
def test_an_unknown_dtype_is_refused(to: Any, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"The format {to} has no dtype '{dtype}'; choose one of float32"):
        convert(write_model(tmp_path / "source"), tmp_path / "target", to, dtype)


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_a_target_that_cannot_be_written_is_one_sentence(to: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    target = source / "config.json" / "target"
    with pytest.raises(CheckpointError, match=f"{target}.* cannot be written .*; choose another place"):
        convert(source, target, to)


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_a_damaged_source_leaves_nothing_behind(to: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.norm\.weight is missing"):
        convert(source, tmp_path / "deep" / "target", to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


LIMITED = """
import resource, sys
from pathlib import Path
from gemwright.checkpoint.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_a_write_that_fails_leaves_nothing_behind(to: str, tmp_path: Path) -> None:
    """A real failure in the middle of a file: the process is limited to files of 100 kB."""
    source = write_model(tmp_path / "source")
    command = [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "target"), to]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"CheckpointError {tmp_path}/target")
    assert "cannot be written (File too large); choose another place." in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SLOW = """
import sys, time
from pathlib import Path
from gemwright.checkpoint.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], progress=lambda done, total: time.sleep(0.2))
"""


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob("gemwright-*.partial"))


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_an_interrupt_leaves_nothing_behind(to: str, tmp_path: Path) -> None:
    """It does not delete a user's file with a similar name either."""
    source = write_model(tmp_path / "source")
    (tmp_path / "target.partial").write_text("of the user")
    command = [sys.executable, "-c", SLOW, str(source), str(tmp_path / "target"), to]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 60
        while not temporaries(tmp_path) and time.monotonic() < limit:
            time.sleep(0.02)
        assert temporaries(tmp_path)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert stderr.endswith("KeyboardInterrupt\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target.partial"]
    assert (tmp_path / "target.partial").read_text() == "of the user"


MEET = """
import sys, time
from pathlib import Path
from gemwright.checkpoint.convert import convert
source, target, to, dtype = sys.argv[1:]

def meet(done, total):
    if done < total:  # both wait with a part of the weights written
        (Path(source) / f"{dtype}.started").touch()
        while len(list(Path(source).glob("*.started"))) < 2:
            time.sleep(0.02)

try:
    convert(Path(source), Path(target), to, dtype, progress=meet)
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_two_processes_with_one_target_leave_a_complete_one(to: Any, tmp_path: Path) -> None:
    """The last file replaces the first; the last folder is refused. A user's file with a similar name is unchanged."""
    source = write_model(tmp_path / "source")
    (tmp_path / "made").mkdir()
    name = "target.gguf" if to == "gguf" else "target"
    target, users = tmp_path / "made" / name, tmp_path / "made" / f"{name}.partial"
    users.write_text("of the user")
    processes = [
        subprocess.Popen([sys.executable, "-c", MEET, str(source), str(target), to, dtype], stderr=subprocess.PIPE)
        for dtype in ("float32", "bfloat16")
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == ([0, 0] if to == "gguf" else [0, 1])
    if to == "huggingface":
        assert f"{target}: exists; choose another name." in "".join(errors)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [name, f"{name}.partial"]
    assert users.read_text() == "of the user"
    found = contents(target)
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        convert(source, tmp_path / dtype / name, to, dtype)
    assert found in [contents(tmp_path / dtype / name) for dtype in ("float32", "bfloat16")]


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of each file of a folder."""
    return {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}


PROMPT, WRITTEN = "The capital of France is", 12


@pytest.fixture(scope="module")
def demo_text(demo_gguf: Path) -> str:
    """Greedy text of the demo in float32."""
    return run_in_new_process(_continue_with_gemwright, demo_gguf)


def _continue_with_gemwright(path: Path) -> str:
    return gemwright.load(path, dtype="float32").generate(PROMPT, max_tokens=WRITTEN, temperature=0.0).text


def _continue_with_transformers(folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=WRITTEN, do_sample=False)[0, given.input_ids.shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_transformers_continues_the_converted_demo_with_the_same_text(
    demo_gguf: Path, demo_text: str, tmp_path: Path
) -> None:
    convert(demo_gguf, folder := tmp_path / "demo", "huggingface")
    assert demo_text
    assert run_in_new_process(_continue_with_transformers, folder) == demo_text
    (folder / "model.safetensors").unlink()  # a gigabyte


@pytest.mark.peer
def test_llama_cpp_continues_the_converted_demo_with_the_same_text(
    demo_gguf: Path, demo_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False  # its AMX kernels crash on some virtual machines
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: parameters)
    convert(demo_gguf, path := tmp_path / "demo.gguf", "gguf")
    peer = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, verbose=False)
    path.unlink()
    assert peer(PROMPT, max_tokens=WRITTEN, temperature=0)["choices"][0]["text"] == demo_text
