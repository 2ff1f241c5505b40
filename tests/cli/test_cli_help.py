import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemwright

SOURCE = Path(__file__).parents[2] / "src"
COMMANDS = (
    *("generate", "chat", "serve", "see", "infill", "score", "tokenize"),
    *(
        "list",
        "init",
        "train",
        "tune",
        "eval",
        "compare",
        "memorize",
        "filter",
        "export",
        "card",
        "sign",
        "release",
        "watermark",
    ),
    *("detect", "plan", "models", "pull", "rm", "du", "inspect", "verify", "convert", "merge", "quantize", "doctor"),
)

FAST = """
import sys
from gemwright.cli import main
for arguments in (["--help"], ["--version"], ["models"], ["models", "--json"], *([c, "--help"] for c in sys.argv[1:])):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments
    slow = {"jax", "numpy", "sentencepiece", "huggingface_hub"} & sys.modules.keys()
    assert not slow, (arguments, slow)
"""


def test_help_imports_nothing_slow():
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", FAST, *COMMANDS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate Continue one or several prompts." in " ".join(done.stdout.split())
    assert "--repetition-penalty" in done.stdout
    assert "[stored|float32|bfloat16]" in done.stdout
    assert "as stored (CPU with native kernels), float32 (other CPUs), bfloat16 (GPU, TPU)" in " ".join(
        done.stdout.split()
    )


def test_help_names_every_command(run):
    listed = run("--help").out.partition("Commands:")[2].split("\n")
    assert tuple(line.split()[0] for line in listed if line.strip()) == COMMANDS
    assert not [line for line in listed if line.endswith("...")]  # no sentence is cut short


def test_version(run):
    assert run("--version").out == f"gemwright {gemwright.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("generat", "No such command 'generat'; did you mean 'generate'?"),
        ("nonsense", "No such command 'nonsense'; see `gemwright --help`."),
        ("generate x --modle y", "No such option: --modle; did you mean --model?"),
        ("generate x --nonsense", "No such option: --nonsense; see `gemwright generate --help`."),
        ("generate x --max-tokens 0", "Invalid value for '--max-tokens': "),
        ("generate x --top-logprobs 65", "Invalid value for '--top-logprobs': "),
        ("generate x --top-logprobs=-1", "Invalid value for '--top-logprobs': "),
        ("generate x --temperature warm", "Invalid value for '--temperature': "),
        ("generate x --threads 0", "Invalid value for '--threads': "),
        ("generate x --variant gemma-3-27", "There is no variant 'gemma-3-27'; did you mean gemma-3-27b?"),
        ("generate x --variant nonsense", "There is no variant 'nonsense'; `gemwright models` lists the names."),
        ("generate x -m", "Option '-m' requires an argument; see "),
        ("convert a b", "Missing option '--to'; choose from: huggingface, gguf; see `gemwright convert --help`."),
        ("quantize a b --bits 5", "Invalid value for '--bits': '5' is not one of '8', '4'; see "),
        ("inspect", "Missing argument 'MODEL'; see `gemwright inspect --help`."),
        ("models x", "unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_sentence(run, arguments: str, sentence: str):
    result = run(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gemwright: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_no_command_shows_the_help(run):
    result = run()
    assert (result.code, result.out) == (2, "")
    assert result.err.rstrip("\n") == run("--help").out.rstrip("\n")


COMPLETE = """
import sys
from gemwright.cli import main
try:
    main()
finally:
    slow = {"jax", "numpy", "sentencepiece", "huggingface_hub"} & sys.modules.keys()
    assert not slow, slow
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gemwright gene", {"generate"}),
        ("gemwright chat --mo", {"--model"}),
        ("gemwright chat -m gemma-3-27", {"gemma-3-270m", "gemma-3-270m-it", "gemma-3-27b-pt", "gemma-3-27b-it"}),
        ("gemwright chat -m ./m", {"./m.gguf", "./models"}),
        ("gemwright convert a b --to g", {"gguf"}),
    ],
)
def test_completion(words: str, expected: set[str], tmp_path: Path):
    (tmp_path / "m.gguf").touch()
    (tmp_path / "m.txt").touch()
    (tmp_path / "models").mkdir()
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "_GEMWRIGHT_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-c", COMPLETE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == expected
