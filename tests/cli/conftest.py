import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gemwright.api import Model
from gemwright.cli import main
from gemwright.loading import load
from gemwright.text.chat import GEMMA
from tests.tiny.gguf import write_tiny_gguf

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template=GEMMA.template)


@pytest.fixture(scope="session")
def tiny_model(tiny: Path) -> Model:
    return load(tiny)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in this process with arguments and standard input."""

    def run_main(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["gemwright", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, written.out, written.err)

    return run_main


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts the command line as a process in its own session."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, env: dict[str, str] | None = None, **streams: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gemwright", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "JAX_PLATFORMS": "cpu"} | (env or {})
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
