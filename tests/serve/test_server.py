"""The process of a server: when its port is open, and how signals end it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gemwright.errors import GemwrightError
from gemwright.serve.models import ModelRegistry
from gemwright.serve.server import Server, open_port
from gemwright.serve.settings import Settings
from tests.serve.scripted_process import PAUSE
from tests.tiny.gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Process, str]]]:
    """Return a function that starts a server and returns its process and address."""
    started: list[Process] = []

    def run(path: object, load_seconds: float = 0, shutdown_seconds: float = 30) -> tuple[Process, str]:
        arguments = map(str, (path, load_seconds, shutdown_seconds))
        command = [sys.executable, "-m", "tests.serve.scripted_process", *arguments]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        started.append(process)
        assert process.stdout is not None
        return process, f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_until(url: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(url).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_stream(url: str, tokens: int, into: list[str]) -> None:
    body = {"prompt": "a", "max_tokens": tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        into += [line for line in response.iter_lines() if line]


def test_the_port_is_open_before_the_model_is_loaded_and_requests_are_finished_after_a_signal(start, path: Path):
    process, url = start(path, load_seconds=0.5)
    assert httpx.get(f"{url}/health").status_code == 503
    assert httpx.get(f"{url}/livez").status_code == 200
    wait_until(f"{url}/health", 200)
    lines: list[str] = []
    thread = threading.Thread(target=read_stream, args=(url, 20, lines))
    thread.start()
    time.sleep(5 * PAUSE)
    process.send_signal(signal.SIGTERM)
    wait_until(f"{url}/readyz", 503)
    refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    thread.join()
    assert lines[-1] == "data: [DONE]"
    texts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert texts[-1]["finish_reason"] == "length"
    assert process.wait(60) == 0
    assert process.stdout.read() == "ended\n"


def test_requests_end_after_the_time_to_shut_down(start, path: Path):
    process, url = start(path, shutdown_seconds=0.3)
    wait_until(f"{url}/health", 200)
    thread = threading.Thread(target=pytest.raises, args=(httpx.HTTPError, read_stream, url, 500, []))
    thread.start()
    time.sleep(5 * PAUSE)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    thread.join()


def test_a_second_signal_ends_the_process_at_once(start, path: Path):
    process, url = start(path)
    wait_until(f"{url}/health", 200)
    thread = threading.Thread(target=pytest.raises, args=(httpx.HTTPError, read_stream, url, 500, []))
    thread.start()
    time.sleep(5 * PAUSE)
    process.send_signal(signal.SIGTERM)
    wait_until(f"{url}/readyz", 503)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    thread.join()


def test_a_signal_while_loading(start, path: Path):
    process, url = start(path, load_seconds=600)
    wait_until(f"{url}/livez", 200)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_a_model_that_cannot_be_loaded_ends_the_process(start):
    process, _ = start("")
    assert process.wait(60) == 1  # the exception, of which the command line prints the sentence


def test_models_whose_time_is_over_are_unloaded(registry: ModelRegistry):
    server = Server(Settings(), lambda: registry)
    server._app.state.registry = registry
    (source,) = registry.sources
    asyncio.run(server.on_tick(0))
    assert source.served is not None
    source.keep_seconds = -1.0
    asyncio.run(server.on_tick(0))
    assert source.served is None


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(GemwrightError, match=f"127.0.0.1 port {port} cannot be opened"):
            open_port("127.0.0.1", port)
    with pytest.raises(GemwrightError, match="cannot be opened"):
        open_port("no.such.host.invalid", 8000)
