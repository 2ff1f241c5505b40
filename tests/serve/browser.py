"""A real Chromium for the tests of the page, driven through selenium."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TIMEOUT_SECONDS = 60.0
T = TypeVar("T")


def wait(condition: Callable[[], T]) -> T:
    """Return the result of a condition as soon as it is true."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            if result := condition():
                return result
        except (StaleElementReferenceException, WebDriverException):
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "timed out"
        time.sleep(0.03)


class Browser:
    """The page in a browser."""

    def __init__(self, address: str, folder: Path):
        options = webdriver.ChromeOptions()
        assert CHROMIUM
        options.binary_location = CHROMIUM
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.address, self.folder = address, folder
        self.view(1200, 800)

    def view(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the size of the page in pixels, and the color scheme of the system."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def reset(self) -> None:
        """Forget all that the page keeps in the browser."""
        self.driver.get(f"{self.address}/web/icon.svg")
        self.driver.execute_async_script(
            "localStorage.clear(); sessionStorage.clear(); const done = arguments[0];"
            "const request = indexedDB.deleteDatabase('gemwright');"
            "request.onsuccess = request.onerror = request.onblocked = () => done();"
        )

    def open(self, path: str = "") -> None:
        self.driver.get(f"{self.address}/{path}")

    def ready(self) -> None:
        """Open the page and wait until it has a model."""
        self.open()
        wait(lambda: "·" in self.driver.title)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> WebElement:
        return wait(lambda: self.driver.find_element(By.CSS_SELECTOR, selector))

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)

    def click(self, selector: str) -> None:
        wait(lambda: self.find(selector).click() or True)

    def button(self, name: str, within: str = "") -> None:
        """Click the last button of a name that is shown."""
        wait(lambda: self._buttons(name, within)[-1].click() or True if self._buttons(name, within) else False)

    def _buttons(self, name: str, within: str) -> list[WebElement]:
        found = self.all(f'{within} [aria-label="{name}"]') or [
            one for one in self.all(f"{within} button") if one.text.strip() == name
        ]
        return [one for one in found if one.is_displayed()]

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)
        self.run("arguments[0].dispatchEvent(new Event('change', { bubbles: true }))", field)

    def choose(self, selector: str, value: str) -> None:
        Select(self.find(selector)).select_by_value(value)

    def send(self, text: str) -> None:
        self.find("#input").send_keys(text, Keys.ENTER)

    def ask(self, text: str) -> str:
        """Send a message and return the reply when it has ended."""
        before = len(self.all(".reply"))
        self.send(text)
        wait(lambda: len(self.all(".reply")) > before and self.idle())
        return self.texts(".reply .body")[-1]

    def idle(self) -> bool:
        return self.find("#send").is_displayed()

    def errors(self) -> list[str]:
        """Return the errors of the console, without those of failed requests."""
        logs = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in logs if "Failed to load resource" not in message]
