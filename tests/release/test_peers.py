"""Files of a release by the programs that own their formats: run with `make test-release`."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.release.publishing.checks import check_release
from gemwright.release.publishing.croissant import prepare_data
from gemwright.release.publishing.prepare import Options, prepare
from gemwright.release.publishing.signing import sign, verify
from tests.release.conftest import TEXT
from tests.release.made import BASE, Made

pytestmark = pytest.mark.peer


@pytest.fixture
def released(tuned: Made, answers: Path, tmp_path: Path) -> Path:
    prepare(tuned.adapter, tmp_path / "hens", Options(base=BASE, records=tuple(tuned.records), answers=answers))
    return tmp_path / "hens"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key for P-256 and its public key, by openssl."""
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    for command in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)],
        ["ec", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return private, public


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def test_signature_by_the_command_of_model_signing(released: Path, keys: tuple[Path, Path]):
    pytest.importorskip("model_signing")
    private, public = keys
    signature = sign(released, private)
    arguments = ("verify", "key", "--public_key", public, "--signature", signature, released)
    assert model_signing(*arguments).returncode == 0
    verify(released, public)
    flip(released / "adapter_model.safetensors")
    assert "adapter_model.safetensors" in (found := model_signing(*arguments)).stdout + found.stderr
    assert found.returncode != 0
    with pytest.raises(GemwrightError, match=r"does not hold .*adapter_model\.safetensors"):
        verify(released, public)
    flip(released / "adapter_model.safetensors")
    verify(released, public)
    (released / "more.txt").write_text("more")
    with pytest.raises(GemwrightError, match=r"does not hold .*more\.txt"):
        verify(released, public)


def test_signature_that_model_signing_made(released: Path, keys: tuple[Path, Path]):
    pytest.importorskip("model_signing")
    private, public = keys
    signature = released / "model.sig"
    arguments = ("--private_key", private, "--signature", signature, "--ignore-paths", signature, released)
    made = model_signing("sign", "key", *arguments)
    assert made.returncode == 0, made.stderr
    verify(released, public)


def test_wrong_keys_and_signatures(released: Path, keys: tuple[Path, Path], tmp_path: Path):
    pytest.importorskip("model_signing")
    private, public = keys
    with pytest.raises(GemwrightError, match="gemwright sign"):
        verify(released, public)
    with pytest.raises(GemwrightError, match="cannot be signed"):
        sign(released, public)
    sign(released, private)
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", other], check=True)
    subprocess.run(["openssl", "ec", "-in", other, "-pubout", "-out", other], check=True, capture_output=True)
    with pytest.raises(GemwrightError, match="does not hold"):
        verify(released, other)
    for damage in (b"", b"{}", b"\xff\x00", b'{"dsseEnvelope": []}'):
        (released / "model.sig").write_bytes(damage)
        with pytest.raises(GemwrightError, match="does not hold"):
            verify(released, public)


def test_bill_of_materials_by_its_schema(released: Path):
    """The schema of CycloneDX 1.6, as OWASP's library ships it."""
    pytest.importorskip("cyclonedx")
    import jsonschema
    from cyclonedx.schema import _res
    from referencing import Registry, Resource

    folder = Path(next(iter(_res.__path__)))
    schemas = {
        name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.6", "spdx", "jsf-0.82")
    }
    registry = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()]
    )
    checker = jsonschema.Draft7Validator(
        schemas["bom-1.6"], registry=registry, format_checker=jsonschema.FormatChecker()
    )
    bom = json.loads((released / "bom.cdx.json").read_text())
    checker.validate(bom)
    card = bom["metadata"]["component"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"][0]["value"] == "65.43"
    assert card["considerations"]["technicalLimitations"] == ["It knows few words."]
    broken = json.loads(json.dumps(bom))
    broken["metadata"]["component"]["modelCard"]["modelParameters"]["task"] = 7
    with pytest.raises(jsonschema.ValidationError):
        checker.validate(broken)


def test_croissant_by_its_library(tuned: Made, answers: Path, tmp_path: Path):
    mlcroissant = pytest.importorskip("mlcroissant")
    answers.write_text(f'data_license = "cc0-1.0"\n{answers.read_text()}')
    prepare_data(tuned.folder / "clean", tmp_path / "hens", None, answers)
    assert check_release(tmp_path / "hens") == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        dataset = mlcroissant.Dataset(tmp_path / "hens" / "croissant.json")
        records = list(dataset.records("records-0"))
    assert not dataset.metadata.ctx.issues.errors
    assert [record["records-0/text"].decode() for record in records] == [f"{TEXT} {n}" for n in (1, 2, 3)]
    assert dataset.metadata.data_collection == "Four sentences written for this test, in the public domain."
