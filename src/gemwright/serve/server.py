"""The process: an open port before the model is loaded, and an orderly end."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from gemwright.errors import GemwrightError
from gemwright.serve.app import create_app
from gemwright.serve.models import ModelRegistry
from gemwright.serve.settings import Settings

KEEP_ALIVE_SECONDS = 65
"""Time after which an idle connection is closed; longer than that of common proxies, which would lose requests."""
_TICKS_PER_CHECK = 50  # of uvicorn, which has ten a second


class Server(uvicorn.Server):
    """A server that loads its models after it has opened its port, and finishes its requests before it ends.

    The first SIGTERM or SIGINT refuses new requests (503) and ends the server when the others are finished, or after
    `shutdown_seconds`; the second ends the process at once.

    Attributes:
        error: The reason why the models could not be loaded.
    """

    def __init__(self, settings: Settings, load: Callable[[], ModelRegistry], shutdown_seconds: float = 30.0):
        self._app = create_app(None, settings)
        super().__init__(
            uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )
        self.error: Exception | None = None
        self._load, self._shutdown_seconds, self._deadline = load, shutdown_seconds, float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then begin to load the models."""
        await super().startup(sockets=sockets)
        threading.Thread(target=self._load_models, name="gemwright-load", daemon=True).start()

    def _load_models(self) -> None:
        try:
            self._app.state.registry = self._load()
        except Exception as error:
            self.error, self.should_exit = error, True

    async def on_tick(self, counter: int) -> bool:
        """Unload models whose time is over; return whether to end: no request is left, or there is no more time."""
        state = self._app.state
        if state.draining and (state.active == 0 or time.monotonic() > self._deadline):
            self.should_exit = True
        if state.registry is not None and counter % _TICKS_PER_CHECK == 0:
            await state.registry.unload_expired()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to end; it is not raised again afterwards, so that an orderly end returns."""
        if self._app.state.draining:
            os._exit(128 + sig)
        self._app.state.draining, self._deadline = True, time.monotonic() + self._shutdown_seconds
        logging.getLogger("gemwright.serve").warning("Shutting down; %d requests are running.", self._app.state.active)

    def run_until_signal(self, listener: socket.socket) -> None:
        """Serve on an open socket until a signal; then stop the models.

        Raises:
            GemwrightError: The models cannot be loaded.
        """
        self.run(sockets=[listener])
        if self.error is not None:
            raise self.error
        registry = self._app.state.registry
        if registry is None:  # Python cannot end a thread that loads a model
            os._exit(0)
        for served in registry.models:
            served.scheduler.stop()


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        GemwrightError: The port is in use, or the host has another address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GemwrightError(f"{host} port {port} cannot be opened ({reason}); choose another with --port.") from error
    listener.set_inheritable(True)
    return listener
