import subprocess
from pathlib import Path

import pytest

from gemwright.cli import main
from gemwright.generate.watermark import create_watermark
from tests.tiny.gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "cut.gguf").write_bytes(tiny.read_bytes()[:5000])
    (folder / "noise.gguf").write_bytes(bytes(range(256)) * 20)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "empty").mkdir()
    create_watermark(folder / "keys.json")
    write_tiny_gguf(folder / "short.gguf", max_length=64)
    return {"tiny": tiny, "folder": folder}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("generate", "There is no prompt; pass it as an argument or on standard input."),
        ("score", "There is no text; pass it as an argument or on standard input."),
        ("generate x -m {folder}/none.gguf", "There is no file, folder or published model called"),
        ("generate x -m nothing-here", "There is no file, folder or published model called 'nothing-here'"),
        ("generate x -m {folder}/cut.gguf", "damaged"),
        ("inspect {folder}/noise.gguf", "does not start with 'GGUF'"),
        ("chat -m {folder}/empty", "holds no safetensors, GGUF or Orbax checkpoint"),
        ("inspect google/not-here", "fetch it with `gemwright pull google/not-here`"),
        ("generate {long} -m {folder}/short.gguf", "tokens and the model's context is 64; shorten it"),
        ("generate x -m {tiny} --temperature nan", "temperature is nan, and it must lie between 0.0 and 100.0."),
        ("generate x -m {tiny} --temperature=-1", "temperature is -1.0"),
        ("generate x -m {tiny} --top-k=-3", "top_k is -3"),
        ("generate x -m {tiny} --top-p 0", "top_p is 0, which keeps no token"),
        ("generate x -m {tiny} --seed=-3", "seed is -3"),
        ("generate x -m {tiny} --seed 4294967296", "seed is 4294967296"),
        ("generate x -m {tiny} --stop=", "stop string"),
        ("generate x -m {tiny} --dtype float16", "exceed its range (65504)"),
        (
            "generate x -m {tiny} --dtype float8",
            "dtype 'float8' is not supported; use one of stored, float32, bfloat16.",
        ),
        ("score  -m {tiny}", "The text is empty"),
        ("score - -m {tiny}", "There is no text; pass it as an argument or on standard input."),
        ("generate - -m {tiny}", "There is no prompt; pass it as an argument or on standard input."),
        ("generate --file {folder}/none.txt -m {tiny}", "none.txt cannot be read (No such file or directory)"),
        ("generate x --system good -m {tiny}", "add --chat to apply it"),
        ("see - caption -m {tiny}", "There is no image; pass it as an argument or on standard input."),
        ("see photo.png caption --draw {folder} -m {tiny}", "is a folder; choose the name of a file."),
        ("see photo.png caption --draw {folder}/none/a.png -m {tiny}", "does not exist; choose another path."),
        ("see photo.png caption --draw {folder}/a.txt -m {tiny}", "ends in .png, .jpg, .jpeg, .webp"),
        ("infill - --line 1 -m {tiny}", "There is no code"),
        ("watermark {tiny}", "exists, and texts with its keys may too; choose another name."),
        ("watermark {folder}/none/keys.json", "cannot be written (No such file or directory); choose another path."),
        ("detect hello --watermark {folder}/none.json -m {tiny}", "make new keys with `gemwright watermark"),
        ("detect hello --watermark {tiny} -m {tiny}", "is not JSON; make new keys with `gemwright watermark FILE`."),
        ("detect a --watermark {folder}/keys.json -m {tiny}", "tokens, and the watermark shows in 5 or more; pass a"),
        ("generate a --watermark {tiny} -m {tiny}", "is not JSON"),
        ("generate a --watermark {folder}/keys.json -m {tiny} --temperature 0", "use a temperature above 0"),
        ("generate a --watermark {folder}/keys.json -m {tiny} --temperature 1 --top-k 0", "set top_k, from 1 to 256"),
        ("tokenize --decode 1,x -m {tiny}", "'x' is not a token id; use numbers from 0 to"),
        ("tokenize --decode 999999999 -m {tiny}", "is not a token id"),
        ("rm {tiny} --yes", "is not in the hub's cache, and gemwright deletes no other files."),
        ("rm gemma-3-1b-it --yes", "is not in the hub's cache; `gemwright list` lists the models."),
        ("score x --file {folder}/latin.txt -m {tiny}", "TEXT and --file cannot be combined"),
        ("score --file {folder}/latin.txt -m {tiny}", "latin.txt is not UTF-8 text (byte 3)"),
        ("score --file {folder}/none.txt -m {tiny}", "none.txt cannot be read (No such file or directory)"),
        ("score --file {folder} -m {tiny}", "cannot be read (Is a directory)"),
        ("infill -m {tiny}", "The position of the gap is missing"),
        ("infill {folder}/latin.txt -m {tiny}", "The position of the gap is missing"),
        ("infill {folder}/latin.txt --line 1 --before x -m {tiny}", "The position of the gap is missing"),
        ("convert {tiny} {folder}/empty --to huggingface", "empty exists"),
        ("quantize {tiny} {folder}/empty", "empty exists"),
        ("pull not//a-name", "There is no file, folder or published model called 'not//a-name'"),
    ],
)
def test_one_sentence_and_code_2(run, places, arguments, sentence):
    values = {name: str(path) for name, path in places.items()}
    result = run(*(word.format(**values, long="ab" * 100) for word in arguments.split(" ")))
    assert result.code == 2
    assert result.out == ""
    assert sentence in result.err
    assert result.err.startswith("gemwright: ")
    assert result.err.count("\n") == 1


def test_input_is_not_text(run, tiny):
    result = run("generate", "-m", tiny, stdin=b"caf\xe9")
    assert (result.code, result.err) == (
        2,
        "gemwright: Standard input is not UTF-8 text (byte 3); convert it to UTF-8 first.\n",
    )


def test_unexpected_errors_are_not_hidden(monkeypatch):
    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gemwright.cli.app.app", broken)
    with pytest.raises(ZeroDivisionError):
        main()


def test_absent_device(spawn, tiny):
    process = spawn("generate", "x", "-m", tiny, env={"JAX_PLATFORMS": "nonsense"}, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.decode() == (
        "gemwright: JAX finds no device with JAX_PLATFORMS='nonsense'; unset it or install JAX for that device.\n"
    )
