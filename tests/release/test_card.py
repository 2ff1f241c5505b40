"""The folder of a release: its card by the hub's own parsers, its notices and its provenance."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from safetensors import safe_open
from safetensors.numpy import load_file

from gemwright.errors import GemwrightError
from gemwright.release.publishing.checks import check_release
from gemwright.release.publishing.notices import REQUIRED_SENTENCE
from gemwright.release.publishing.prepare import Options, prepare
from gemwright.release.publishing.provenance import write_sums
from tests.release.conftest import write_results
from tests.release.made import BASE, Made


@pytest.fixture(scope="module")
def made(tuned: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "hens"
    prepare(tuned.adapter, out, Options(base=BASE, records=tuple(tuned.records)))
    return out


@pytest.fixture
def released(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "hens"))


@pytest.fixture
def own(tuned: Made, tmp_path: Path) -> Made:
    """A copy of the run to change."""
    folder = Path(shutil.copytree(tuned.folder, tmp_path / "tuned"))
    return Made(folder, folder / "mine" / "adapter", tuned.base)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_all_checks_pass(made: Path):
    assert check_release(made) == []


def test_metadata_are_those_of_the_hub(made: Path):
    card = ModelCard((made / "README.md").read_text())
    data = card.data.to_dict()
    assert {name: data[name] for name in ("license", "base_model", "base_model_relation", "library_name")} == {
        "license": "gemma",
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
    }
    assert data["pipeline_tag"] == "text-generation"
    name, results = model_index_to_eval_results(data["model-index"])
    assert eval_results_to_model_index(name, results) == data["model-index"]
    assert (name, results[0].dataset_type, results[0].metric_type) == ("hens", "ybisk/piqa", "acc_norm")
    assert results[0].metric_value == 65.43


def test_results_are_those_of_the_hub(made: Path):
    (file,) = (made / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ybisk/piqa", "piqa", 65.43)
    assert entry.notes == "0-shot, acc_norm, 312 of 1,838 items, 95% interval 60.1 to 70.3"


def test_card_says_what_was_recorded(made: Path, tuned: Made):
    text = (made / "README.md").read_text()
    digest = hashlib.sha256(next((tuned.folder / "clean" / "data").iterdir()).read_bytes()).hexdigest()
    assert f"| `raw-00000.jsonl` | training | `{digest}` |" in text
    assert "3 of 4 records stayed (75.0%)." in text
    assert "| exact | 4 | 1 | 0 |" in text
    assert "100 tokens in 2 steps, of which 80 were learned." in text
    assert "The training loss went from 3.0000 to 2.0000 nats per token." in text
    assert "| PIQA | acc\\_norm | 0 | 312 of 1,838 | 65.4 | 60.1 to 70.3 | 67.7 |" in text
    assert "| xstest | requests | refused (higher is better) | 25.0 | 19.0 to 33.0 | 200 |" in text
    assert "- Safety suites whose data were not there: bbq." in text
    assert "Memorization was not measured." in text
    assert "- **Intended use:** not stated by the authors." in text
    assert "Carbon was not estimated" in text
    assert str(tuned.folder) not in text


def test_answers_and_carbon(tuned: Made, answers: Path, tmp_path: Path):
    content = prepare(tuned.adapter, tmp_path / "out", Options(base=BASE, answers=answers))
    text = (tmp_path / "out" / "README.md").read_text()
    assert content.answers.unanswered == []
    for said in ("Stories for a demonstration.", "It knows few words.", "https://example.com/hens", "- en\n"):
        assert said in text
    # 3 s at 200 W with an overhead of 1.1 are 660 J; at 400 g per kWh that is 0.0733 g.
    assert "that is 0.000183 kWh and 7.33e-05 kg of CO2 equivalent." in text
    assert check_release(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("summary = 1", "summary is not a text"),
        ("purpose = 'x'", "'purpose', which is not asked; choose from summary"),
        ("languages = 'en'", "languages is not a list"),
        ("[carbon]\nwatts = 1", "carbon needs watts, grams_per_kwh and their source"),
        ("= 1", "cannot be read as TOML"),
    ],
)
def test_refused_answers(tuned: Made, tmp_path: Path, text: str, said: str):
    (tmp_path / "answers.toml").write_text(text)
    with pytest.raises(GemwrightError, match=said):
        prepare(tuned.adapter, tmp_path / "out", Options(base=BASE, answers=tmp_path / "answers.toml"))
    assert not (tmp_path / "out").exists()


def test_notices(made: Path, tuned: Made):
    notice = (made / "NOTICE").read_text()
    assert notice.startswith(REQUIRED_SENTENCE)
    assert "Modified from google/gemma-3-270m: tuned with LoRA for 2 steps, written by gemwright 0.1.0 on 2" in notice
    assert "section 3.2" in (made / "LICENSE").read_text()
    assert (made / "GEMMA_TERMS_OF_USE.txt").read_text().startswith("Gemma Terms of Use\nModel Derivatives and more. ")
    with safe_open(made / "adapter_model.safetensors", "np") as file:
        assert file.metadata()["description"] in notice
    before, after = (load_file(place / "adapter_model.safetensors") for place in (tuned.adapter, made))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read_json(made / "adapter_config.json")["base_model_name_or_path"] == BASE


def test_sums_are_those_of_coreutils(released: Path):
    command = ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=released, check=False).returncode == 0
    files = {str(file.relative_to(released)) for file in released.rglob("*") if file.is_file()}
    listed = {line[66:] for line in (released / "SHA256SUMS").read_text().splitlines()}
    assert listed == files - {"SHA256SUMS"}
    with (released / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    result = subprocess.run(command, cwd=released, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "adapter_model.safetensors: FAILED\n")


def test_provenance(made: Path, tuned: Made):
    """The fields that in-toto's statement v1 and SLSA's provenance v1 require, and the digests of all inputs."""
    statement = read_json(made / "provenance.json")
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    for one in statement["subject"]:
        assert one["digest"] == {"sha256": hashlib.sha256((made / one["name"]).read_bytes()).hexdigest()}
    assert {one["name"] for one in statement["subject"]} >= {"adapter_model.safetensors", "README.md", "bom.cdx.json"}
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert definition["buildType"].startswith("pkg:")
    assert definition["externalParameters"]["recipe"]["steps"] == 2
    inputs = {one["name"]: one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    data = next((tuned.folder / "clean" / "data").iterdir())
    beside = [tuned.base, data]
    assert {name: inputs[name] for name in (file.name for file in beside)} == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in beside
    }
    assert details["builder"]["id"]
    assert details["metadata"] == {"startedOn": "2025-11-30T10:53:21Z", "finishedOn": "2025-11-30T10:53:22Z"}
    assert len(details["byproducts"]) == 2


def test_evaluation_of_other_weights_is_refused(own: Made, tmp_path: Path):
    options = Options(base=BASE, records=(own.evaluation,))
    prepare(own.adapter, tmp_path / "before", options)
    weights = bytearray((own.adapter / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (own.adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(GemwrightError, match=r"results.json was made with other weights than .* has now"):
        prepare(own.adapter, tmp_path / "after", options)
    assert not (tmp_path / "after").exists()
    write_results(own)
    prepare(own.adapter, tmp_path / "after", options)


def test_evaluation_without_digest_is_judged_by_its_time(own: Made, tmp_path: Path):
    report = own.safety / "report.json"
    report.write_text(json.dumps(read_json(report) | {"made_with": {}}))
    prepare(own.adapter, tmp_path / "newer", Options(base=BASE, records=(own.safety,)))
    assert check_release(tmp_path / "newer") == []
    os.utime(report, (1e9, 1e9))
    with pytest.raises(GemwrightError, match=r"made with other weights than .* has now, or before they were written"):
        prepare(own.adapter, tmp_path / "older", Options(base=BASE, records=(own.safety,)))


def test_evaluations_of_the_base_are_shown_beside(own: Made, tmp_path: Path):
    path = own.evaluation / "results.json"
    results = read_json(path)
    results["made_with"]["adapters"] = []
    path.write_text(json.dumps(results))
    prepare(own.adapter, tmp_path / "out", Options(base=BASE, records=(own.evaluation,)))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The base model `google/gemma-3-270m`, measured on" in text
    assert "model-index" not in text
    assert "- Benchmarks of this model." in text


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("results.json", '{"made_with": {}, "results": [{"benchmark": 1}]}'),
        ("results.json", '{"made_with": [], "results": 7}'),
        ("report.json", '{"version": 1, "suites": [{"name": "x", "findings": []}], "scorers": {}}'),
        ("report.json", '{"records": "many", "kept": 1, "steps": [], "stamp": ""}'),
        ("report.json", '{"sources": [{}], "total": {}, "prefix": 50, "continuation": 50}'),
        ("report.json", "[1]"),
    ],
)
def test_damaged_records(tuned: Made, tmp_path: Path, name: str, damage: str):
    (tmp_path / name).write_text(damage)
    with pytest.raises(GemwrightError, match=f"{name}"):
        prepare(tuned.adapter, tmp_path / "out", Options(base=BASE, records=(tmp_path / name,)))


def test_names_of_files_are_no_markup(own: Made, tmp_path: Path):
    run = read_json(own.folder / "mine" / "run.json")
    run["data"]["sha256"] = {"/data/a`|<img src=x>\n# b.jsonl": "0" * 64}
    run["recipe"]["method"] = "lora | [x](http://x)"
    (own.folder / "mine" / "run.json").write_text(json.dumps(run))
    prepare(own.adapter, tmp_path / "out", Options(base=BASE))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| `a'/<img src=x> # b.jsonl` | training |" in text
    assert "| method | lora \\| \\[x\\](http://x) |" in text


def test_folder_of_something_else_stays(tuned: Made, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(GemwrightError, match="exists; choose another name"):
        prepare(tuned.adapter, tmp_path, Options(base=BASE))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_base_must_be_published(tuned: Made, tmp_path: Path):
    with pytest.raises(GemwrightError, match="which is no hub id; add --base"):
        prepare(tuned.adapter, tmp_path / "out", Options())


def damage_card(folder: Path, text: str) -> None:
    """Add text to the card of a release, and list its new digest, as a person may do."""
    with (folder / "README.md").open("a") as file:
        file.write(f"\n{text}\n")
    write_sums(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ask hen.example@example.com for more.", "has personal data (EMAIL)"),
        ("Call +1 212 555 0123 for more.", "has personal data (PHONE)"),
        ("token hf_" + "Ab3" * 12, "has a token of Hugging Face"),
        ("AKIA" + "ABCD" * 4, "has a key of AWS"),
        ("-----BEGIN EC PRIVATE KEY-----", "has a private key"),
        ("https://hen:egg-and-hen@example.com/", "has a password in an address"),
        ("api_key = 'abcdefgh12345'", "has a password or key"),
        ("from /home/hen/data/train.jsonl", "has the path of a home folder"),
    ],
)
def test_card_with_a_secret_is_refused(released: Path, text: str, said: str):
    lines = len((released / "README.md").read_text().splitlines()) + 2
    damage_card(released, text)
    problems = check_release(released)
    assert [problem for problem in problems if said in problem and f"README.md, line {lines}, " in problem]
    assert not any(text in problem for problem in problems)


@pytest.mark.parametrize("name", ["NOTICE", "LICENSE", "GEMMA_TERMS_OF_USE.txt"])
def test_missing_license_file_is_refused(released: Path, name: str):
    (released / name).unlink()
    write_sums(released)
    assert any("license file" in problem and name.partition(".")[0] in problem for problem in check_release(released))


def test_license_of_the_card_is_that_of_the_base(released: Path):
    path = released / "README.md"
    path.write_text(path.read_text().replace("license: gemma", "license: mit"))
    write_sums(released)
    assert "README.md has the license mit, and google/gemma-3-270m is under the Gemma Terms of Use" in check_release(
        released
    )


def test_other_weights_are_refused(released: Path):
    weights = released / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert any("its evaluations are of older weights" in problem for problem in check_release(released))
    write_sums(released)
    assert check_release(released) == [
        "adapter_model.safetensors is not the file that provenance.json and the evaluations are about"
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("more.txt", b"more", "more.txt is not listed in SHA256SUMS"),
        ("pytorch_model.bin", b"\x80\x04.", "pytorch_model.bin may be a pickle"),
        ("README.md", b"# hens", "README.md has no license or no base_model"),
        ("README.md", b"---\nlicense: [\n---\n", "README.md has no valid metadata"),
        ("README.md", b"\xff\xfe", "README.md has no valid metadata"),
        ("provenance.json", b"{}", "provenance.json is missing or damaged"),
        ("provenance.json", b'{"subject": 1, "predicate": {"buildDefinition": 3}}', "provenance.json is missing"),
        ("SHA256SUMS", b"\xff", "SHA256SUMS is missing or damaged"),
        ("adapter_model.safetensors", b"{", "adapter_model.safetensors"),
    ],
)
def test_damaged_release_is_refused(released: Path, name: str, content: bytes, said: str):
    (released / name).write_bytes(content)
    assert any(said in problem for problem in check_release(released))


def test_link_out_of_the_folder_is_refused(released: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    (released / "more.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(GemwrightError, match=r"more\.txt is no file of the folder"):
        check_release(released)
