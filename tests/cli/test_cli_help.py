import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemwright

SOURCE = Path(__file__).parents[2] / "src"
COMMANDS = ("generate", "chat", "see", "infill", "score", "models", "inspect", "convert", "quantize", "pull", "doctor")

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
    assert "  generate  Continue one or several prompts." in done.stdout
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
    "arguments",
    [
        ["generat"],
        ["generate", "x", "--modle", "y"],
        ["generate", "x", "--max-tokens", "0"],
        ["generate", "x", "--top-logprobs", "65"],
        ["generate", "x", "--top-logprobs=-1"],
        ["generate", "x", "--temperature", "warm"],
        ["convert", "a", "b"],
        ["quantize", "a", "b", "--bits", "5"],
        ["inspect"],
    ],
)
def test_usage_errors(run, arguments):
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Error: " in result.err
