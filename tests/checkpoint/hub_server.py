"""A local server with the part of the Hugging Face hub's API that downloads use, and its refusals."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Repo:
    """A repository.

    Attributes:
        files: Contents by path.
        revisions: Names of its only commit.
        private: Whether it is hidden without a token in `readers`.
        gated: Whether its files, but not its page, need a token in `readers`.
        refusals: Message of the gate to each known token that is not in `readers`.
        claimed: Wrong sizes in the listing, by path.
    """

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    private: bool = False
    gated: bool = False
    readers: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """The server's state, changed by the tests while it runs.

    Attributes:
        repos: Repositories by `owner/name`.
        tokens: Valid tokens.
        broken: Status of every request whose path starts with the key.
        stops: Bytes of a file after which every connection that sends it breaks, or the body ends.
        cuts: Bytes of a file after which only the next connection breaks.
        storage: Status of the separate file storage (Xet); None stores files on the hub itself.
        page: Answer to every request instead of the hub's.
        endpoint: The address.
        short: Whether a stopped file ends as if complete instead of breaking the connection.
        requests: Method, path and Range header of each request.
    """

    repos: dict[str, Repo]
    tokens: tuple[str, ...] = ()
    broken: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    short: bool = False
    storage: int | None = None
    page: bytes | None = None
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[tuple[str, str | None]]:
        """Return the files whose content was requested, each with its Range header."""
        return [(p.rsplit("/", 1)[1], r) for m, p, r in self.requests if m == "GET" and "/resolve/" in p]


class RefusalError(Exception):
    """An error answer without content."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        try:
            if hub.page is not None:
                return self.reply(200, hub.page, {"Content-Type": "text/html"})
            for start, status in hub.broken.items():
                if path.startswith(start):
                    raise RefusalError(status)
            if "/reconstructions/" in path:
                raise RefusalError(hub.storage or 404)
            if path == "/storage-token":
                headers = {"X-Xet-Cas-Url": hub.endpoint, "X-Xet-Access-Token": "t"}
                return self.reply(200, b"{}", {**headers, "X-Xet-Token-Expiration": "9999999999"})
            if path.startswith("/api/models/"):
                return self.listing(hub, path.removeprefix("/api/models/").split("/", 4))
            return self.file(hub, path[1:].split("/", 4))
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            body = json.dumps({"error": refusal.message}).encode()
            return self.reply(refusal.status, body, {k: v for k, v in headers.items() if v})

    def token(self, hub: Hub) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in hub.tokens:
            raise RefusalError(401, message="Invalid credentials in Authorization header")
        return token

    def repo(self, hub: Hub, name: str) -> Repo:
        """Answer alike for private and missing repositories, as the hub does."""
        token, repo = self.token(hub), hub.repos.get(name)
        if repo is None or (repo.private and token not in repo.readers):
            if token is None:
                raise RefusalError(401, "RepoNotFound", "Invalid username or password.")
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        return repo

    def listing(self, hub: Hub, parts: list[str]) -> None:
        repo = self.repo(hub, "/".join(parts[:2]))
        if len(parts) > 3 and parts[3] not in repo.revisions:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
        sizes = {name: repo.claimed.get(name, len(content)) for name, content in repo.files.items()}
        if parts[2:3] == ["tree"]:
            answer: Any = [
                {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}
                for name, size in sizes.items()
            ]
        else:
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            answer = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings}
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, hub: Hub, parts: list[str]) -> None:
        name, (_, revision, path) = "/".join(parts[:2]), parts[2:]
        repo = self.repo(hub, name)
        token = self.token(hub)
        if repo.gated and token not in repo.readers:
            if token is None:
                message = f"Access to model {name} is restricted. You must have access to it and be authenticated"
                raise RefusalError(401, "GatedRepo", message)
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            raise RefusalError(403, "GatedRepo", repo.refusals.get(token, message))
        if revision not in repo.revisions:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repo.files:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        self.content(hub, path, repo.files[path])

    def content(self, hub: Hub, path: str, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if hub.storage is not None:
            headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{hub.endpoint}/storage-token"}
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = len(content)
        if self.command == "GET":
            stop = hub.cuts.pop(path, hub.stops.get(path, stop))
        if hub.short:
            content = content[:stop]
        self.reply(status, content[start:], headers, max(stop - start, 0))

    def reply(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        """Send `sent` bytes of the body and break the connection if those are not all."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            if sent is not None and sent < len(body):
                self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Log nothing, to keep the output of tests clean."""


@contextmanager
def serve(hub: Hub, handler: type[Handler] = Handler) -> Iterator[Hub]:
    """Run the hub on a free port until the block ends, and set its `endpoint`."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
