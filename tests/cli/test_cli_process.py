"""The command line as a process: pipes, signals, closed streams, a second start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

PIPE = subprocess.PIPE
SOURCE = Path(__file__).parents[2] / "src"


def test_broken_pipe(spawn, tiny):
    process = spawn("generate", "a", "-m", tiny, "--temperature", 0, "--max-tokens", 2000, stdout=PIPE, stderr=PIPE)
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


def test_broken_pipe_of_a_table(spawn):
    read, write = os.pipe()
    os.close(read)
    process = spawn("models", stdout=write, stderr=PIPE)
    os.close(write)
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]])
def test_full_disk(spawn, arguments):
    with Path("/dev/full").open("wb") as full:
        process = spawn(*arguments, stdout=full.fileno(), stderr=PIPE)
    err = process.stderr.read().decode()
    assert process.wait(60) == 2
    assert err == (
        "gemwright: The output cannot be read or written (No space left on device); "
        "check the path and the free space.\n"
    )


@pytest.mark.parametrize(
    ("redirection", "sentence"),
    [
        (">&-", "Standard output is closed; redirect it to a file or to /dev/null."),
        ("<&-", "There is no prompt; pass it as an argument or on standard input."),
    ],
)
def test_closed_streams(redirection: str, sentence: str):
    command = f"{sys.executable} -m gemwright generate {redirection}"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        ["sh", "-c", command], env=environment, stderr=PIPE, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (2, f"gemwright: {sentence}\n")


def test_interrupt(spawn, tiny):
    options = ("--temperature", 0, "--max-tokens", 4000)
    process = spawn("generate", "a", "-m", tiny, *options, stdout=PIPE, stderr=PIPE)
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


COUNT = """
import json, sys
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
from gemwright.cli import main
try:
    main()
finally:
    print(json.dumps(events), file=sys.stderr)
"""


GENERATE = ("generate", "hello", "--max-tokens", "3", "--seed", "1")


def compilations(arguments: tuple[str, ...], model: Path, **variables: str) -> Counter[str]:
    """Run the command line in a process and return JAX's events of its compilation cache."""
    command = [sys.executable, "-c", COUNT, *arguments, "-m", str(model)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "JAX_PLATFORMS": "cpu"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (line,) = done.stderr.splitlines()  # no warning either
    prefix = "/jax/compilation_cache/"
    return Counter(event.removeprefix(prefix) for event in json.loads(line) if event.startswith(prefix))


def test_second_start_compiles_nothing(tiny, tmp_path: Path):
    first = compilations(GENERATE, tiny, XDG_CACHE_HOME=str(tmp_path))
    assert first["cache_misses"] == 4  # the empty state, prefill, sampling and decoding
    folder = tmp_path / "gemwright" / "xla"
    assert folder.stat().st_mode & 0o777 == 0o700

    second = compilations(GENERATE, tiny, XDG_CACHE_HOME=str(tmp_path))
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] == 4

    # A cache folder set by the user (here the same one) replaces ours.
    other = tmp_path / "other"
    third = compilations(GENERATE, tiny, XDG_CACHE_HOME=str(other), JAX_COMPILATION_CACHE_DIR=str(folder))
    assert third["cache_hits"] == third["compile_requests_use_cache"] == 4
    assert not other.exists()


def test_no_folder_for_the_cache(tiny, tmp_path: Path):
    (tmp_path / "file").touch()  # blocks the folder, for root too
    events = compilations(("score", "hello"), tiny, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert events["cache_misses"] == events["cache_hits"] == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("library", ["numpy", "jaxlib"])
def test_interrupt_while_starting(spawn, tiny, library: str):
    process = spawn("generate", "a", "-m", tiny, "--max-tokens", 4000, stdout=PIPE, stderr=PIPE)
    maps, limit = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while f"/{library}/" not in maps.read_text() and time.monotonic() < limit:
        time.sleep(0.01)  # until imports have begun
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130
