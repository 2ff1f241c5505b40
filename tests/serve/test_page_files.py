"""The files of the page: headers, caching, and nothing that the content security policy would refuse."""

import re
from importlib.resources import files

import numpy as np
import pytest

pytest.importorskip("httpx")
from starlette.testclient import TestClient

from gemwright.images.locations import parse
from gemwright.images.masks import LAYOUT, MaskDecoder
from gemwright.serve import page
from tests.serve.stand_in import Script, create

WEB = files("gemwright.serve") / "web"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create(Script()))


def test_the_page_has_a_strict_policy(client: TestClient):
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert client.get("/").headers["X-Content-Type-Options"] == "nosniff"


def test_html_has_nothing_inline_and_nothing_from_elsewhere():
    html = (WEB / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    assert not re.search(r"(?:src|href)=\"(?:[a-z]+:)?//", html)


@pytest.mark.parametrize("name", ["app.css", "app.js", "icon.svg", "vendor/purify.js"])
def test_files_have_types_and_are_cached_by_etag(client: TestClient, name: str):
    first = client.get(f"/web/{name}")
    assert first.content == WEB.joinpath(name).read_bytes()
    assert first.headers["Content-Type"].split(";")[0] in {"text/css", "text/javascript", "image/svg+xml"}
    again = client.get(f"/web/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"/web/{name}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["..%2fpage.py", "%2e%2e/page.py", "vendor", "vendor/README.md", "none.js", "%00"])
def test_nothing_else_is_served(client: TestClient, path: str):
    assert client.get(f"/web/{path}").status_code == 404


def test_every_file_that_is_named_exists(client: TestClient):
    texts = {path.name: path.read_text() for path in WEB.iterdir() if path.is_file()}
    for name, text in texts.items():
        named = re.findall(r"from \"\./([\w./]+)\"|\"web/([\w./]+)", text)
        for one in {part for pair in named for part in pair if part}:
            assert client.get(f"/web/{one}").status_code == 200, (name, one)
    sprite = texts["icons.svg"]
    used = set(re.findall(r"icons\.svg#(\w+)", texts["index.html"]))
    used |= {name for text in texts.values() for name in re.findall(r"icon(?:Button)?\(\s*\"(\w+)\"", text)}
    assert used <= set(re.findall(r"symbol id=\"(\w+)\"", sprite))


def test_objects_are_those_of_the_text(client: TestClient):
    text = "<loc0384><loc0128><loc0848><loc0424> dog ; <loc0000><loc0000><loc1023><loc1023> sky"
    objects = client.post("/page/objects", json={"text": text}).json()["objects"]
    assert [one["label"] for one in objects] == ["dog", "sky"]
    assert objects[0]["box"] == pytest.approx([384 / 1023, 128 / 1023, 848 / 1023, 424 / 1023])
    assert objects[1]["box"] == [0, 0, 1, 1]
    assert objects[0]["mask"] is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"text": 1}', b'{"text": "' + b"a" * 100_001 + b'"}', b"\xff"])
def test_a_wrong_request_for_objects_is_refused(client: TestClient, body: bytes):
    assert client.post("/page/objects", content=body).status_code == 400


def test_masks_are_what_the_decoder_returns():
    import base64
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape, scale=0.05).astype(np.float32) for name, shape in LAYOUT.items()}
    decoder = MaskDecoder(arrays)
    tags = "".join(f"<seg{code:03d}>" for code in range(16))
    found = parse(f"<loc0000><loc0000><loc0500><loc0500>{tags} cat")
    (one,) = page.draw_objects(found, decoder)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"].split(",")[1]))))
    values = (image.astype(np.float32) - 127.5) / 127.5
    np.testing.assert_allclose(values, np.clip(decoder.decode(tuple(range(16))), -1, 1), atol=1 / 127)
