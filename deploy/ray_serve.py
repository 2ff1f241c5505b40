"""Replicas of the server under Ray Serve.

pip install '.[serve]' 'ray[serve]'
serve run deploy.ray_serve:build model=gemma-3-1b-it replicas=2

Each replica is a process of `gemwright serve` on a loopback port of its own, and its actor passes requests and streams
on. Ray prefers the replica with fewer running requests and replaces one that fails. The replicas check the key in
GEMWRIGHT_API_KEY.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

LOADING_SECONDS = 1800
"""Maximum time in which a replica loads its model and warms up."""
DRAIN_SECONDS = 120
"""Time that running requests have to end when a replica is removed."""
_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
"""Headers of one connection, which a proxy does not pass on (RFC 9110, 7.6.1)."""


def build(arguments: dict[str, str]) -> Any:
    """Return the application of `serve run`.

    Args:
        arguments: `model`: path, name or hub id; `replicas`: their number (2); `running`: maximum number of requests of
            a replica at once (64).
    """
    from ray import serve

    deployment = serve.deployment(
        num_replicas=int(arguments.get("replicas", 2)),
        max_ongoing_requests=int(arguments.get("running", 64)),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=DRAIN_SECONDS + 10,
    )(Replica)
    return deployment.bind(arguments["model"])


class Replica:
    """A server process, and the client that passes requests on to it."""

    def __init__(self, model: str):
        port = find_port()
        command = [sys.executable, "-m", "gemwright", "serve", "--model", model, "--port", str(port)]
        command += ["--host", "127.0.0.1", "--shutdown-timeout", str(DRAIN_SECONDS)]
        if setpriv := shutil.which("setpriv"):  # ends the server with its actor, even if that is killed
            command = [setpriv, "--pdeathsig", "KILL", *command]
        self._process = subprocess.Popen(command)
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(600, connect=10))
        self._wait(f"http://127.0.0.1:{port}/readyz")

    def _wait(self, address: str) -> None:
        """Return when the server is ready."""
        end = time.monotonic() + LOADING_SECONDS
        while time.monotonic() < end:
            self.check_health()
            try:
                if httpx.get(address).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError(f"gemwright serve is not ready after {LOADING_SECONDS} seconds.")

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and its reply back as it comes."""
        address = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        passed = self._client.build_request(request.method, address, headers=headers, content=await request.body())
        reply = await self._client.send(passed, stream=True)
        kept = {name: value for name, value in reply.headers.items() if name not in _HOP_BY_HOP}
        return StreamingResponse(stream(reply), reply.status_code, kept)

    def check_health(self) -> None:
        """Raise if the server has ended, so that Ray replaces the replica."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"gemwright serve ended with exit code {code}.")

    def __del__(self) -> None:
        """End the server after its running requests."""
        self._process.terminate()
        try:
            self._process.wait(DRAIN_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()


def find_port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def stream(reply: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body of a reply. If the client leaves, the connection is closed, which cancels the request."""
    try:
        async for piece in reply.aiter_raw():
            yield piece
    finally:
        await reply.aclose()
