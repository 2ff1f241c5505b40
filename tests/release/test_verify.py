"""The conformance report of a checkpoint, and the comparison of a conversion with its source."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.convert_adapter import convert_adapter
from gemwright.checkpoint.files.gguf import GgufTensor, open_gguf, write_gguf
from gemwright.checkpoint.files.safetensors import SafetensorsTensor, open_safetensors, write_safetensors
from gemwright.checkpoint.open import open_checkpoint
from gemwright.checkpoint.quantize import quantize
from gemwright.cli import files, main
from gemwright.cli.verify import verify
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.model.config import Attention
from gemwright.release.verify.checkpoint import verify_checkpoint
from gemwright.release.verify.definition import differences, named_checkpoint
from gemwright.release.verify.report import Report
from gemwright.release.verify.source import verify_against
from gemwright.text.chat import GEMMA3
from gemwright.variants import VARIANTS
from tests.release.models import write_small_gguf
from tests.tiny.adapter import write_tiny_adapter

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_gguf(tmp_path_factory.mktemp("verify") / "small.gguf", chat_template=GEMMA3.template)


def failures(report: Report) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.result == "failed"}


Change = Callable[[str, np.ndarray], np.ndarray | None]


def keep(name: str, values: np.ndarray) -> np.ndarray:
    return values


def rewrite(path: Path, target: Path, change: Change, **metadata: object) -> Path:
    """Write a GGUF file again with changed tensors, or without those that become None, and other metadata."""
    file = open_gguf(path)
    changed = {name: change(name, np.array(file.read(name))) for name in file.tensors}
    kept = {name: values for name, values in changed.items() if values is not None}
    tensors = [GgufTensor(name, values.shape, "F32", [values]) for name, values in kept.items()]
    write_gguf(target, {**file.metadata, **metadata}, tensors)
    return target


def test_a_small_model_is_no_published_one(source: Path) -> None:
    """Everything that can be read of it is checked all the same."""
    report = verify_checkpoint(source)
    found = failures(report)
    assert not report.passed
    assert found["shape"].startswith("unlike gemma-3-270m, it has width 64 instead of 640")
    assert "id 105 is" in found["special tokens"]
    assert {check.name for check in report.checks if check.result == "ok"} >= {"tensors", "values", "template"}
    assert "likelihood" in found  # random weights know no text
    json.dumps(report.to_json(), allow_nan=False)


DAMAGED = "blk.1.ffn_up.weight"


def damage(path: Path, target: Path, kind: str) -> None:
    """Write a damaged copy of a file."""
    if kind == "missing":
        rewrite(path, target, lambda name, values: None if name == DAMAGED else values)
        return
    data, info = bytearray(path.read_bytes()), open_gguf(path).tensors[DAMAGED]
    values = np.frombuffer(data, np.float32, info.nbytes // 4, info.offset).reshape(info.shape)
    if kind == "exponent":  # the highest bit of an exponent, as if a byte of the file had changed
        values.view(np.uint32)[3, 5] |= 1 << 30
    elif kind == "nan":
        values[7] = np.nan
    else:
        values[10:20] = 0
    target.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        ("missing", "tensors", "tensor blk.1.ffn_up.weight is missing"),
        ("exponent", "values", "blk.1.ffn_up.weight has a value of"),
        ("nan", "values", "blk.1.ffn_up.weight has 64 values that are not finite"),
        ("zeros", "values", "blk.1.ffn_up.weight has 10 rows of zeros among 128"),
    ],
)
def test_damaged_values_are_named(source: Path, tmp_path: Path, kind: str, check: str, message: str) -> None:
    damage(source, damaged := tmp_path / "damaged.gguf", kind)
    assert message in failures(verify_checkpoint(damaged))[check]
    against = failures(verify_against(damaged, source))
    assert "blk.1.ffn_up.weight" in against["tensors" if kind == "missing" else "weights"]


def test_other_variants_and_templates_are_named(source: Path, tmp_path: Path) -> None:
    named = rewrite(source, tmp_path / "a.gguf", keep, **{"general.name": "Gemma 3 1B It"})
    assert failures(verify_checkpoint(named))["name"] == "it is named gemma-3-1b-it, and it is no published variant"
    wrong = {"tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    changed = rewrite(source, tmp_path / "b.gguf", keep, **wrong)
    assert "instead of '<bos><start_of_turn>user" in failures(verify_checkpoint(changed))["template"]
    assert "template" in failures(verify_against(changed, source))


def test_names_are_found_in_paths() -> None:
    names = {"gemma-3-1b-it-Q4_K_M.gguf", "gemma_2_9b", "recurrentgemma-2b-it", "paligemma2-3b-pt-224.npz", "mine.gguf"}

    class Named:
        file = None

        def __init__(self, name: str):
            self.path = Path("/models/" + name)

    found = {name: named_checkpoint(Named(name)) for name in names}  # pyright: ignore[reportArgumentType]
    assert found == {
        "gemma-3-1b-it-Q4_K_M.gguf": "gemma-3-1b-it",
        "gemma_2_9b": "gemma-2-9b",
        "recurrentgemma-2b-it": "recurrentgemma-2b-it",
        "paligemma2-3b-pt-224.npz": "paligemma2-3b-pt-224",
        "mine.gguf": None,
    }


def test_wrong_heads_of_the_same_size_are_named() -> None:
    """Eight heads of 128 have the shapes of four heads of 256."""
    published = VARIANTS["gemma-3-270m"].config
    layers = [replace(layer, mixer=replace(layer.mixer, heads=8, head_dim=128)) for layer in published.layers]
    assert all(isinstance(layer.mixer, Attention) for layer in layers)
    found = set(differences(replace(published, layers=tuple(layers)), published))
    assert found == {"heads 8 instead of 4 in 18 layers", "head_dim 128 instead of 256 in 18 layers"}


@pytest.mark.parametrize(
    ("to", "dtype", "detail"),
    [
        ("huggingface", "float32", "weights are equal bit for bit"),
        ("huggingface", "bfloat16", "are the source's rounded to their dtype, bit for bit"),
        ("gguf", "q8_0", "are quantized, with an error of at most"),
    ],
)
def test_conversions_conform_and_changed_ones_do_not(
    source: Path, tmp_path: Path, to: str, dtype: str, detail: str
) -> None:
    target = tmp_path / ("model.gguf" if to == "gguf" else "model")
    convert(source, target, to, dtype)  # pyright: ignore[reportArgumentType]
    report = verify_against(target, source)
    assert report.passed, report
    assert detail in next(check.detail for check in report.checks if check.name == "weights")
    assert next(check for check in report.checks if check.name == "run").result == "ok"
    swapped = {"blk.0.ffn_gate.weight": "blk.0.ffn_up.weight", "blk.0.ffn_up.weight": "blk.0.ffn_gate.weight"}
    other = rewrite(
        source, tmp_path / "other.gguf", lambda name, values: open_gguf(source).read(swapped.get(name, name))
    )
    problems = failures(verify_against(target, other))
    assert problems.keys() == {"weights", "run"}
    assert "mlp.gate" in problems["weights"] or "gate_proj" in problems["weights"] or "ffn_gate" in problems["weights"]


def test_one_changed_bit_is_found(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(source, folder, "huggingface", "bfloat16")
    file = open_safetensors(folder)
    arrays = {name: np.array(file.read(name)) for name in file.tensors}
    arrays["model.layers.1.mlp.down_proj.weight"].view(np.uint16)[5, 9] ^= 1
    tensors = [
        SafetensorsTensor(name, values.shape, values.dtype, lambda v=values: v) for name, values in arrays.items()
    ]
    write_safetensors(folder, tensors)
    found = failures(verify_against(folder, source))
    assert found.keys() == {"weights"}
    assert "model.layers.1.mlp.down_proj.weight has " in found["weights"]
    assert "and 1 such values" in found["weights"]


@pytest.mark.slow
def test_our_quantized_folders_conform(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "quantized", 4)
    assert verify_against(tmp_path / "quantized", source).passed


def test_adapters_conform(source: Path, tmp_path: Path) -> None:
    adapter = write_tiny_adapter(tmp_path / "adapter", open_checkpoint(source).config, str(source))
    other = write_tiny_adapter(tmp_path / "other", open_checkpoint(source).config, str(source), 1)
    convert_adapter(adapter, tmp_path / "adapter.gguf", "gguf")
    assert verify_against(tmp_path / "adapter.gguf", adapter).passed
    assert not verify_against(tmp_path / "adapter.gguf", other).passed


def test_the_command_has_exit_codes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(source, tmp_path / "copy.gguf", "gguf", "float16")
    verify(str(tmp_path / "copy.gguf"), against=str(source), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["passed"]
    assert {"shape", "tokenizer", "template", "tensors", "weights", "run"} == {
        check["name"] for check in record["checks"]
    }
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(source.read_bytes()[:-1000])
    for arguments, code in (([str(source)], 1), ([str(truncated)], 2), ([str(tmp_path / "absent")], 2)):
        monkeypatch.setattr("sys.argv", ["gemwright", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert "does not conform to its published definition: " in capsys.readouterr().out


def test_a_conversion_that_fails_its_check_is_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files.convert(str(source), tmp_path / "right.gguf", "gguf", "bfloat16")
    assert "Checked: " in capsys.readouterr().err
    real = convert

    def write_wrong(path: Path, target: Path, *rest: object) -> object:
        other = rewrite(path, tmp_path / "other.gguf", lambda name, values: values * np.float32(1.01))
        return real(other, target, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("gemwright.checkpoint.convert.convert", write_wrong)
    with pytest.raises(GemwrightError, match="was removed, as it differs from its source"):
        files.convert(str(source), tmp_path / "wrong.gguf", "gguf", "bfloat16")
    assert not (tmp_path / "wrong.gguf").exists()
    files.convert(str(source), tmp_path / "wrong.gguf", "gguf", "bfloat16", check=False)
    assert (tmp_path / "wrong.gguf").exists()


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        verify_checkpoint(tmp_path / "absent")


@pytest.mark.slow
def test_the_demo_weights_conform_and_damaged_ones_do_not(joined_demo: Path, tmp_path: Path) -> None:
    """Two matrices of one shape under each other's name change neither names nor shapes, only what the model says."""
    report = verify_checkpoint(joined_demo)
    assert report.passed, report
    likelihood = next(check for check in report.checks if check.name == "likelihood")
    assert 1.2 < likelihood.numbers["nll"] < 1.6
    data = joined_demo.read_bytes()
    for layer in range(4):
        a, b = (f"blk.{layer}.{name}.weight".encode() for name in ("ffn_gate", "ffn_up"))
        data = data.replace(len(a).to_bytes(8, "little") + a, b"@A@").replace(len(b).to_bytes(8, "little") + b, b"@B@")
        data = data.replace(b"@A@", len(b).to_bytes(8, "little") + b).replace(b"@B@", len(a).to_bytes(8, "little") + a)
    swapped = tmp_path / "gemma-3-270m-swapped.gguf"
    swapped.write_bytes(data)
    assert failures(verify_checkpoint(swapped)).keys() == {"likelihood"}
