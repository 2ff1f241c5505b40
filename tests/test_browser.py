"""The page of examples/browser in a real browser: it needs npm, Chromium and the extra `export`."""

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.documents import ROOT

pytest.importorskip("selenium")
pytest.importorskip("litert_lm_builder")

from gemwright.release.targets import ExportOptions, find_exporter
from tests.serve.browser import CHROMIUM, Browser, wait

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not CHROMIUM or not shutil.which("npm"), reason="there is no Chromium or no npm"),
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of the page, with LiteRT-LM installed beside it."""
    folder = shutil.copytree(ROOT / "examples" / "browser", tmp_path / "browser")
    subprocess.run(["npm", "install", "--silent"], cwd=folder, check=True, timeout=120)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_an_exported_model_continues_a_text(address: str, demo_gguf: Path, tmp_path: Path):
    model = tmp_path / "gemma.litertlm"
    find_exporter("litert")(demo_gguf, model, ExportOptions("int8", 256, verify=False), lambda line: None)
    browser = Browser(address, tmp_path)
    try:
        driver = browser.driver
        driver.get(address)
        driver.find_element("id", "model").send_keys(str(model))
        status = driver.find_element("id", "status")
        wait(lambda: status.text == "Loaded gemma.litertlm.")
        driver.find_element("id", "run").click()
        wait(lambda: status.text.startswith("Generated"))
        text = driver.find_element("id", "text").text
        assert text.startswith("Once upon a time, a young girl")
        assert len(text) > 200
    finally:
        driver.quit()
