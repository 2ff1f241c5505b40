"""The local hub with the part of the API that uploads use: repositories, large files and commits.

Source: huggingface_hub 2.4 `_commit_api.py` and `lfs.py`, the requests that it sends and the answers that it reads.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.checkpoint import hub_server
from tests.checkpoint.hub_server import COMMIT, Hub, RefusalError, Repo

LARGE_BYTES = 1000
"""Files of this size and more are large ones, which are stored apart from commits."""


@dataclass
class Uploads(Hub):
    """The state of a hub that takes uploads.

    Attributes:
        objects: Large files by their SHA-256.
        sent: SHA-256 of each large file that was sent, whole ones only.
        held: SHA-256 of a large file whose transfer does not end, until the client breaks off.
        holding: Set when that transfer has begun.
        commits: Paths of each commit.
        validated: The cards that were sent to be validated.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    held: str | None = None
    holding: threading.Event = field(default_factory=threading.Event)
    commits: list[list[str]] = field(default_factory=list)
    validated: list[str] = field(default_factory=list)


class Handler(hub_server.Handler):
    def file(self, hub: Hub, parts: list[str]) -> None:
        if parts[0] == "api":  # what the client asks on the way, such as /api/agent-harnesses
            raise RefusalError(404)
        super().file(hub, parts)

    def do_POST(self) -> None:
        hub: Uploads = self.server.hub
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.requests.append(("POST", path, None))
        try:
            for start, status in hub.broken.items():
                if path.startswith(start):
                    raise RefusalError(status)
            answer = self.answer(hub, path, body)
            self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.reply(refusal.status, b"{}", {k: v for k, v in headers.items() if v})

    def answer(self, hub: Uploads, path: str, body: bytes) -> Any:
        if path == "/api/validate-yaml":
            hub.validated.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if self.token(hub) is None:
            raise RefusalError(401, message="Invalid credentials")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.repos[name] = Repo({}, private=bool(private), readers=hub.tokens)
            return {"url": f"{hub.endpoint}/{name}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self.place(hub, one) for one in json.loads(body)["objects"]]}
        name, action = path.removeprefix("/api/models/").removeprefix("/api/datasets/").rsplit("/", 2)[:2]
        repo = self.repo(hub, name)
        if action == "preupload":
            return {"files": [self.mode(repo, one) for one in json.loads(body)["files"]]}
        return self.commit(hub, name, repo, [json.loads(line) for line in body.splitlines()])

    def place(self, hub: Uploads, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in hub.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"{hub.endpoint}/objects/{asked['oid']}"}}}

    def mode(self, repo: Repo, asked: dict[str, Any]) -> dict[str, Any]:
        large = asked["size"] >= LARGE_BYTES
        content = repo.files.get(asked["path"])
        oid = None
        if content is not None:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            oid = hashlib.sha256(content).hexdigest() if large else blob
        return {
            "path": asked["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def commit(self, hub: Uploads, name: str, repo: Repo, lines: list[dict[str, Any]]) -> dict[str, Any]:
        paths: list[str] = []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                repo.files[value["path"]] = hub.objects[value["oid"]]
            else:
                repo.files[value["path"]] = base64.b64decode(value["content"])
            paths.append(value["path"])
        hub.commits.append(paths)
        return {"commitUrl": f"{hub.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    def do_PUT(self) -> None:
        hub: Uploads = self.server.hub
        oid, size = self.path.rsplit("/", 1)[1], int(self.headers["Content-Length"])
        if oid == hub.held:
            self.rfile.read(size // 2)
            hub.holding.set()
            while self.connection.recv(1 << 16):  # without an answer, until the client breaks off
                pass
            self.close_connection = True
            return
        content = self.rfile.read(size)
        if hashlib.sha256(content).hexdigest() == oid:
            hub.objects[oid] = content
            hub.sent.append(oid)
        self.reply(200, b"", {"ETag": '"1"'})


@contextmanager
def serve(hub: Uploads) -> Iterator[Uploads]:
    """Run the hub until the block ends."""
    with hub_server.serve(hub, Handler):
        yield hub
