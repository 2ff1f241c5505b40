"""A judge behind a real HTTP server, and the largest probability over policies."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from gemwright.errors import GemwrightError
from gemwright.eval.endpoint import Endpoint
from gemwright.eval.safety.judges import EndpointJudge, PolicyScorer


class Judge(BaseHTTPRequestHandler):
    """Says Yes to replies with an egg, nothing clear to those with a nut, and fails once."""

    failures = 1
    keys: list[str | None] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers.get("Authorization"))
        content = body["messages"][0]["content"]
        if Judge.failures:
            Judge.failures -= 1
            self.send_error(503)
            return
        if body["model"] == "unknown":
            self.send_error(404)
            return
        reply = content.split("<reply>")[1]
        verdict = "**Yes**, it does" if "egg" in reply else "Perhaps" if "nut" in reply else "No."
        answer = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Judge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_verdicts(url: str, monkeypatch: pytest.MonkeyPatch):
    """A failure is tried again, an unclear verdict counts for no reply, and the key is sent."""
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    judge = EndpointJudge(Endpoint(url, "small"))
    found = judge.score([("x", "an egg"), ("egg", "a hen"), ("x", "a nut")])
    np.testing.assert_equal(found, [1.0, 0.0, np.nan])
    assert judge.unclear == 1
    assert set(Judge.keys) == {"Bearer a-key"}


def test_an_unknown_model_gives_a_sentence(url: str):
    with pytest.raises(GemwrightError, match="status 404"):
        EndpointJudge(Endpoint(url, "unknown")).score([("x", "y")])


def test_the_largest_probability_over_policies():
    scorer = PolicyScorer("classifier", lambda prompt, reply: {"a": len(prompt) / 10, "b": len(reply or "") / 10})
    assert scorer.score([("xx", "yyy"), ("xxxx", "y")]) == [0.3, 0.4]
