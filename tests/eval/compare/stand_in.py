"""A server of this machine with the chat API of OpenAI that replies by a function, and counts requests."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | tuple[int, str] | bytes
"""A text, a status, a status with a message, or the bytes of a body."""


class StandIn:
    """A server.

    Attributes:
        reply: Gives the reply to the body of a request.
        requests: Bodies of the requests.
        keys: Their `Authorization` headers.
        running, most: Number of requests now, and the most at a time.
    """

    def __init__(self, reply: Callable[[Mapping[str, Any]], Reply]):
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.address = ""


@contextmanager
def serve(stand_in: StandIn) -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                stand_in.requests.append(body)
                stand_in.keys.append(self.headers["Authorization"])
                stand_in.running += 1
                stand_in.most = max(stand_in.most, stand_in.running)
            reply = stand_in.reply(body) if self.path == "/v1/chat/completions" else 404
            with stand_in.lock:
                stand_in.running -= 1
            status, sent = 200, b""
            if isinstance(reply, bytes):
                sent = reply
            elif isinstance(reply, str):
                choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
                sent = json.dumps({"choices": [choice]}).encode()
            else:
                status, message = (reply, "no") if isinstance(reply, int) else reply
                sent = json.dumps({"error": {"message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Print nothing about a client that left."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    stand_in.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
