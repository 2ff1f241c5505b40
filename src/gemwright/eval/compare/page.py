"""A page of this machine on which a person judges pairs: blind, in a drawn order, by keyboard.

Only the answers are sent to the browser, never who gave them. The address has a secret, so that other users of the
machine and other web pages cannot use it.
"""

import json
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from gemwright.eval.compare.pairs import Pair, Verdict, find_outcome
from gemwright.eval.store import Records

PERSON: Final = ("person",)
"""The judge of the page, in keys of judgements."""
SEED = 0
"""Seed of the order of the pairs and of who is on the left."""
MAX_BODY = 4096
"""Maximum size of a request, in bytes."""
_VERDICTS = ("left", "right", "tie", "skip")
_FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; trusted-types 'none'; "
    "require-trusted-types-for 'script'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Place(NamedTuple):
    """A pair, and whether the answer of its second candidate is on the left."""

    pair: Pair
    is_swapped: bool


class Session:
    """The pairs that a person judges, in a drawn order; used by several threads.

    For every two candidates each is on the left equally often. A pair that is shown in one tab is shown in another only
    if there is no other pair left, and only the first judgement counts. Skipped pairs come again at the end.

    Attributes:
        finished: Set when all pairs are judged, and the browser knows it.
    """

    def __init__(self, pairs: Sequence[Pair], records: Records, progress: Callable[[int, int], None]):
        self.finished = threading.Event()
        self._places = draw([pair for pair in pairs if not pair.is_equal], random.Random(SEED))
        self._records, self._progress = records, progress
        self._lock = threading.Lock()
        self._open = [number for number, place in enumerate(self._places) if not self._is_judged(place)]
        self._judged: list[int] = []
        self._shown: dict[str, int] = {}
        self.finish_if_done()

    def _is_judged(self, place: Place) -> bool:
        return find_outcome(place.pair, PERSON, self._records.by_key).score is not None

    def show(self, tab: str) -> dict[str, Any]:
        """Return what a tab shows next."""
        with self._lock:
            return self._show(tab)

    def _show(self, tab: str, number: int | None = None) -> dict[str, Any]:
        elsewhere = {shown for other, shown in self._shown.items() if other != tab}
        if number is None:
            number = next((one for one in self._open if one not in elsewhere), next(iter(self._open), None))
        total = len(self._places)
        state: dict[str, Any] = {"judged": total - len(self._open), "total": total, "can_undo": bool(self._judged)}
        if number is None:
            return {**state, "pair": None}
        self._shown[tab] = number
        place = self._places[number]
        left, right = place.pair.order(place.is_swapped)
        turns = zip(place.pair.prompt.turns, left.turns, right.turns, strict=True)
        shown = [{"prompt": prompt, "left": one, "right": other} for prompt, one, other in turns]
        return {**state, "pair": number, "turns": shown}

    def judge(self, tab: str, number: int, verdict: str) -> dict[str, Any] | None:
        """Record a verdict, or skip a pair, and return what comes next; None if the pair was judged before."""
        with self._lock:
            if number not in self._open:
                return None
            if verdict == "skip":
                self._open.append(number)
            else:
                pair, is_swapped = self._places[number]
                self._records.append(pair.record(PERSON, is_swapped, cast(Verdict, verdict), by="person"))
                self._judged.append(number)
            self._open.remove(number)  # the first, which is not the one at the end
            self._progress(len(self._places) - len(self._open), len(self._places))
            return self._show(tab)

    def undo(self, tab: str) -> dict[str, Any]:
        """Take the last verdict of this session back, and return its pair."""
        with self._lock:
            if not self._judged:
                return self._show(tab)
            number = self._judged[-1]
            pair, is_swapped = self._places[number]
            self._records.append(pair.record(PERSON, is_swapped, None, by="person", withdrawn=True))
            self._judged.pop()
            self._open.insert(0, number)
            self._progress(len(self._places) - len(self._open), len(self._places))
            return self._show(tab, number)

    def finish_if_done(self) -> None:
        """Set `finished` if all pairs are judged."""
        if not self._open:
            self.finished.set()


def draw(pairs: Sequence[Pair], random: random.Random) -> list[Place]:
    """Return pairs in a drawn order; for every two candidates, each is on the left equally often, within one."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.first.label, pair.second.label), []).append(pair)
    places: list[Place] = []
    for group in groups.values():
        first = random.randrange(2)
        swaps = [(first + index) % 2 == 0 for index in range(len(group))]
        random.shuffle(swaps)
        places += map(Place, group, swaps)
    random.shuffle(places)
    return places


class PageServer:
    """Serves the page of a session on a free port of the loopback address.

    Attributes:
        address: Address of the page.
    """

    def __init__(self, session: Session):
        secret = secrets.token_urlsafe(16)
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, session, f"/{secret}/"))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))
        self.address = f"http://127.0.0.1:{self._server.server_port}/{secret}/"

    def __enter__(self) -> "PageServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about a browser that closed its connection."""


class _RefusedError(Exception):
    """A request that is not served: the status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    """Time for a request, in seconds."""

    def __init__(self, session: Session, root: str, *arguments: Any):
        self._session, self._root = session, root
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print nothing: the terminal shows the progress."""

    def _answer(self, make: Callable[[str], tuple[bytes, str]]) -> None:
        status = 200
        try:
            body, kind = make(self._path())
        except (_RefusedError, OSError) as error:
            status = error.status if isinstance(error, _RefusedError) else 500
            reason = str(error) if isinstance(error, _RefusedError) else "The verdict cannot be kept; is the disk full?"
            body, kind = json.dumps({"error": reason}).encode(), "application/json"
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self._session.finish_if_done()

    def _path(self) -> str:
        """Return the path within the page, if the request comes from the page.

        Another site can reach a server of this machine by its own name (DNS rebinding), so the name is checked.
        """
        host = self.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in ("127.0.0.1", "localhost", "::1"):
            raise _RefusedError(403, "Open the page by the address that the terminal shows.")
        if not secrets.compare_digest(self.path[: len(self._root)].encode(), self._root.encode()):
            raise _RefusedError(404, "Open the page by the whole address that the terminal shows.")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise _RefusedError(403, "Other web pages may not use this one.")
        return self.path[len(self._root) :]

    def _get(self, path: str) -> tuple[bytes, str]:
        if path not in _FILES:
            raise _RefusedError(404, "There is no such file.")
        name, kind = _FILES[path]
        return (files("gemwright.eval.compare") / "web" / name).read_bytes(), kind

    def _post(self, path: str) -> tuple[bytes, str]:
        body = self._body()
        tab, number, verdict = (body.get(name) for name in ("tab", "pair", "verdict"))
        if not isinstance(tab, str) or len(tab) > 64:
            raise _RefusedError(400, "The request has no tab.")
        if path == "next":
            state = self._session.show(tab)
        elif path == "undo":
            state = self._session.undo(tab)
        elif path == "judge" and isinstance(number, int) and verdict in _VERDICTS:
            state = self._session.judge(tab, number, verdict)
        else:
            raise _RefusedError(400, "The request is not one of the page.")
        if state is None:
            raise _RefusedError(409, "This pair was judged in another tab.")
        return json.dumps(state).encode(), "application/json"

    def _body(self) -> dict[str, Any]:
        try:
            size = int(self.headers.get("Content-Length", ""))
            body = json.loads(self.rfile.read(size)) if 0 <= size <= MAX_BODY else None
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or self.headers.get_content_type() != "application/json":
            raise _RefusedError(400, "The request is not a JSON object.")
        return cast(dict[str, Any], body)
